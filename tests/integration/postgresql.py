"""A PostgreSQL server of its own: in a temporary folder, on a free port, with a password."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.integration.service import free_port, wait_for

ADMINISTRATOR = "postgres"
"""The user that Debian's package makes; PostgreSQL refuses to run as root."""


def programs() -> Path | None:
    """Folder of the newest PostgreSQL's programs as Debian installs them; None: there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return found[-1].parent if found else None


class PostgreSQL:
    """One database; :meth:`end` removes it. Nobody but this user of this machine can log in."""

    user, database = "metricgold", "prefect"

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="metricgold-postgresql-"))
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        (self.folder / "password").write_text(self.password, encoding="utf-8")
        self._options: dict[str, Any] = {"cwd": self.folder}
        if os.getuid() == 0:
            self._options |= {"user": ADMINISTRATOR, "group": ADMINISTRATOR, "extra_groups": []}
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, ADMINISTRATOR, ADMINISTRATOR)

    @property
    def url(self) -> str:
        """As Prefect wants it (``PREFECT_SERVER_DATABASE_CONNECTION_URL``)."""
        login = f"{self.user}:{self.password}"
        return f"postgresql+asyncpg://{login}@127.0.0.1:{self.port}/{self.database}"

    def start(self) -> None:
        """Make the cluster and the database, and wait until it answers."""
        made = ("--auth=scram-sha-256", "--pwfile=password", "--encoding=UTF8", "--no-locale")
        self._run("initdb", "-D", "data", "-U", self.user, "--no-sync", *made)
        options = ("-D", "data", "-p", str(self.port), "-k", str(self.folder), "-h", "127.0.0.1")
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", *options], stdout=log, stderr=log, **self._options
            )
        wait_for(self._answers, 60, "PostgreSQL up")
        self._run("createdb", *self._login, self.database)

    def ask(self, query: str) -> str:
        """The answer of ``psql``, bare."""
        return self._run("psql", *self._login, "-At", "-c", query, self.database).strip()

    @property
    def _login(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port), "-U", self.user)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text(encoding="utf-8")
        command = [self._programs / "pg_isready", *self._login, "-q"]
        return subprocess.run(command, check=False, **self._options).returncode == 0

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._programs / program, *arguments],
            env={**os.environ, "PGPASSWORD": self.password},
            capture_output=True,
            text=True,
            check=False,
            **self._options,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def end(self) -> None:
        """Stop it (SIGTERM waits for its clients, SIGINT does not) and remove what it left."""
        if self._process is not None:
            self._process.send_signal(2)
            self._process.wait(60)
        shutil.rmtree(self.folder)
