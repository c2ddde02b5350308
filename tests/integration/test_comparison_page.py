"""The page of ``metricgold evaluate`` in a real headless Chromium."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.service import ROOT, colours, run, wait_for

pytestmark = pytest.mark.integration

SHARDS = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/unit")
from made_frames import make_frame, write_shards
folder = Path(sys.argv[1])
folder.mkdir()
write_shards(folder, "holdout", [make_frame(s, i, (48, 64)) for s in (1, 2) for i in range(2)])
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Of two models on four frames."""
    run(sys.executable, "-c", SHARDS, str(tmp_path / "shards"), cwd=ROOT)
    models = ("-m", "near=constant:2", "-m", "far=constant:5", "--pictures", "2", "--clouds", "1")
    run(sys.executable, "-m", "metricgold", "evaluate", "shards", *models, cwd=tmp_path)
    return tmp_path / "evaluation" / "index.html"


def test_points_turn_and_nothing_goes_wrong(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())
    for name in ("near", "far"):
        assert name in browser.find_element("css selector", "table").text
    (canvas,) = browser.find_elements("css selector", "canvas.points")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    wait_for(lambda: colours(canvas) > 50, 20, "points in colour")
    before = canvas.screenshot_as_png
    drag = ActionChains(browser).move_to_element(canvas).click_and_hold()
    drag.move_by_offset(60, 20).release().perform()
    wait_for(lambda: canvas.screenshot_as_png != before, 10, "the points turned")
    turned = canvas.screenshot_as_png
    (other,) = [b for b in browser.find_elements("css selector", "button") if b.text == "far"]
    other.click()
    wait_for(lambda: canvas.screenshot_as_png != turned, 10, "another model's points")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= browser.execute_script("return window.innerWidth")
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    asked = [entry["message"] for entry in browser.get_log("performance")]
    assert not any('"url":"http' in message for message in asked)  # nothing from elsewhere
