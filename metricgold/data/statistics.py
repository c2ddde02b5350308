"""What is counted of every frame while shards are written, so that nobody reads them all again.

Depth is rounded to float16, as training shards store it; the logarithm is natural, of metres. A
float16 from 0 up has 31,744 values, so a frame is one count of each, and everything follows from
that. Histograms keep the bins between the first and the last that hold anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.data.shards import EncodedFrame
from metricgold.geometry import fov_y_deg

Counts = NDArray[np.int64]
Edges = NDArray[np.float64]

_FINE_BINS, _MERGED = 1400, 10
LOG_DEPTH_EDGES: Edges = np.linspace(np.log(1e-3), np.log(1e3), _FINE_BINS + 1)  # 1 % steps
DEPTH_EDGES_M: Edges = np.exp(LOG_DEPTH_EDGES[::_MERGED])
"""Bins of the reported depth histogram, 10 % wide."""
FOV_EDGES_DEG: Edges = np.linspace(2.5, 177.5, 36)
"""Bins of 5 degrees around multiples of 5."""
_PERCENTILES = (0, 1, 10, 25, 50, 75, 90, 99, 100)
SHARE_EDGES: Edges = np.linspace(0.0, 1.0, 21)


_CODES = 0x7C00
"""Bits of float16 infinity; the finite values from 0 up lie below."""
_DEPTH_OF_CODE = np.arange(1, _CODES, dtype=np.uint16).view(np.float16).astype(np.float64)
_LOG_OF_CODE: Edges = np.log(_DEPTH_OF_CODE)
_BIN_OF_CODE = np.clip(
    np.searchsorted(LOG_DEPTH_EDGES, _LOG_OF_CODE, "right") - 1, 0, _FINE_BINS - 1
)


@dataclass(frozen=True)
class FrameStatistics:
    """One frame's part: shares 0..1, sums over its valid pixels, counts in LOG_DEPTH_EDGES."""

    size: tuple[int, int]
    fov_y_deg: float
    fov_x_deg: float
    valid_ratio: float
    sky_share: float
    depth_range_m: tuple[float, float]
    log_depth_sum: float
    log_depth_squares: float
    depth_counts: Counts


def measure(frame: EncodedFrame) -> FrameStatistics:
    """Statistics of one frame as its shard stores it; it has a valid pixel at least."""
    height, width = frame.depth.shape
    codes = frame.depth.astype(np.float16, copy=False).view(np.uint16)
    counts = np.bincount(codes.ravel(), minlength=_CODES)[1:_CODES]  # from the least float16 up
    there = np.flatnonzero(counts)
    transposed = frame.intrinsics[[1, 0, 2]][:, [1, 0, 2]]
    return FrameStatistics(
        size=(height, width),
        fov_y_deg=fov_y_deg(frame.intrinsics, height),
        fov_x_deg=fov_y_deg(transposed, width),
        valid_ratio=float(counts.sum() / codes.size),
        sky_share=float(np.unpackbits(frame.sky, count=frame.depth.size).mean()),
        depth_range_m=(float(_DEPTH_OF_CODE[there[0]]), float(_DEPTH_OF_CODE[there[-1]])),
        # Not a dot product: BLAS would spread it over threads, which get in the workers' way.
        log_depth_sum=float((counts * _LOG_OF_CODE).sum()),
        log_depth_squares=float((counts * _LOG_OF_CODE**2).sum()),
        depth_counts=np.bincount(_BIN_OF_CODE, counts, _FINE_BINS).astype(np.int64),
    )


