"""Progress with an ETA: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


class _Bar(tqdm):
    """tqdm, but in a log the lines that are written beside it do not draw it anew each time."""

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """A line for people on ``file``, by default stdout."""
        if sys.stderr.isatty():
            super().write(s, file, end, nolock)
        else:
            print(s, file=file or sys.stdout, end=end, flush=True)


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    disable: bool = False,
) -> Any:
    """A tqdm bar that stays quiet in logs (at most a line every ten seconds)."""
    terminal = sys.stderr.isatty()
    return _Bar(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        disable=disable,
        unit_scale=unit == "B",
        mininterval=0.2 if terminal else 10.0,
        maxinterval=10.0,
        dynamic_ncols=terminal,
        ascii=not terminal,
    )
