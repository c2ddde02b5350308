"""Is a prediction least sure where it is most wrong? Two figures a picture, of which neither
depends on the unit of the uncertainty."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricgold.evaluation.metrics import Pairs, dot

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
    return rank_quality(p, d, u)


def rank_quality(
    p: NDArray[np.float64], d: NDArray[np.float64], u: NDArray[np.float64]
) -> UncertaintyScore:
    """:func:`uncertainty_score` of checked predictions, truths and uncertainties [n]."""
    error, doubt = Pairs(p, d).relative, u / p
    if np.ptp(error) == 0:
        return UncertaintyScore(1.0, 0.0)  # nothing to rank
    by_doubt, by_error = _Order(doubt), _Order(error)
    shares = np.linspace(1, 0, FRACTIONS, endpoint=False)
    kept = np.maximum(1, np.round(shares * len(error))).astype(int)
    curve, oracle = (order.mean_of_least(kept, error) for order in (by_doubt, by_error))
    area = float((curve - oracle).mean() / (error.mean() - oracle).mean())
    return UncertaintyScore(area, by_doubt.correlation(by_error))


class _Order:
    """[n] values >= 0 in rising order, equal ones as a group; one sort serves ranks and means.

    Values are told apart in float32, whose bits rise with them: position and value are sorted
    together as one whole number, several times as fast as by ``argsort``.
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        keys = values.astype(np.float32).view(np.uint32).astype(np.uint64) << 32
        keys |= np.arange(len(values), dtype=np.uint64)
        keys.sort()
        self.order = (keys & 0xFFFFFFFF).view(np.int64)
        keys >>= 32
        new = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=new[1:])
        self.first = np.flatnonzero(new)
        self.count = np.diff(self.first, append=len(keys))

    def rising_ranks(self) -> NDArray[np.float64]:
        """[n]: 0, 1, ... n - 1 in rising order, less their mean; equal values share theirs."""
        return np.repeat(self.first + (self.count - len(self.order)) / 2, self.count)

    def correlation(self, other: _Order) -> float:
        """Of the ranks of both, 0 where one of them knows no order."""
        own, theirs = self.rising_ranks(), other.rising_ranks()
        power = dot(own, own) * dot(theirs, theirs)
        by_pixel = np.empty_like(theirs)
        by_pixel[other.order] = theirs
        return dot(own, by_pixel[self.order]) / math.sqrt(power) if power else 0.0

    def mean_of_least(
        self, kept: NDArray[np.integer[Any]], other: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """[k]: mean of ``other`` over the ``kept`` pixels of least value; equal ones alike."""
        total = np.zeros(len(other) + 1)
        np.cumsum(other[self.order], out=total[1:])
        group = np.searchsorted(self.first, kept - 1, side="right") - 1
        start, count = self.first[group], self.count[group]
        of_group = total[start + count] - total[start]
        return (total[start] + of_group * ((kept - start) / count)) / kept
