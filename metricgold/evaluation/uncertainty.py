"""Is a prediction least sure where it is most wrong? Two figures a picture, of which neither
depends on the unit of the uncertainty."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    by_doubt, by_error = _Order(doubt), _Order(error)
    kept = np.maximum(1, np.round(np.linspace(1, 0, FRACTIONS, endpoint=False) * len(error)))
    at = kept.astype(int) - 1
    curve, oracle = by_doubt.mean_of_least(error)[at], by_error.mean_of_least(error)[at]
    spearman = 0.0
    if np.ptp(doubt) > 0:
        spearman = float(np.corrcoef(by_doubt.ranks(), by_error.ranks())[0, 1])
    return UncertaintyScore(
        float((curve - oracle).mean() / (error.mean() - oracle).mean()), spearman
    )


class _Order:
    """[n] values in rising order, equal ones as a group; one sort serves ranks and means."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.order = np.argsort(values)
        rising = values[self.order]
        self.first = np.flatnonzero(np.r_[True, rising[1:] != rising[:-1]])
        self.count = np.diff(np.r_[self.first, len(values)])

    def ranks(self) -> NDArray[np.float64]:
        """[n]: rank of each value, 1 for the least; equal ones share the mean of theirs."""
        ranks = np.empty(len(self.order))
        ranks[self.order] = np.repeat(self.first + (self.count + 1) / 2, self.count)
        return ranks

    def mean_of_least(self, other: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n]: mean of ``other`` over the 1, 2, ... n pixels of least value; equal ones alike."""
        group_means = np.add.reduceat(other[self.order], self.first) / self.count
        total = np.cumsum(np.repeat(group_means, self.count))
        return total / np.arange(1, len(total) + 1)
