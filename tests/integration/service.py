"""What the integration tests share: small pipelines, commands, processes, a served deployment."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
import psutil
from PIL import Image

ROOT = Path(__file__).parents[2]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
PREFECT_FILES = ("prefect.toml", "prefect.yaml", "prefect.automation.yaml")
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


def pipeline_files(folder: Path, profile: str) -> None:
    """What ``dvc repro`` needs of the project, without git, as if unpacked from an archive."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", *PREFECT_FILES):
        shutil.copy(ROOT / name, folder)
    parameters = folder / "params.yaml"
    text = parameters.read_text(encoding="utf-8")
    parameters.write_text(re.sub(r"(?m)^profile: .*$", f"profile: {profile}", text), "utf-8")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("flows", "metricgold", "export", "scripts", "docs/benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    (folder / ".dvc").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n", "utf-8")


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
    """``python -m flows.serve`` in a folder, with a server of its own on a free port.

    A context manager: up inside of it, ended behind it.
    """

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

    def __enter__(self) -> Self:
        try:
            wait_for(self.up, 240, "server and deployments up")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


def moment(run: dict[str, Any], name: str) -> datetime:
    """A time of a flow run (``start_time``, ``end_time``)."""
    return datetime.fromisoformat(run[name])


class AServer(Protocol):
    """Where a Prefect server answers, and what is told of it when something does not come."""

    @property
    def api_url(self) -> str: ...

    def text(self) -> str: ...


class Api:
    """The server's, as the page uses it."""

    def __init__(self, served: AServer) -> None:
        self._served = served

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """The answer; asked again while the database is busy (503), as Prefect's client does."""
        url = f"{self._served.api_url}/{path}"
        for _ in range(60):
            answer = httpx.request(method, url, json=body, timeout=60)
            if answer.status_code != 503:
                break
            time.sleep(1)
        return answer

    def got(self, method: str, path: str, body: Any = None) -> Any:
        return self.ask(method, path, body).raise_for_status().json()

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.got("GET", f"deployments/name/{name}/{name}")
        return found

    def start(self, name: str, **parameters: Any) -> str:
        path = f"deployments/{self.deployment(name)['id']}/create_flow_run"
        return str(self.got("POST", path, {"parameters": parameters})["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.got("GET", f"flow_runs/{run_id}")
        return found

    def finished(self, run_id: str) -> dict[str, Any]:
        """The flow run when it has ended."""
        wait_for(lambda: self.run(run_id)["state_type"] in ENDED, 240, self._served.text())
        return self.run(run_id)

    def completed(self, name: str, **parameters: Any) -> dict[str, Any]:
        found = self.finished(self.start(name, **parameters))
        assert found["state_type"] == "COMPLETED", self._served.text()
        return found

    def tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        body = {"flow_runs": {"id": {"any_": [run_id]}}}
        return {task["name"]: task for task in self.got("POST", "task_runs/filter", body)}

    def ended_tasks(self, run_id: str, names: set[str]) -> dict[str, dict[str, Any]]:
        """The task runs, which must be these; the server learns of them a little later."""

        def told() -> bool:
            """Whether it knows of all that they have ended, and of no other."""
            found = self.tasks(run_id)
            return set(found) == names and all(t["state_type"] in ENDED for t in found.values())

        wait_for(told, 60, f"task runs {names}")
        return self.tasks(run_id)

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return {a["key"]: a for a in self.got("POST", "artifacts/filter", body)}
