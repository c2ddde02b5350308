"""Checkpoints of a run in progress: written atomically, refused when they do not belong to it.

A checkpoint is one file, ``step-NUMBER-RUN-CRC32.pt``: its name says which run it is of and what
its bytes must add up to. The last two of a run are kept, so that a damaged one costs no more than
the steps since the one before; those of other runs go with the first one of a new run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from isal import isal_zlib

KEPT = 2
_BLOCK = 1 << 22


def save(folder: Path, fingerprint: str, step: int, state: dict[str, Any]) -> None:
    """Write ``state`` after ``step`` steps to a temporary file, sync, rename; drop older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step.*"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    temporary = folder / f".step.{os.getpid()}"
    with temporary.open("wb+") as stream:
        torch.save({"fingerprint": fingerprint, "step": step, **state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        crc = _crc32(stream)
    os.replace(temporary, folder / f"step-{step:08d}-{fingerprint[:8]}-{crc:08x}.pt")
    own = [path for path in checkpoints(folder) if _run_of(path) == fingerprint[:8]]
    for old in set(checkpoints(folder)) - set(own[:KEPT]):
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one first."""
    return sorted(folder.glob("step-*-*-*.pt"), reverse=True)


def load(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The last whole checkpoint of this very run, or None; says why one was passed over."""
    for path in checkpoints(folder):
        if _run_of(path) != fingerprint[:8]:
            print(f"{path}: checkpoint belongs to other params or data; not used")
            continue
        with path.open("rb") as stream:
            whole = f"{_crc32(stream):08x}" == path.stem.rpartition("-")[2]
        if not whole:
            print(f"{path}: checkpoint is damaged (its CRC32 differs from its name's); not used")
            continue
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    return None


def discard(folder: Path) -> None:
    """Remove a finished run's checkpoints."""
    for path in checkpoints(folder):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _run_of(path: Path) -> str:
    return path.stem.split("-")[2]


def _crc32(stream: BinaryIO) -> int:
    crc = 0
    while block := stream.read(_BLOCK):
        crc = isal_zlib.crc32(block, crc)
    return crc
