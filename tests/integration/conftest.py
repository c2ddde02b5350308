"""A small DVC project of its own, a real Prefect server to run it on, a real browser."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.serve import running_server
from tests.integration.service import (
    MINI_PIPELINE,
    ROOT,
    Served,
    command,
    environment,
    free_port,
    run,
)
from tests.integration.workers import Pool


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a DVC project without git into the test's folder."""

    def make(pipeline: str) -> Path:
        (tmp_path / "dvc.yaml").write_text(pipeline, encoding="utf-8")
        (tmp_path / "params.yaml").write_text("profile: demo\nsteps: 3\n", encoding="utf-8")
        shutil.copy(ROOT / "prefect.toml", tmp_path)
        if not (tmp_path / ".dvc").exists():
            run(command("dvc"), "init", "-q", "--no-scm", cwd=tmp_path)
        return tmp_path

    return make


@pytest.fixture
def served(make_project: Callable[[str], Path]) -> Iterator[Served]:
    """The deployment, served from the small project."""
    with Served(make_project(MINI_PIPELINE)) as service:
        yield service


@pytest.fixture
def pool(make_project: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A project with the deployment files and a server; no pool is made and no worker runs yet."""
    folder = make_project(MINI_PIPELINE)
    (folder / "flows").symlink_to(ROOT / "flows")
    for name in ("prefect.yaml", "prefect.automation.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "docker", folder / "docker")
    api_url = f"http://127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    # Prefect's workers make SIGINT of SIGTERM, and what a script has put into the background
    # ignores that, its children too.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with running_server(api_url, "127.0.0.1"):
            home = str(folder / "home")
            yield Pool(folder, environment(PREFECT_HOME=home, PREFECT_API_URL=api_url))
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def chromium() -> tuple[str, str]:
    """The browser and its driver."""
    pytest.importorskip("selenium")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not both installed")
    return browser, driver


@pytest.fixture(scope="session")
def browser(chromium: tuple[str, str]) -> Iterator[Any]:
    """Headless; it keeps a log of what it asks for and of what its pages complain of."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium[0]
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--enable-unsafe-swiftshader",
        "--window-size=1280,1400",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromium[1]))
    yield driver
    driver.quit()
