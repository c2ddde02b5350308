"""Preloaded by the workers of test_spread.py: notes which piece is begun and which is finished.

Each piece takes a while longer, so that a worker can be killed in the middle of one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metricgold import spread
from metricgold.places import Place

PAUSE_S = 0.5
done_once = getattr(spread.done_once, "original", spread.done_once)  # Dask loads this twice


def note(what: str, folder: Place, name: str) -> None:
    """One line: what, stage, piece, process."""
    stage = folder.uri.rpartition("/")[2].partition("-")[0]
    with Path(os.environ["SPREAD_LOG"]).open("a", encoding="utf-8") as file:
        file.write(f"{what} {stage} {name} {os.getpid()}\n")


def logged(folder: Place, name: str, make: Callable[[Path], Any]) -> Any:
    """``done_once`` with a line before it makes anything, and one when the record is there."""

    def begun(scratch: Path) -> Any:
        note("begun", folder, name)
        time.sleep(PAUSE_S)
        return make(scratch)

    record = done_once(folder, name, begun)
    note("recorded", folder, name)
    return record


logged.original = done_once  # type: ignore[attr-defined]
spread.done_once = logged
