"""``metricgold demo`` as a visitor meets it: a real server, a real headless Chromium."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration.service import ROOT, colours, environment, free_port, run, wait_for

pytestmark = pytest.mark.integration

WIDTH, HEIGHT = 96, 72
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
A, B = (10, 20), (80, 50)
MODEL = """
import sys
sys.path.insert(0, "tests/unit")
import numpy as np
from PIL import Image
from toy import toy_model
model = toy_model(fov_matters=True)
model.save_pretrained(sys.argv[1])
rgb = np.asarray(Image.open(sys.argv[2]))
found = {"unknown": model(rgb), "wide": model(rgb, focal_length_px=40.0)}
found["four"] = model(rgb, focal_length_px=40.0, num_inference_steps=4, ensemble_size=3,
                      output_uncertainty=True, generator=__import__("torch").manual_seed(0))
np.savez(sys.argv[3], **{name: out.prediction[0, ..., 0] for name, out in found.items()},
         four_error=found["four"].uncertainty[0, ..., 0])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, chromium: tuple[str, str]) -> Path:
    """A checkpoint, a picture, and what the pipeline says of it."""
    pytest.importorskip("gradio")
    made = tmp_path_factory.mktemp("demo")
    Image.fromarray(RGB).save(made / "noise.png")
    (made / "text.png").write_text("no picture")
    names = [str(made / name) for name in ("checkpoint", "noise.png", "expected.npz")]
    run(sys.executable, "-c", MODEL, *names, cwd=ROOT)
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    with np.load(folder / "expected.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a page that is being served."""
    port = free_port()
    command = [sys.executable, "-m", "metricgold", "demo", "--port", str(port)]
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--checkpoint", str(folder / "checkpoint"), "--max-megapixels", "0.2"],
            cwd=folder,
            env=environment(TMPDIR=str(folder)),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: process.poll() is not None or b"open http" in log.read_bytes(), 90, "page")
        assert process.poll() is None, log.read_text()
        assert len(list(folder.glob("metricgold-demo-*"))) == 1
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0, log.read_text()
    assert list(folder.glob("metricgold-demo-*")) == []
    assert "a prediction failed" not in log.read_text()


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get(address)
        wait_for(lambda: self.all("#go"), 30, "the page is drawn")
        wait_for(lambda: self.all("#picture input[type=file]"), 10, "a picture can be dropped")

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """What an element says, "" where there is none; also if it is replaced meanwhile."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return str(self.browser.execute_script(script, selector))

    def upload(self, path: Path) -> None:
        self.one("#picture input[type=file]").send_keys(str(path))
        wait_for(lambda: self.text("#said p"), 20, "something is said of the upload")

    def estimate(self, told: str, selector: str = "#told") -> None:
        self.one("#go").click()
        wait_for(lambda: told in self.text(selector), 30, f"'{told}'")

    def press(self, label: str) -> None:
        """A radio button."""
        (found,) = [e for e in self.all("label") if e.text == label]
        found.click()

    def type(self, selector: str, number: float) -> None:
        from selenium.webdriver.common.keys import Keys

        wait_for(lambda: self.all(selector), 10, selector)
        self.one(selector).send_keys(Keys.CONTROL, "a")
        self.one(selector).send_keys(f"{number:g}", Keys.TAB)

    def at(self, pixel: tuple[int, int]) -> Any:
        """The pointer over a pixel of the depth."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.one("#depth canvas")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        size = canvas.size
        x = (pixel[0] + 0.5) / WIDTH * size["width"] - size["width"] / 2
        y = (pixel[1] + 0.5) / HEIGHT * size["height"] - size["height"] / 2
        return ActionChains(self.browser).move_to_element_with_offset(canvas, round(x), round(y))

    def hover(self, pixel: tuple[int, int]) -> str:
        self.at(pixel).perform()
        return self.text("#depth .tip")

    def click(self, pixel: tuple[int, int]) -> None:
        self.at(pixel).click().perform()

    def distance(self, told: Callable[[float], bool] = lambda _: True) -> float:
        """Metres between the two points, once they fulfil a condition."""
        found: list[float] = []

        def there() -> bool:
            match = re.search(r"A to B: ([\d.]+) m", self.text("#measured"))
            found[:] = [float(match[1])] if match else []
            return bool(match) and told(found[0])

        wait_for(there, 20, "a distance")
        return found[0]


def by_hand(depth: Any, focal_px: float) -> float:
    """Metres between A and B."""
    points = [
        np.array([(x - (WIDTH - 1) / 2) / focal_px, (y - (HEIGHT - 1) / 2) / focal_px, 1.0])
        * float(depth[y, x])
        for x, y in (A, B)
    ]
    return float(np.linalg.norm(points[0] - points[1]))


def close_to(value: float) -> Any:
    return pytest.approx(value, abs=0.011)  # what is shown has two decimals


def metres(text: str) -> list[float]:
    """The numbers of "x, y: 3.42 m ± 0.12 m" behind the colon."""
    return [float(n) for n in re.findall(r"[\d.]+", text.partition(":")[2])]


