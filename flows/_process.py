"""Processes that end with whoever started them, and one at a time for each stage."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from metricgold.errors import UserError
from metricgold.processes import die_with_parent

GRACE_S = 10.0
"""From asking a process to end to killing it."""

_SHELLS = {"sh", "dash", "ash", "bash", "zsh", "ksh", "mksh", "fish", "busybox"}
_LINE_END = re.compile(rb"[\r\n]+")


class Started(Protocol):
    """A process that runs: what is used of :class:`subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; ``subprocess.TimeoutExpired`` if it still runs then."""
        ...


def die_with_starter() -> None:
    """:func:`die_with_parent`, looking through shells.

    DVC runs a stage's command by ``$SHELL -c``, and dash stays between the two as a process
    that outlives a killed DVC. So each shell above, and the program that started the
    outermost of them, is watched by its pidfd as well.
    """
    die_with_parent()
    watched = os.getppid()
    while _is_between(watched):
        try:
            watched = psutil.Process(watched).ppid()
            descriptor = os.pidfd_open(watched)
        except (ProcessLookupError, psutil.NoSuchProcess):  # it ended in between
            os.kill(os.getpid(), signal.SIGTERM)
            return
        except (AttributeError, OSError):  # no Linux with pidfds: die_with_parent must do
            return
        threading.Thread(target=_end_when_readable, args=(descriptor,), daemon=True).start()


def _is_between(pid: int) -> bool:
    """Whether a process only starts others: a shell."""
    try:
        return psutil.Process(pid).name() in _SHELLS
    except psutil.NoSuchProcess:
        return False


def _end_when_readable(descriptor: int) -> None:
    select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def die_with(variable: str) -> None:
    """:func:`die_with_parent`, if the parent is the process named by an environment variable."""
    if os.environ.get(variable) == str(os.getppid()):
        die_with_parent()


def exit_on_sigterm() -> None:
    """Turn SIGTERM into ``SystemExit`` and end the worker processes of this one."""

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # what leaves is not to be interrupted again
        for child in multiprocessing.active_children():
            child.terminate()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


@contextlib.contextmanager
def only_one(name: str, folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold ``folder/name.lock`` while the block runs; the kernel frees it with the process.

    Args:
        wait: until whoever holds it lets go.

    Raises:
        UserError: another process holds it (its process id is named).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise UserError(
                f"stage '{name}' is already running here as process {owner}; "
                "wait for it or end it, then run again"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def supervised(command: Sequence[str]) -> list[str]:
    """``command`` under :func:`supervise`, to be started in a session of its own."""
    return [sys.executable, "-m", "flows._process", *command]


def end_group(process: Started, grace_s: float = GRACE_S + 2) -> None:
    """End the whole process group of ``process``: SIGTERM, and SIGKILL after ``grace_s``."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_streamed(
    command: Sequence[str],
    write: Callable[[str], None],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> int:
    """Run ``command`` in its own process group; see :func:`follow`."""
    process = subprocess.Popen(
        supervised(command),
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        return follow(process, process.stdout.fileno(), write, timeout_s)


def follow(
    process: Started, output: int, write: Callable[[str], None], timeout_s: float | None = None
) -> int:
    """Pass each line of a process's output (a descriptor) to ``write``; returns its exit status.

    However the call ends (also by an exception raised from a signal handler), nothing of the
    process's group is left.

    Raises:
        TimeoutError: it was still running after ``timeout_s``.
    """
    try:
        for line in _lines(output, timeout_s):
            write(line)
        return process.wait()
    finally:
        end_group(process)


def _lines(descriptor: int, timeout_s: float | None) -> Iterator[str]:
    """Non-empty lines; a carriage return (a progress bar's redraw) ends a line as well."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    rest = b""
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        if not select.select([descriptor], [], [], left)[0]:
            continue
        if not (chunk := os.read(descriptor, 65536)):
            break
        *complete, rest = _LINE_END.split(rest + chunk)
        yield from (text for raw in complete if (text := _text(raw)))
    if text := _text(rest):
        yield text


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace").rstrip()


def supervise(start: Callable[[], Started]) -> int:
    """Wait for what ``start`` starts; end this whole group when told to, or when the parent ends.

    The caller has made this process the leader of a group of its own, so that nothing that is
    started outlives it, whether or not it cares for signals itself.
    """
    signal.signal(signal.SIGTERM, _raise_ended)
    process: Started | None = None
    try:
        die_with_parent()
        process = start()
        return process.wait()
    except _Ended:
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process is not None:
                process.wait(GRACE_S)
        os.killpg(0, signal.SIGKILL)
        return 128 + signal.SIGTERM


class _Ended(BaseException):
    """SIGTERM arrived."""


def _raise_ended(number: int, frame: object) -> None:
    # One exception only: several SIGTERMs may come at once, as Linux sends PDEATHSIG for each
    # thread of a dying parent, and a second one would break off the killing.
    signal.signal(number, signal.SIG_IGN)
    raise _Ended


if __name__ == "__main__":
    sys.exit(supervise(lambda: subprocess.Popen(sys.argv[1:])))
