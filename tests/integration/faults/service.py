"""A Prefect server, and a worker or ``flows.serve`` that runs flows; to be killed and restarted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from flows._process import supervised
from flows._stage import server_answers
from tests.integration.faults.project import Project, processes
from tests.integration.service import ENDED, ROOT, Api, command, free_port, run, wait_for

NAME = "train-metricgold"
RUN_S = 300.0
AUTOMATION, LIFE_S = "prefect.automation.yaml", 60
"""As shipped it waits ten minutes; here signs of life are sent and missed more often."""
ALONE = "alone"
"""``flows.serve`` that finds no server; ``worker`` and ``serve`` find one."""


@dataclass
class Service:
    """``kind`` says what runs the flows; both log into ``home``.

    The server's working folder is ``home``, so that in the project's there are the runs' processes
    and the worker alone.
    """

    project: Project
    home: Path
    kind: str = "worker"
    port: int = field(default_factory=free_port)
    server: subprocess.Popen[bytes] | None = None
    runner: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def env(self) -> dict[str, str]:
        where = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # as flows.serve does
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        return self.project.env | where

    @property
    def api(self) -> Api:
        return Api(self)

    def text(self) -> str:
        """The end of what both have printed."""
        logs = [path.read_text(errors="replace")[-3000:] for path in self.home.glob("*.log")]
        return "\n".join(logs)

    def start_server(self) -> None:
        """Return when it answers; ``flows.serve`` alone has to start it by itself."""
        if self.kind == ALONE:
            wait_for(lambda: server_answers(self.api_url, 1.0), 150, f"server up\n{self.text()}")
            return
        words = ("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        env = {k: v for k, v in self.env.items() if k != "PREFECT_API_URL"}
        env["PYTHONPATH"] = str(ROOT)
        self.server = _begun(
            supervised([sys.executable, "-m", "prefect", *words]),
            self.home,
            env,
            "server",
            self.home,
        )
        wait_for(lambda: server_answers(self.api_url, 1.0), 150, f"server up\n{self.text()}")

    def prepare(self) -> None:
        """Deployments, once for a database; those of ``flows.serve`` come with it."""
        done = self.home / "prepared"
        if self.kind == "worker" and not done.exists():
            text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
            for line in re.findall(r"(?m)^#\s+prefect ((?:work-|deploy|automation).*)$", text):
                self.prefect(*line.replace(AUTOMATION, str(self.impatient())).split())
            done.touch()

    def impatient(self) -> Path:
        """The automation that ends runs without a sign of life, within a minute already."""
        text = (ROOT / AUTOMATION).read_text(encoding="utf-8")
        path = self.home / AUTOMATION
        path.write_text(text.replace("within: 600", f"within: {LIFE_S}"), encoding="utf-8")
        return path

    def prefect(self, *arguments: str) -> str:
        folder = self.project.folder
        return run(command("prefect"), "--no-prompt", *arguments, cwd=folder, env=self.env)

    def start_runner(self) -> None:
        """Return when it has come far enough to take runs (a worker takes those that wait)."""
        words = [command("prefect"), "worker", "start", "--pool", "metricgold"]
        if self.kind != "worker":
            words = [sys.executable, "-m", "flows.serve", "--cron", ""]
        self.runner = _begun(words, self.project.folder, self.env, "runner", self.home)
        if self.kind != "worker":
            log = self.home / "runner.log"
            wait_for(lambda: f"serving {NAME}" in log.read_text(), 150, "flows.serve up")

    def kill(self, what: str) -> None:
        """SIGKILL to the ``server`` with all its processes, or to the ``runner`` alone."""
        if what == "server":
            for pid, words in processes(Path("/")).items():
                if self.is_server(words):
                    os.kill(pid, signal.SIGKILL)
        process = self.server if what == "server" else self.runner
        if process is not None:
            process.kill()
            process.wait()

    def is_server(self, words: list[str]) -> bool:
        """Whether a command line is that of this service's server, or of what watches it."""
        return "--port" in words and str(self.port) in words

    def __enter__(self) -> Service:
        self.home.mkdir(parents=True, exist_ok=True)
        if self.kind != ALONE:
            self.start_server()
            self.prepare()
        self.start_runner()
        return self

    def __exit__(self, *error: object) -> None:
        for process in (self.runner, self.server):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def ask(self, **parameters: Any) -> str:
        """Id of a new run."""
        return self.api.start(NAME, **parameters)

    def ended(self, run_id: str, timeout_s: float = RUN_S) -> str:
        """Name of the state in which a run ended; '' if it has not in that time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            state = self.state(run_id)
            if state["type"] in ENDED:
                return str(state["name"])
            time.sleep(0.3)
        return ""

    def state(self, run_id: str) -> dict[str, str]:
        """Type, name and message of a run's state; all '' where the server is away or forgot it."""
        try:
            found = self.api.run(run_id)["state"] or {}
        except httpx.HTTPError:
            found = {}
        return {key: str(found.get(key) or "") for key in ("type", "name", "message")}


def _begun(
    words: list[str], folder: Path, env: dict[str, str], name: str, home: Path
) -> subprocess.Popen[bytes]:
    with (home / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
