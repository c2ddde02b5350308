"""How fast a session is: the first call apart from the steady state, stage by stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from export.runtime import DepthResult
from metricgold.progress import progress_bar

ALL = "all"


@dataclass(frozen=True)
class Timing:
    """Seconds of calls.

    Attributes:
        first: of the first call, which warms the back-end up.
        calls: of those after it, by stage, and :data:`ALL` for the whole call.
        pictures: in all of ``calls``.
    """

    first: float
    calls: dict[str, list[float]]
    pictures: int

    @property
    def images_a_second(self) -> float:
        """In the steady state."""
        return self.pictures / sum(self.calls[ALL])

    def percentile(self, stage: str, share: float) -> float:
        """Milliseconds within which that share (0 to 100) of the calls stayed."""
        return 1000 * float(np.percentile(self.calls[stage], share))


def measure(
    calls: Sequence[Callable[[], DepthResult | Sequence[DepthResult]]], rounds: int
) -> Timing:
    """Call the first once to warm up, then all of them ``rounds`` times, in turn.

    A call is of one picture, or of a batch of them.
    """
    began = time.perf_counter()
    calls[0]()
    first = time.perf_counter() - began
    seconds: dict[str, list[float]] = {}
    pictures = 0
    for _ in progress_bar(range(rounds), description="benchmark", unit="round"):
        for call in calls:
            began = time.perf_counter()
            found = call()
            whole = time.perf_counter() - began
            results = [found] if isinstance(found, DepthResult) else found
            for stage in results[0].seconds:
                seconds.setdefault(stage, []).append(sum(r.seconds[stage] for r in results))
            seconds.setdefault(ALL, []).append(whole)
            pictures += len(results)
    return Timing(first, seconds, pictures)


def described(timing: Timing) -> list[str]:
    """A table of milliseconds, images a second, memory."""
    lines = [f"{'stage':<12}{'p50 ms':>10}{'p95 ms':>10}"]
    lines += [
        f"{stage:<12}{timing.percentile(stage, 50):>10.2f}{timing.percentile(stage, 95):>10.2f}"
        for stage in timing.calls
    ]
    memory = peak_memory_mib()
    lines.append(
        f"first call {1000 * timing.first:.1f} ms; then {timing.images_a_second:.2f} images/s"
        + ("" if memory is None else f"; peak memory {memory:.0f} MiB")
    )
    return lines


def peak_memory_mib() -> float | None:
    """The most memory this process has held so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
