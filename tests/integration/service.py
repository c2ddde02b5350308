"""What the integration tests share: small pipelines, commands, processes, a served deployment."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

ROOT = Path(__file__).parents[2]
MINI_PIPELINE = """\
stages:
  first:
    cmd: cp params.yaml first.txt
    params: [profile, steps]
    outs: [first.txt]
  second:
    matrix: {dataset: [a, b]}
    cmd: cat first.txt > second_${item.dataset}.txt
    deps: [first.txt]
    outs: ["second_${item.dataset}.txt"]
  third:
    cmd: 'echo "{\\"abs_rel\\": 0.25, \\"floor\\": {\\"delta1\\": 0.5}}" > summary.json'
    deps: [second_a.txt, second_b.txt]
    metrics: [summary.json: {cache: false}]
"""
SLOW_PIPELINE = """\
stages:
  slow:
    cmd: sh -c 'echo working; sleep 7531 & sleep 7531; echo done > slow.txt'
    outs: [slow.txt]
"""


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a surrounding run may have set."""
    unwanted = ("PREFECT_", "METRICGOLD_", "DVC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    path = f"{ROOT}{os.pathsep}{kept['PYTHONPATH']}" if "PYTHONPATH" in kept else str(ROOT)
    return {**kept, "PYTHONPATH": path, "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", **extra}


def command(name: str) -> str:
    """A console command of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        arguments, cwd=cwd, env=env or environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def wait_for(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll until ``condition`` holds; fails with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.2)


def living(*markers: str) -> list[int]:
    """Processes with every marker in their command line or working folder."""
    found = []
    for process in psutil.process_iter(["pid", "status", "cmdline", "cwd"]):
        info = process.info
        text = " ".join([*(info["cmdline"] or []), info["cwd"] or ""])
        if all(marker in text for marker in markers) and info["status"] != psutil.STATUS_ZOMBIE:
            found.append(int(info["pid"]))
    return found


def colours(element: Any) -> int:
    """How many different ones an element of a browser shows."""
    shown = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    return len(shown.getcolors(2**24) or [])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """``python -m flows.serve`` in a folder, with a server of its own on a free port."""

    def __init__(self, folder: Path, *options: str, **environ: str) -> None:
        self.folder = folder
        self.log = folder / "serve.log"
        self.api_url = f"http://127.0.0.1:{free_port()}/api"
        home = {"PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": self.api_url}
        self.env = environment(**home, **environ)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.serve", *options],
                cwd=folder,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def up(self) -> bool:
        assert self.process.poll() is None, self.text()
        return "serving train-metricgold" in self.text()

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
