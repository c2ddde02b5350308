"""The most memory this process held during a piece of work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass
class Peak:
    """``mib`` is known when the block has ended; None where the system does not say."""

    mib: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a block. Only Linux can; resident memory, from what is held already upwards."""
    peak = Peak()
    known = sys.platform == "linux"
    if known:
        try:
            _RESET.write_text("5")  # sets the high-water mark to what is held now
        except OSError:
            known = False
    yield peak
    if known:
        lines = _STATUS.read_text().splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        peak.mib = round(int(kib) / 1024, 1)
