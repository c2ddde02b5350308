// Turns every <canvas class="points"> into a point cloud that can be turned, moved and zoomed.
// Its next sibling, a <script type="application/json">, holds
// {"clouds": [{"name", "scale", "points", "colours"}], "centre": [x, y, z], "size": metres}:
// points are base64 of int16 x, y, z (times scale in metres, about the centre, OpenCV frame),
// colours base64 of uint8 r, g, b.
(() => {
  "use strict";
  const VERTEX = `attribute vec3 at; attribute vec3 colour; uniform mat4 view; uniform float dot;
    varying vec3 shown;
    void main() { gl_Position = view * vec4(at, 1.0);
      gl_PointSize = clamp(dot / gl_Position.w, 1.0, 12.0); shown = colour; }`;
  const FRAGMENT = `precision mediump float; varying vec3 shown;
    void main() { gl_FragColor = vec4(shown, 1.0); }`;

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function program(gl) {
    const made = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(made, shader);
    }
    gl.linkProgram(made);
    return made;
  }

  // Column-major: perspective of 50 degrees times the view from `distance` metres behind.
  function matrix(eye, aspect) {
    const f = 1 / Math.tan((25 * Math.PI) / 180);
    const near = eye.size / 200, far = eye.size * 40;
    const [cy, sy] = [Math.cos(eye.yaw), Math.sin(eye.yaw)];
    const [cp, sp] = [Math.cos(eye.pitch), Math.sin(eye.pitch)];
    // OpenCV (y down, z forward) to OpenGL (y up, z backward), then yaw, then pitch.
    const rotation = [[cy, 0, -sy], [-sp * sy, -cp, -sp * cy], [-cp * sy, sp, -cp * cy]];
    const [tx, ty, tz] = [eye.x, eye.y, -eye.distance];
    const [a, b] = [(far + near) / (near - far), (2 * far * near) / (near - far)];
    const out = new Float32Array(16);
    for (let c = 0; c < 3; c++) {
      out[4 * c] = (f / aspect) * rotation[0][c];
      out[4 * c + 1] = f * rotation[1][c];
      out[4 * c + 2] = a * rotation[2][c];
      out[4 * c + 3] = -rotation[2][c];
    }
    out.set([(f / aspect) * tx, f * ty, a * tz + b, -tz], 12);
    return out;
  }

  function start(canvas) {
    const given = JSON.parse(canvas.nextElementSibling.textContent);
    const gl = canvas.getContext("webgl", { antialias: true });
    const bar = document.createElement("div");
    bar.className = "buttons";
    canvas.before(bar);
    if (!gl) {
      bar.textContent = "This browser has no WebGL, so the points cannot be shown.";
      canvas.hidden = true;
      return;
    }
    const drawn = program(gl);
    gl.useProgram(drawn);
    const [at, colour] = ["at", "colour"].map((name) => gl.getAttribLocation(drawn, name));
    const [view, dot] = ["view", "dot"].map((name) => gl.getUniformLocation(drawn, name));
    gl.enableVertexAttribArray(at);
    gl.enableVertexAttribArray(colour);
    gl.enable(gl.DEPTH_TEST);

    const clouds = given.clouds.map((cloud) => {
      const steps = new Int16Array(bytes(cloud.points).buffer);
      const metres = Float32Array.from(steps, (step) => step * cloud.scale);
      const [points, colours] = [gl.createBuffer(), gl.createBuffer()];
      gl.bindBuffer(gl.ARRAY_BUFFER, points);
      gl.bufferData(gl.ARRAY_BUFFER, metres, gl.STATIC_DRAW);
      gl.bindBuffer(gl.ARRAY_BUFFER, colours);
      gl.bufferData(gl.ARRAY_BUFFER, bytes(cloud.colours), gl.STATIC_DRAW);
      return { points, colours, count: steps.length / 3 };
    });
    const size = given.size;
    const home = { yaw: 0.35, pitch: 0.25, x: 0, y: 0, distance: 1.1 * size, size };
    let eye = { ...home };
    let chosen = 0;

    function draw() {
      const ratio = window.devicePixelRatio || 1;
      canvas.width = canvas.clientWidth * ratio;
      canvas.height = canvas.clientHeight * ratio;
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(0.09, 0.09, 0.1, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.uniformMatrix4fv(view, false, matrix(eye, canvas.width / canvas.height));
      gl.uniform1f(dot, (0.012 * size * canvas.height) / 1.5);
      const { points, colours, count } = clouds[chosen];
      gl.bindBuffer(gl.ARRAY_BUFFER, points);
      gl.vertexAttribPointer(at, 3, gl.FLOAT, false, 0, 0);
      gl.bindBuffer(gl.ARRAY_BUFFER, colours);
      gl.vertexAttribPointer(colour, 3, gl.UNSIGNED_BYTE, true, 0, 0);
      gl.drawArrays(gl.POINTS, 0, count);
    }

    function choose(index) {
      chosen = index;
      [...bar.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === index)));
      draw();
    }
    given.clouds.forEach((cloud, index) => {
      const button = document.createElement("button");
      button.textContent = cloud.name;
      button.addEventListener("click", () => choose(index));
      bar.append(button);
    });

    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const [dx, dy] = [event.movementX, event.movementY];
      if (event.shiftKey || event.buttons === 2) {
        eye.x += (dx * eye.distance) / canvas.clientHeight;
        eye.y -= (dy * eye.distance) / canvas.clientHeight;
      } else {
        eye.yaw += dx * 0.008;
        eye.pitch = Math.max(-1.5, Math.min(1.5, eye.pitch + dy * 0.008));
      }
      draw();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      eye.distance *= Math.exp(event.deltaY * 0.001);
      draw();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => { eye = { ...home }; draw(); });
    new ResizeObserver(draw).observe(canvas);
    choose(0);
  }

  document.querySelectorAll("canvas.points").forEach(start);
})();
