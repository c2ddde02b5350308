"""Per-image alignment for the affine-invariant track; the metric track never comes here.

Marigold's protocol: least squares for scale and shift over the valid pixels, then the
aligned depth is clipped to the dataset's range and the usual metrics are computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.evaluation.metrics import valid_pairs


def least_squares_scale_shift(
    source: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[float, float]:
    """``s, t`` that minimise ``sum (s source + t - target)^2`` over [n] values.

    A constant source cannot carry a scale: ``s = 0`` and ``t = mean(target)``.
    """
    centre, level = source.mean(), target.mean()
    deviation = source - centre
    power = float(deviation @ deviation)
    if power <= 1e-12 * max(float(source @ source), 1e-300):
        return 0.0, float(level)
    scale = float(deviation @ (target - level)) / power
    return scale, float(level - scale * centre)


def align_depth(
    pred: NDArray[Any],
    gt: NDArray[Any],
    valid_mask: NDArray[np.bool_],
    depth_min_m: float,
    depth_max_m: float,
) -> NDArray[np.float64]:
    """Prediction [H, W] after the best scale and shift in depth, clipped to the range [m]."""
    p, d = valid_pairs(pred, gt, valid_mask)
    scale, shift = least_squares_scale_shift(p, d)
    return np.clip(scale * pred.astype(np.float64) + shift, depth_min_m, depth_max_m)


def align_disparity(
    pred: NDArray[Any],
    gt: NDArray[Any],
    valid_mask: NDArray[np.bool_],
    depth_min_m: float,
    depth_max_m: float,
) -> NDArray[np.float64]:
    """As :func:`align_depth`, the fit in inverse depth (1/m); the result is depth in metres."""
    p, d = valid_pairs(pred, gt, valid_mask)
    scale, shift = least_squares_scale_shift(1.0 / p, 1.0 / d)
    disparity = scale / np.where(valid_mask, pred, 1.0).astype(np.float64) + shift
    return 1.0 / np.clip(disparity, 1.0 / depth_max_m, 1.0 / depth_min_m)


def align_median(
    pred: NDArray[Any], gt: NDArray[Any], valid_mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Prediction [H, W] times ``median(gt) / median(pred)`` over the valid pixels."""
    p, d = valid_pairs(pred, gt, valid_mask)
    return pred.astype(np.float64) * (np.median(d) / np.median(p))
