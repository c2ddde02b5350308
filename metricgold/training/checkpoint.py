"""Checkpoints of a run in progress: written atomically, refused when they do not belong to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

FILE = "checkpoint.pt"


def save(folder: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Write ``state`` to a temporary file, sync it, then rename over the last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.{os.getpid()}"
    with temporary.open("wb") as stream:
        torch.save({"fingerprint": fingerprint, **state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, folder / FILE)


def load(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The last checkpoint of this very run, or None (saying why one was passed over)."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        print(f"{path}: checkpoint is damaged ({type(error).__name__}); starting over")
        return None
    if state.get("fingerprint") != fingerprint:
        print(f"{path}: checkpoint belongs to other params or data; starting over")
        return None
    return dict(state)


def discard(folder: Path) -> None:
    """Remove a finished run's checkpoint."""
    (folder / FILE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
