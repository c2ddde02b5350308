"""The constant predictor: the same depth for every pixel, chosen on *training* frames only.

A model that reads nothing from the picture cannot do better than the best constant, so
its AbsRel is the yardstick of the demo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricgold.data.sample import Frame

PIXELS_PER_FRAME = 2048


@dataclass(frozen=True)
class ConstantDepths:
    """Two constants in metres.

    Attributes:
        median_m: median depth of the training pixels.
        best_abs_rel_m: the constant with the smallest training AbsRel (the stronger one).
        frames: how many training frames they come from.
    """

    median_m: float
    best_abs_rel_m: float
    frames: int


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The smallest value at which half of the total weight is reached.

    It minimises ``sum w |c - v|`` over c.
    """
    if values.size == 0 or values.shape != weights.shape:
        raise ValueError(f"need as many weights as values, got {values.size} and {weights.size}")
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, 0.5 * reached[-1])])


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """All indices below ``total``, or ``limit`` of them at even distances."""
    if limit is None or limit >= total:
        return list(range(total))
    return [i * total // limit for i in range(limit)]


def evaluation_mask(frame: Frame, depth_range_m: tuple[float, float]) -> NDArray[np.bool_]:
    """Valid pixels [H, W] whose depth is in the range: where metrics are computed."""
    near_m, far_m = depth_range_m
    return frame.valid_mask & (frame.depth >= near_m) & (frame.depth <= far_m)


def fit_constants(frames: Iterable[Frame], depth_range_m: tuple[float, float]) -> ConstantDepths:
    """Both constants from training frames; every frame counts the same, as in the metrics.

    Mean AbsRel of a constant c is ``sum |c - d| / d``, so the weighted median with weights
    ``1/d`` minimises it. Of large frames an even grid of about 2048 pixels is taken.

    Raises:
        ValueError: no frame has a valid pixel.
    """
    depths, shares = [], []
    for frame in frames:
        d = frame.depth[evaluation_mask(frame, depth_range_m)].astype(np.float64)
        d = d[:: max(1, d.size // PIXELS_PER_FRAME)]
        if d.size:
            depths.append(d)
            shares.append(np.full(d.size, 1.0 / d.size))
    if not depths:
        raise ValueError("no training frame has a valid pixel to fit a constant on")
    depth, share = np.concatenate(depths), np.concatenate(shares)
    return ConstantDepths(
        median_m=weighted_median(depth, share),
        best_abs_rel_m=weighted_median(depth, share / depth),
        frames=len(depths),
    )
