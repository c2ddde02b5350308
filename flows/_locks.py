"""DVC's record of who reads and writes what (``.dvc/tmp/rwlock``), without those that are gone.

DVC itself forgets a process that has ended, but not one whose number another program has by now
(as after a restart of the machine), and it cannot go on where a full disk cut the record short.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import zc.lockfile

from metricgold import files

GUARD_S = 5.0


def free_left_locks(root: Path) -> list[str]:
    """Drop what no running DVC holds from the record; what was dropped, a sentence each."""
    record = root / ".dvc" / "tmp" / "rwlock"
    if not record.is_file() or (guard := _guard(record)) is None:
        return []
    try:
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            record.unlink()
            return [f"{record}: cut short, removed"]
        dropped = [f"{path}: held by process {pid}, which is no DVC" for path, pid in _left(known)]
        if dropped:
            files.write_json(record, known)
        return dropped
    finally:
        guard.close()


def _guard(record: Path) -> zc.lockfile.LockFile | None:
    """DVC's lock of the record; None where another process keeps it."""
    deadline = time.monotonic() + GUARD_S
    while time.monotonic() < deadline:
        try:
            return zc.lockfile.LockFile(str(record.with_name("rwlock.lock")))
        except zc.lockfile.LockError:
            time.sleep(0.05)
    return None


def _left(known: dict[str, dict[str, Any]]) -> list[tuple[str, int]]:
    """Take entries out of ``known`` that no running DVC holds; their paths and process ids."""
    dropped = []
    for path, holder in list(known.get("write", {}).items()):
        if not _is_dvc(holder["pid"]):
            del known["write"][path]
            dropped.append((path, holder["pid"]))
    for path, holders in list(known.get("read", {}).items()):
        known["read"][path] = [each for each in holders if _is_dvc(each["pid"])]
        dropped += [(path, each["pid"]) for each in holders if not _is_dvc(each["pid"])]
        if not known["read"][path]:
            del known["read"][path]
    return dropped


def _is_dvc(pid: int) -> bool:
    """Whether a process runs that is DVC, or our server of it."""
    try:
        words = psutil.Process(pid).cmdline()
        return any(Path(word).name in ("dvc", "flows._dvc_server") for word in words)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return psutil.pid_exists(pid)
