// Draws depth, reads it out under the pointer, and takes two points to measure between.
// Runs once in Gradio's HTML component, which gives element, props, trigger and watch;
// props.value is what metricgold.demo.browser.depth_layers says.
const part = (selector) => element.querySelector(selector);
const view = part(".depth-view"), canvas = part("canvas"), marks = part("svg"), tip = part(".tip");
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
let shown = null, points = [], layer = "depth", cursor = null;

// Steps along log-depth to metres, 0 where there is none.
function metres(field) {
  const steps = new Uint16Array(bytes(field.steps).buffer);
  return Float32Array.from(steps, (s) => (s ? field.first * Math.exp(field.growth * (s - 1)) : 0));
}

function told(x, y) {
  const at = y * shown.width + x, depth = shown.metres[at];
  if (!depth) return `${x}, ${y}: no depth`;
  let text = `${x}, ${y}: ${depth.toFixed(2)} m`;
  if (shown.error) text += ` ± ${shown.error[at].toFixed(2)} m`;
  return shown.known_to_m && depth >= shown.known_to_m ? `${text} or farther` : text;
}

// Colours run along the logarithm, from near to far; grey where there is no number.
function coloured(values, near, far) {
  const image = new ImageData(shown.width, shown.height);
  const scale = 255 / Math.log(far / near);
  for (let i = 0; i < values.length; i++) {
    const at = 3 * Math.max(0, Math.min(255, Math.round(scale * Math.log(values[i] / near))));
    const rgb = values[i] ? shown.lut.subarray(at, at + 3) : [58, 58, 62];
    image.data.set([rgb[0], rgb[1], rgb[2], 255], 4 * i);
  }
  return image;
}

function paint() {
  const context = canvas.getContext("2d");
  const limits = layer === "uncertainty" ? shown.uncertainty : shown;
  part(".bar").style.visibility = layer === "picture" ? "hidden" : "visible";
  if (layer === "picture") {
    const now = shown, image = new Image();
    image.onload = () => { if (now === shown && layer === "picture") context.drawImage(image, 0, 0); };
    image.src = shown.picture;
    return;
  }
  const values = layer === "uncertainty" ? shown.error : shown.metres;
  context.putImageData(coloured(values, limits.near_m, limits.far_m), 0, 0);
  bar(limits.near_m, limits.far_m);
}

function bar(near, far) {
  const colours = Array.from({ length: 33 }, (_, i) => {
    const at = 3 * Math.round((i * 255) / 32);
    return `rgb(${shown.lut[at]} ${shown.lut[at + 1]} ${shown.lut[at + 2]})`;
  });
  part(".ramp").style.background = `linear-gradient(to right, ${colours.join(",")})`;
  const ticks = part(".ticks");
  ticks.replaceChildren();
  const share = (value) => Math.log(value / near) / Math.log(far / near);
  const add = (value, text, at) => {
    const tick = document.createElement("span");
    tick.textContent = text;
    tick.style.left = `${100 * at}%`;
    if (at === 0 || at === 1) tick.className = at ? "last" : "first";
    ticks.append(tick);
  };
  const short = (value) => (value < 10 ? String(Number(value.toPrecision(2))) : value.toFixed(0));
  add(near, short(near), 0);
  const inner = [];
  for (let ten = 1e-4; ten < far; ten *= 10) {
    for (const of of [1, 2, 5]) inner.push(ten * of);
  }
  let before = 0;
  for (const value of inner) {
    const at = share(value);
    if (at - before < 0.1 || at > 0.88) continue;
    add(value, short(value), at);
    before = at;
  }
  add(far, `${short(far)} m`, 1);
}

// Markers keep their size on the screen, however the picture is scaled.
function mark() {
  const unit = shown ? shown.width / Math.max(1, canvas.clientWidth) : 1;
  const at = points.map(([x, y]) => [x + 0.5, y + 0.5]);
  const line = at.length === 2
    ? `<line x1="${at[0][0]}" y1="${at[0][1]}" x2="${at[1][0]}" y2="${at[1][1]}"/>` : "";
  const rings = at.map(([x, y], i) => `<circle cx="${x}" cy="${y}" r="${6 * unit}"/>
    <text x="${x + 9 * unit}" y="${y - 7 * unit}" font-size="${15 * unit}">${"AB"[i]}</text>`);
  marks.innerHTML = line + rings.join("");
  marks.style.setProperty("--unit", `${unit}px`);
}

function pixel(event) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * shown.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * shown.height);
  return [Math.max(0, Math.min(shown.width - 1, x)), Math.max(0, Math.min(shown.height - 1, y))];
}

function read(x, y) {
  tip.hidden = false;
  tip.textContent = told(x, y);
  const left = (x + 0.5) / shown.width, top = (y + 0.5) / shown.height;
  tip.style.left = `${100 * left}%`;
  tip.style.top = `${100 * top}%`;
  tip.style.transform = `translate(${left > 0.6 ? "calc(-100% - 14px)" : "14px"},
    ${top > 0.5 ? "calc(-100% - 10px)" : "14px"})`;
}

function choose(x, y) {
  points = points.length === 2 ? [[x, y]] : [...points, [x, y]];
  mark();
  trigger("measure", { points });
}

function clear() {
  points = [];
  mark();
  trigger("measure", { points });
}

function buttons() {
  const names = { depth: "Depth", picture: "Picture" };
  if (shown.error) names.uncertainty = "Uncertainty";
  if (!(layer in names)) layer = "depth";
  const made = Object.entries(names).map(([key, name]) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.setAttribute("aria-pressed", String(key === layer));
    button.onclick = () => { layer = key; buttons(); paint(); };
    return button;
  });
  const forget = document.createElement("button");
  forget.textContent = "Clear points";
  forget.className = "clear";
  forget.onclick = clear;
  part(".layers").replaceChildren(...made, forget);
}

function show() {
  const value = props.value;
  tip.hidden = true;
  if (!value || !value.depth) {
    shown = null;
    points = [];
    view.dataset.state = "empty";
    return;
  }
  if (!shown || shown.digest !== value.digest) points = [];
  shown = { ...value, lut: bytes(value.colours), metres: metres(value.depth) };
  shown.error = value.uncertainty ? metres(value.uncertainty) : null;
  [canvas.width, canvas.height] = [shown.width, shown.height];
  marks.setAttribute("viewBox", `0 0 ${shown.width} ${shown.height}`);
  view.dataset.state = "shown";
  buttons();
  paint();
  mark();
}

canvas.addEventListener("pointermove", (event) => { if (shown) read(...pixel(event)); });
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
canvas.addEventListener("click", (event) => {
  if (!shown) return;
  cursor = pixel(event);
  read(...cursor);
  choose(...cursor);
});
canvas.addEventListener("keydown", (event) => {
  if (!shown) return;
  const far = event.shiftKey ? 10 : 1;
  const move = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
  cursor ??= [shown.width >> 1, shown.height >> 1];
  if (event.key === "Enter") choose(...cursor);
  else if (!move[event.key]) return;
  const [dx, dy] = move[event.key] ?? [0, 0];
  cursor = [
    Math.max(0, Math.min(shown.width - 1, cursor[0] + dx)),
    Math.max(0, Math.min(shown.height - 1, cursor[1] + dy)),
  ];
  read(...cursor);
  event.preventDefault();
});
new ResizeObserver(mark).observe(canvas);
watch("value", show);
show();