@dataclass
class SplitStatistics:
    """The sum over a split's frames; :meth:`report` is its part of ``report.json``.

    Lists have a number for each frame, in order.
    """

    sizes: Counter[str] = field(default_factory=Counter)
    fov_y_deg: list[float] = field(default_factory=list)
    fov_x_deg: list[float] = field(default_factory=list)
    valid_ratio: list[float] = field(default_factory=list)
    sky_share: list[float] = field(default_factory=list)
    depth_min_m: float = math.inf
    depth_max_m: float = 0.0
    log_depth_sum: list[float] = field(default_factory=list)
    log_depth_squares: list[float] = field(default_factory=list)
    depth_counts: Counts = field(default_factory=lambda: np.zeros(_FINE_BINS, np.int64))

    def add(self, frame: FrameStatistics) -> None:
        """Count one frame."""
        self.sizes["{}x{}".format(*frame.size)] += 1
        self.fov_y_deg.append(frame.fov_y_deg)
        self.fov_x_deg.append(frame.fov_x_deg)
        self.valid_ratio.append(frame.valid_ratio)
        self.sky_share.append(frame.sky_share)
        self.depth_min_m = min(self.depth_min_m, frame.depth_range_m[0])
        self.depth_max_m = max(self.depth_max_m, frame.depth_range_m[1])
        self.log_depth_sum.append(frame.log_depth_sum)
        self.log_depth_squares.append(frame.log_depth_squares)
        self.depth_counts += frame.depth_counts

    def merge(self, other: SplitStatistics) -> None:
        """Add the frames of another, which come after these."""
        self.sizes += other.sizes
        self.fov_y_deg += other.fov_y_deg
        self.fov_x_deg += other.fov_x_deg
        self.valid_ratio += other.valid_ratio
        self.sky_share += other.sky_share
        self.depth_min_m = min(self.depth_min_m, other.depth_min_m)
        self.depth_max_m = max(self.depth_max_m, other.depth_max_m)
        self.log_depth_sum += other.log_depth_sum
        self.log_depth_squares += other.log_depth_squares
        self.depth_counts += other.depth_counts

    def report(self) -> dict[str, Any]:
        """Mean, spread and histogram of everything; each part empty without frames."""
        coarse = self.depth_counts.reshape(-1, _MERGED).sum(axis=1)
        return {
            "sizes_px": dict(sorted(self.sizes.items())),
            "log_depth": self._log_depth(),
            "depth_histogram_m": trimmed(coarse, DEPTH_EDGES_M),
            "fov_y_deg": distribution(self.fov_y_deg, FOV_EDGES_DEG),
            "fov_x_deg": distribution(self.fov_x_deg, FOV_EDGES_DEG),
            "valid_ratio": distribution(self.valid_ratio, SHARE_EDGES),
            "sky_share": distribution(self.sky_share, SHARE_EDGES),
        }

    def _log_depth(self) -> dict[str, float]:
        """Over all valid pixels of all frames alike."""
        pixels = int(self.depth_counts.sum())
        if not pixels:
            return {}
        mean = math.fsum(self.log_depth_sum) / pixels  # the same however frames were merged
        variance = max(0.0, math.fsum(self.log_depth_squares) / pixels - mean * mean)
        return {
            "pixels": pixels,
            "mean": round(mean, 6),
            "std": round(math.sqrt(variance), 6),
            "min_m": round(self.depth_min_m, 6),
            "max_m": round(self.depth_max_m, 6),
        }


def distribution(values: Sequence[float], edges: Edges) -> dict[str, Any]:
    """Mean, least, greatest and histogram of one value a frame; empty without values.

    Values outside the bins are counted in the first or the last.
    """
    if not values:
        return {}
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    spread = {"mean": np.mean(values), "min": np.min(values), "max": np.max(values)}
    return {name: round(float(v), 6) for name, v in spread.items()} | trimmed(counts, edges)


def trimmed(counts: Counts, edges: Edges) -> dict[str, list[Any]]:
    """``edges`` (to six digits) and ``counts`` without the empty bins at either end."""
    filled = np.flatnonzero(counts)
    if not filled.size:
        return {}
    first, last = int(filled[0]), int(filled[-1])
    return {
        "edges": [float(f"{edge:.6g}") for edge in edges[first : last + 2]],
        "counts": [int(count) for count in counts[first : last + 1]],
    }


def depth_percentiles(counts: Counts) -> dict[str, float]:
    """Percentiles in metres (to 1 %) from counts over the log-depth bins; empty without counts."""
    if not counts.sum():
        return {}
    share = np.cumsum(counts) / counts.sum()
    centres = (LOG_DEPTH_EDGES[:-1] + LOG_DEPTH_EDGES[1:]) / 2
    first = np.flatnonzero(counts)[0]
    found = {}
    for percentile in _PERCENTILES:
        bin_index = max(first, int(np.searchsorted(share, percentile / 100 - 1e-12)))
        found[f"p{percentile}"] = round(float(np.exp(centres[bin_index])), 4)
    return found
