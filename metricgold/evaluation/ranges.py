"""Errors by depth range: how good is it at 1 m, and how good at 40 m?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.depth_codec import DepthCodec
from metricgold.evaluation.metrics import DELTA_BASE, valid_pairs

COLUMNS = ("near_m", "far_m", "pixels", "abs_rel", "delta1", "constant_abs_rel")


def octave_edges(codec: DepthCodec) -> NDArray[np.float64]:
    """Bin edges in metres: the codec's range, cut at 1, 2, 4, 8, 16, 32, 64."""
    inner = [2.0**i for i in range(7) if codec.depth_min_m < 2.0**i < codec.depth_max_m]
    return np.array([codec.depth_min_m, *inner, codec.depth_max_m])


@dataclass
class RangeErrors:
    """Sums over all pixels of all images, one entry a bin; pixels count the same everywhere."""

    edges_m: NDArray[np.float64]

    def __post_init__(self) -> None:
        self.sums = np.zeros((4, len(self.edges_m) - 1))

    def add(
        self,
        pred: NDArray[Any],
        gt: NDArray[Any],
        valid_mask: NDArray[np.bool_],
        constant_m: float,
    ) -> None:
        """Count one image [H, W]; depths in metres, ``constant_m`` is the constant predictor's."""
        p, d = valid_pairs(pred, gt, valid_mask)
        bins = np.searchsorted(self.edges_m[1:-1], d, side="right")
        close = np.maximum(p / d, d / p) < DELTA_BASE
        columns = (np.ones_like(d), np.abs(p - d) / d, close, np.abs(constant_m - d) / d)
        for row, values in enumerate(columns):
            self.sums[row] += np.bincount(bins, weights=values, minlength=self.sums.shape[1])

    def rows(self) -> list[tuple[float, float, int, float, float, float]]:
        """One row of :data:`COLUMNS` a bin that holds pixels, near to far."""
        result = []
        bounds = zip(self.edges_m[:-1], self.edges_m[1:], self.sums.T, strict=True)
        for near, far, (pixels, error, close, constant) in bounds:
            if pixels:
                means = (float(error / pixels), float(close / pixels), float(constant / pixels))
                result.append((float(near), float(far), int(pixels), *means))
        return result