def test_depth_distances_and_the_focal_length(
    browser: Any, address: str, folder: Path, expected: dict[str, Any]
) -> None:
    page = Page(browser, address)
    page.upload(folder / "noise.png")
    assert "says nothing of its camera" in page.text("#said")
    page.estimate("Focal length unknown")
    assert "55°" in page.text("#told")
    for x, y in (A, B):
        told = page.hover((x, y))
        assert told.startswith(f"{x}, {y}: ")
        assert metres(told) == [close_to(expected["unknown"][y, x])]
    page.click(A)
    wait_for(lambda: "A (10, 20)" in page.text("#measured"), 10, "the first point")
    page.click(B)
    assumed = HEIGHT / 2 / math.tan(math.radians(55 / 2))
    first = page.distance()
    assert first == close_to(by_hand(expected["unknown"], assumed))
    assert "assumed field of view" in page.text("#measured")

    page.press("Focal length in pixels")
    page.type("#value input", 40)
    page.estimate("a focal length of 40 px")
    second = page.distance(lambda metres: metres != first)  # of the same two points
    assert second == close_to(by_hand(expected["wide"], 40.0))
    assert "assumed" not in page.text("#measured")
    assert metres(page.hover(A)) == [close_to(expected["wide"][A[1], A[0]])]

    page.click((30, 30))  # a third click begins anew
    wait_for(lambda: "A (30, 30)" in page.text("#measured"), 10, "a new first point")
    assert len(page.all("#depth circle")) == 1
    page.one("#depth .clear").click()
    wait_for(lambda: "click two points" in page.text("#measured"), 10, "no points")
    assert page.all("#depth circle") == []


def test_steps_ensemble_points_and_the_zip(
    browser: Any, address: str, folder: Path, expected: dict[str, Any]
) -> None:
    page = Page(browser, address)
    page.upload(folder / "noise.png")
    page.press("Focal length in pixels")
    page.type("#value input", 40)
    page.type("#ensemble input[type=number]", 3)
    page.estimate("has two views of a picture", "#problem")
    page.press("4")
    page.estimate("a focal length of 40 px")
    assert page.text("#problem").strip() == ""
    x, y = A
    found = metres(page.hover(A))
    assert found == [close_to(expected["four"][y, x]), close_to(expected["four_error"][y, x])]

    frame = page.one("iframe.cloud")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
    wait_for(lambda: colours(frame) > 50, 20, "points in colour")
    before = frame.screenshot_as_png
    from selenium.webdriver.common.action_chains import ActionChains

    drag = ActionChains(browser).move_to_element(frame).click_and_hold()
    drag.move_by_offset(80, 20).release().perform()
    wait_for(lambda: frame.screenshot_as_png != before, 10, "the points turned")

    page.one("#pack button, button#pack").click()
    wait_for(lambda: page.all("#file a[href]"), 60, "a zip to download")
    with urllib.request.urlopen(page.one("#file a[href]").get_attribute("href")) as answer:
        packed = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert {"noise_depth.npy", "noise_uncertainty.npy", "noise.npz"} <= set(packed.namelist())
    stored = np.load(io.BytesIO(packed.read("noise_depth.npy")))
    np.testing.assert_allclose(stored, expected["four"], rtol=1e-4)


def test_bad_uploads_get_a_sentence(browser: Any, address: str, folder: Path) -> None:
    page = Page(browser, address)
    page.estimate("Drop a picture first", "#problem")
    page.upload(folder / "text.png")
    assert "is not a picture that can be read here" in page.text("#said")
    page.estimate("is not a picture that can be read here", "#problem")
    page = Page(browser, address)
    Image.new("RGB", (600, 500)).save(folder / "large.png")
    page.upload(folder / "large.png")
    assert "600x500 px (0.3 megapixels); at most 0.2 megapixels" in page.text("#said")


def test_an_example_and_a_narrow_window(browser: Any, address: str) -> None:
    page = Page(browser, address)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        wait_for(lambda: len(page.all(".gallery button, button.gallery-item")) == 3, 10, "examples")
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.one(".gallery button, button.gallery-item").click()
    wait_for(lambda: "49.7° (EXIF)" in page.text("#said"), 20, "the example's camera")


def test_nothing_is_loaded_from_elsewhere(browser: Any, address: str) -> None:
    browser.get_log("performance")
    Page(browser, address)
    time.sleep(1)
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def ask(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_no_other_file_can_be_read(address: str, folder: Path) -> None:
    (own,) = folder.glob("metricgold-demo-*")
    assert ask(f"{address}/gradio_api/file={own}/examples/room.jpg")[0] == 200
    secret = folder / "checkpoint" / "model_index.json"
    for path in (
        "/etc/passwd",
        secret,
        folder / "noise.png",
        ROOT / "pyproject.toml",
        f"{own}/../checkpoint/model_index.json",
        f"{own}/%2e%2e/checkpoint/model_index.json",
        f"{own}/examples/..%2f..%2fcheckpoint/model_index.json",
        "checkpoint/model_index.json",
        own,
        "http://127.0.0.1:1/",
    ):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            status, body = ask(f"{address}/{route}{path}")
            assert status in (403, 404), (route, path, status)
            assert b"root:" not in body
            assert b"MetricGoldPipeline" not in body


def test_no_other_file_can_be_predicted(address: str, folder: Path) -> None:
    config = json.loads(ask(f"{address}/config")[1])
    (picture,) = [c["id"] for c in config["components"] if c["props"].get("elem_id") == "picture"]
    (check,) = [d["id"] for d in config["dependencies"] if d["inputs"] == [picture]]
    for path in (folder / "noise.png", folder / "checkpoint" / "model_index.json", "/etc/passwd"):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        body = {"data": [file], "fn_index": check, "session_hash": "visitor"}
        assert ask(f"{address}/gradio_api/queue/join", json.dumps(body).encode())[0] == 200
        answer = ask(f"{address}/gradio_api/queue/data?session_hash=visitor")[1].decode()
        done = [json.loads(line[6:]) for line in answer.splitlines() if "process_completed" in line]
        assert [d["success"] for d in done] == [False], answer
        assert "says nothing of its camera" not in answer
