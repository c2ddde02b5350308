"""A process that has imported DVC once and runs each DVC command in a fork of itself.

Importing DVC takes longer than most of what it is asked for. Commands run in process groups of
their own under :func:`flows._process.supervise`, several at once if asked (DVC gives its lock
away while a stage's command runs). All of them end with the process that started this one.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows._dvc_files import write_whole
from flows._process import GRACE_S, end_group, follow, supervise

PRELOADED = (
    "dulwich",
    "dvc._debug",
    "dvc.analytics",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.dependency",
    "dvc.dirs",
    "dvc.output",
    "dvc.parsing",
    "dvc.repo",
    "dvc.repo.artifacts",
    "dvc.repo.datasets",
    "dvc.repo.index",
    "dvc.repo.metrics",
    "dvc.repo.open_repo",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.repo.stage",
    "dvc.repo.status",
    "dvc.rwlock",
    "dvc.stage.cache",
    "dvc_data.hashfile.db.local",
    "dvc.utils.strictyaml",
    "networkx.drawing.nx_pydot",
    "rich.console",
    "ruamel.yaml",
)
"""What DVC would import for each command anew."""


class DvcServer:
    """The caller's end: a context manager that ends everything it started."""

    def __init__(self, root: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows._dvc_server", str(theirs.fileno())],
                cwd=root,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours
        self._turn = threading.Lock()
        self._running: set[int] = set()

    def __enter__(self) -> DvcServer:
        return self

    def __exit__(self, *error: object) -> None:
        """End what still runs; the threads that wait for it clean up."""
        self._tell_all(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S + 2
        while self._running and time.monotonic() < deadline:
            time.sleep(0.02)
        self._tell_all(signal.SIGKILL)
        self._socket.close()
        end_group(self._process)

    def _tell_all(self, number: int) -> None:
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def run(
        self,
        arguments: Sequence[str],
        write: Callable[[str], None],
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        errors: int | None = None,
    ) -> int:
        """``dvc`` with ``arguments``, each line of its output to ``write``; its exit status.

        Args:
            errors: a descriptor that takes standard error; else it goes to ``write`` as well.

        Raises:
            TimeoutError: it was still running after ``timeout_s``; nothing of it is left.
            ConnectionError: the server has ended.
        """
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        try:
            request = json.dumps({"arguments": list(arguments), "env": dict(env or {})}).encode()
            with self._turn:
                ends = [output_end, output_end if errors is None else errors, status_end]
                socket.send_fds(self._socket, [request], ends)
                answer = self._socket.recv(32)
        finally:
            os.close(output_end)
            os.close(status_end)
        if not answer:
            raise ConnectionError("the process that runs DVC has ended")
        process = _Remote(int(answer), status)
        self._running.add(process.pid)
        try:
            return follow(process, output, write, timeout_s)
        finally:
            self._running.remove(process.pid)
            os.close(output)
            os.close(status)


class _Remote:
    """A command in the server's fork; its exit status comes through a pipe."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self._status = status
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Exit status; that of a killed process if it left none."""
        if self._code is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("dvc", timeout or 0.0)
            told = os.read(self._status, 16)
            self._code = int(told) if told else 128 + signal.SIGKILL
        return self._code


class _Forked:
    """A function in a child process, which exits with what the function returns."""

    def __init__(self, function: Callable[[], int]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _leave_with(function)

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, 128 and the signal's number if it was killed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("dvc", timeout or 0.0)
            time.sleep(0.02)


def _leave_with(function: Callable[[], int]) -> None:
    """End this forked process with the function's result, without what its parent registered."""
    code = 70
    try:
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _answer(request: Any, output: int, errors: int, status: int) -> int:
    """In the fork of a request: run it under supervision and send the exit status."""
    os.setsid()
    for received, descriptor in ((output, 1), (errors, 2)):
        os.dup2(received, descriptor)
        os.close(received)
    os.environ.update(request["env"])
    arguments = request["arguments"]
    sys.argv = ["dvc", *arguments]

    def dvc() -> int:
        """The command itself, which must not hold the pipe that tells of its end."""
        os.close(status)
        from dvc.cli import main

        return int(main(arguments))

    code = supervise(lambda: _Forked(dvc))
    os.write(status, str(code).encode())
    return code


def serve(connection: socket.socket) -> None:
    """Answer requests until the other end is closed."""
    for module in PRELOADED:
        importlib.import_module(module)
    write_whole()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks here
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _leave_with(functools.partial(_answer, json.loads(request), *descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(str(pid).encode())


def main() -> None:
    """Started by :class:`DvcServer` with the descriptor of its socket."""
    from metricgold.processes import die_with_parent

    die_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
