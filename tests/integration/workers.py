"""A project of a work pool: the commands that make it, and its workers as processes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.integration.service import command, run


def commands(path: Path) -> list[list[str]]:
    """What the head of a deployment file says to call, up to the worker."""
    lines = []
    for line in path.read_text(encoding="utf-8").replace("\\\n#", "").splitlines():
        if match := re.match(r"#\s+prefect (.*?)(?:\s{3,}\(.*)?$", line):
            lines.append(match[1].split())
    return lines


def ended(process: subprocess.Popen[bytes]) -> None:
    """Have a worker end, as SIGTERM must make it."""
    process.terminate()
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait()


class Pool:
    """A project with the deployment files, and the environment that leads to its server."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self.api_url = env["PREFECT_API_URL"]

    def prefect(self, *arguments: str) -> str:
        """What the command printed, which must succeed."""
        return run(command("prefect"), "--no-prompt", *arguments, cwd=self.folder, env=self.env)

    def text(self) -> str:
        """What all workers printed."""
        logs = sorted(self.folder.glob("worker*.log"))
        return "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)

    def worker(self, *arguments: str, name: str) -> subprocess.Popen[bytes]:
        """``prefect worker start`` with ``arguments``; to be :func:`ended`."""
        with (self.folder / f"worker-{name}.log").open("wb") as log:
            return subprocess.Popen(
                [command("prefect"), *arguments, "--name", name],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
            )
