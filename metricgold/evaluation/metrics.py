"""Depth errors of one image over its valid pixels; the mean over images comes after.

With ``d`` the true and ``p`` the predicted z-depth in metres and ``g = ln(p / d)``.
No alignment happens here (see :mod:`metricgold.evaluation.alignment`). Everything is
computed in float64 from one ratio and one logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRIC_NAMES = (
    "abs_rel",
    "sq_rel",
    "rmse",
    "rmse_log",
    "log10",
    "delta1",
    "delta2",
    "delta3",
    "silog",
    "scale_ratio",
)
DELTA_BASE = 1.25


def valid_pairs(
    pred: NDArray[Any], gt: NDArray[Any], valid_mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The valid pixels of prediction and truth, [n] each in metres, float64, checked.

    Raises:
        ValueError: shapes differ, the mask is not bool or empty, or a *valid* pixel of
            either map is not finite or not positive.
    """
    if pred.shape != gt.shape or pred.shape != valid_mask.shape:
        raise ValueError(
            f"shapes differ: prediction {pred.shape}, ground truth {gt.shape}, "
            f"valid_mask {valid_mask.shape}"
        )
    if valid_mask.dtype != np.bool_:
        raise ValueError(f"valid_mask must be bool, got {valid_mask.dtype}")
    if not valid_mask.any():
        raise ValueError("valid_mask is empty: no pixel to evaluate")
    p, d = pred[valid_mask].astype(np.float64), gt[valid_mask].astype(np.float64)
    for name, values in (("prediction", p), ("ground truth", d)):
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise ValueError(
                f"{name} has {int(bad.sum())} valid pixels that are not finite and positive, "
                f"e.g. {values[bad][0]}"
            )
    return p, d


class Pairs:
    """Prediction and truth at the valid pixels, [n] each in metres, and what metrics share.

    Args:
        p, d: float64 [n], finite and positive.
    """

    def __init__(self, p: NDArray[np.float64], d: NDArray[np.float64]) -> None:
        self.p, self.d = p, d

    @cached_property
    def error(self) -> NDArray[np.float64]:
        """``|p - d|`` in metres."""
        difference = self.p - self.d
        return np.abs(difference, out=difference)

    @cached_property
    def relative(self) -> NDArray[np.float64]:
        """``|p - d| / d``."""
        return self.error / self.d

    @cached_property
    def ratio(self) -> NDArray[np.float64]:
        """``p / d``."""
        return self.p / self.d

    @cached_property
    def factor(self) -> NDArray[np.float64]:
        """``max(p / d, d / p)``, 1 or more."""
        inverse = 1.0 / self.ratio
        return np.maximum(self.ratio, inverse, out=inverse)

    def abs_rel(self) -> float:
        """Mean of ``|p - d| / d``."""
        return float(np.mean(self.relative))

    def delta(self, k: int) -> float:
        """Share of pixels whose factor is below ``1.25^k``."""
        return float(np.count_nonzero(self.factor < DELTA_BASE**k) / self.d.size)

    def metrics(self) -> dict[str, float]:
        """All of :data:`METRIC_NAMES`."""
        count, g = self.d.size, np.log(self.ratio)
        log10 = float(np.abs(g).mean() / math.log(10.0))
        mean_square = dot(g, g) / count
        g -= g.mean()
        return {
            "abs_rel": self.abs_rel(),
            "sq_rel": dot(self.error, self.relative) / count,
            "rmse": math.sqrt(dot(self.error, self.error) / count),
            "rmse_log": math.sqrt(mean_square),
            "log10": log10,
            "delta1": self.delta(1),
            "delta2": self.delta(2),
            "delta3": self.delta(3),
            "silog": 100.0 * math.sqrt(dot(g, g) / count),
            "scale_ratio": float(np.median(self.ratio)),
        }


def dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Sum of products of [n] and [n], in this thread: BLAS would wake others for it."""
    return float(np.einsum("i,i->", a, b))


def depth_metrics(
    pred: NDArray[Any], gt: NDArray[Any], valid_mask: NDArray[np.bool_]
) -> dict[str, float]:
    """All metrics of one image.

    Args:
        pred, gt: z-depth [H, W] in metres; values outside the mask are ignored.
        valid_mask: bool [H, W].

    Returns:
        ``abs_rel`` mean |p-d|/d; ``sq_rel`` mean (p-d)^2/d [m]; ``rmse`` [m]; ``rmse_log``
        sqrt(mean g^2); ``log10`` mean |log10 p/d|; ``delta<k>`` share of pixels with
        max(p/d, d/p) < 1.25^k; ``silog`` 100 sqrt(mean g^2 - (mean g)^2), the KITTI
        benchmark's; ``scale_ratio`` median p/d.

    Raises:
        ValueError: see :func:`valid_pairs`.
    """
    return Pairs(*valid_pairs(pred, gt, valid_mask)).metrics()


def mean_over_images(per_image: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over images, every image counting the same.

    Raises:
        ValueError: no image, or images with different metrics.
    """
    if not per_image:
        raise ValueError("no image to average over")
    names = list(per_image[0])
    for metrics in per_image:
        if list(metrics) != names:
            raise ValueError(f"images differ in their metrics: {names} and {list(metrics)}")
    return {name: math.fsum(m[name] for m in per_image) / len(per_image) for name in names}


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images, resampling whole groups.

    Args:
        values: one value an image.
        groups: the image's scene; frames of a scene are not independent, so scenes are
            drawn with replacement, each with all its images.
    """
    if len(values) != len(groups) or not values:
        raise ValueError(f"need one group a value, got {len(values)} and {len(groups)}")
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64))  # [G]
    counts = np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
