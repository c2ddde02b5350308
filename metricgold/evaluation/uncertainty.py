"""Is a prediction least sure where it is most wrong? Two figures a picture, of which neither
depends on the unit of the uncertainty."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FRACTIONS = 100
"""Points of a sparsification curve."""


class UncertaintyScore(NamedTuple):
    """Quality of an uncertainty.

    ``nause``: area between the sparsification curve (mean error of the surest pixels, for every
    share of pixels kept) and that of an oracle which sorts by the error itself, over the area
    for an uncertainty that knows nothing: 0 is perfect, 1 useless, more is worse than useless.
    ``spearman``: rank correlation of uncertainty and error, 1 is perfect, 0 useless.
    """

    nause: float
    spearman: float


def uncertainty_score(
    pred: NDArray[Any],
    gt: NDArray[Any],
    uncertainty: NDArray[Any],
    valid_mask: NDArray[np.bool_],
) -> UncertaintyScore:
    """Of one picture's relative error ``|p - d| / d`` and relative uncertainty ``u / p``.

    Sparsification: Ilg et al. 2018, https://arxiv.org/abs/1802.07095. Pixels of equal
    uncertainty count as their mean, so that a constant one gives nause 1 and spearman 0.

    Args:
        pred, gt, uncertainty: [H, W] in metres.
        valid_mask: bool [H, W].

    Raises:
        ValueError: no valid pixel, or an uncertainty that is negative or not finite.
    """
    if not valid_mask.any():
        raise ValueError("valid_mask is empty: no pixel to evaluate")
    p, d, u = (x[valid_mask].astype(np.float64) for x in (pred, gt, uncertainty))
    if not (np.isfinite(u).all() and (u >= 0).all()):
        raise ValueError("an uncertainty must be finite and not negative")
    error, doubt = np.abs(p - d) / d, u / p
    if np.ptp(error) == 0:
        return UncertaintyScore(1.0, 0.0)  # nothing to rank
    kept = np.maximum(1, np.round(np.linspace(1, 0, FRACTIONS, endpoint=False) * len(error)))
    at = kept.astype(int) - 1
    curve, oracle = _mean_of_least(error, doubt)[at], _mean_of_least(error, error)[at]
    ranks, error_ranks = rankdata(doubt), rankdata(error)
    spearman = 0.0 if np.ptp(doubt) == 0 else float(np.corrcoef(ranks, error_ranks)[0, 1])
    return UncertaintyScore(
        float((curve - oracle).mean() / (error.mean() - oracle).mean()), spearman
    )


def _mean_of_least(error: NDArray[np.float64], key: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n]: mean error of the 1, 2, ... n pixels of least ``key``; those of equal key are alike."""
    order = np.argsort(key, kind="stable")
    _, first, inverse, count = np.unique(
        key[order], return_index=True, return_inverse=True, return_counts=True
    )
    group_means = np.add.reduceat(error[order], first) / count
    return np.cumsum(group_means[inverse]) / np.arange(1, len(error) + 1)
