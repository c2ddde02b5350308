"""Boundary F1 of Depth Pro (arXiv 2410.02073): do depth edges lie where they should?

An edge at threshold t stands between two neighbouring pixels when the ratio of their
inverse depths exceeds t; each of the four directions (nearer on the left, right, top,
bottom) has its own precision and recall, which are averaged before F1. The final score
weighs ten thresholds by their size. It needs no scale: only ratios enter.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(1.05, 1.25, 10)
NEARLY_FIRST = THRESHOLDS[0] * (1 - 1e-9)
"""So that no ratio is missed when its inverse is compared."""


class BoundaryScore(NamedTuple):
    """Threshold-weighted means, all in [0, 1]."""

    f1: float
    precision: float
    recall: float


def _axis_pairs(
    values: NDArray[Any], axis: int, step: int = 1
) -> tuple[NDArray[Any], NDArray[Any]]:
    """First and second pixel of each pair that is ``step`` apart along ``axis``."""
    if axis == 0:
        return values[:-step], values[step:]
    return values[:, :-step], values[:, step:]


class DepthEdges:
    """Where neighbouring depths differ, and by how much, in each of four directions.

    Args:
        depth: [H, W] in any unit, positive where valid.
        valid_mask: bool [H, W]; a pair that touches an invalid pixel has no edge.

    ``levels`` are four uint8 arrays, a pair each: how many thresholds its ratio exceeds.
    """

    def __init__(self, depth: NDArray[Any], valid_mask: NDArray[np.bool_]) -> None:
        known = np.where(valid_mask, depth, np.nan).astype(np.float64, copy=False)
        self.levels: list[NDArray[np.uint8]] = []
        for axis in (0, 1):
            a, b = _axis_pairs(known, axis)
            # inverse depth: (1/b) / (1/a) = a / b, and the opposite direction
            ratio = a / b
            self.levels.append(_levels(ratio > THRESHOLDS[0], a, b))
            self.levels.append(_levels(ratio < 1.0 / NEARLY_FIRST, b, a))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[4, 10]: how many pairs exceed each threshold."""
        return np.stack([_exceeding(levels) for levels in self.levels])

    def common(self, other: DepthEdges) -> NDArray[np.int64]:
        """[4, 10]: how many pairs exceed each threshold here and there."""
        pairs = zip(self.levels, other.levels, strict=True)
        return np.stack([_exceeding(np.minimum(a, b)) for a, b in pairs])


def _levels(some: NDArray[np.bool_], a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.uint8]:
    """How many thresholds ``a / b`` exceeds where ``some``; 0 elsewhere. Few exceed any."""
    levels = np.zeros(some.shape, np.uint8)
    at = np.unravel_index(np.flatnonzero(some), some.shape)
    levels[at] = np.searchsorted(THRESHOLDS, a[at] / b[at], side="left")
    return levels


def _exceeding(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[10]: how many pairs exceed each threshold."""
    histogram = np.bincount(levels[levels > 0], minlength=len(THRESHOLDS) + 1)
    return np.cumsum(histogram[::-1])[::-1][1:]


def boundary_score(
    pred: NDArray[Any], gt: NDArray[Any], valid_mask: NDArray[np.bool_]
) -> BoundaryScore:
    """Boundary F1, precision and recall of one image.

    Args:
        pred, gt: z-depth [H, W] in metres, positive where valid.
        valid_mask: bool [H, W]; a pair that touches an invalid pixel is left out.
    """
    if pred.shape != gt.shape or pred.shape != valid_mask.shape or pred.ndim != 2:
        raise ValueError(
            f"need equal [H, W], got prediction {pred.shape}, ground truth {gt.shape}, "
            f"valid_mask {valid_mask.shape}"
        )
    return edge_score(DepthEdges(pred, valid_mask), DepthEdges(gt, valid_mask))


def edge_score(pred: DepthEdges, gt: DepthEdges) -> BoundaryScore:
    """Boundary F1, precision and recall of predicted edges.

    As in the source, a direction without any edge counts 0 (not 1), and the F1 of a
    threshold is 0 where precision and recall both are.
    """
    hits = pred.common(gt)  # [4, 10]
    precision = (hits / np.maximum(pred.counts, 1)).mean(axis=0)
    recall = (hits / np.maximum(gt.counts, 1)).mean(axis=0)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    weights = THRESHOLDS / THRESHOLDS.sum()
    return BoundaryScore(*(float(weights @ values) for values in (f1, precision, recall)))


def edge_mask(
    depth: NDArray[Any], valid_mask: NDArray[np.bool_], ratio: float = 1.1
) -> NDArray[np.bool_]:
    """Pixels [H, W] beside a depth edge: valid, as is a 4-neighbour more than ``ratio`` away."""
    near_edge = np.zeros(depth.shape, dtype=bool)
    known = np.where(valid_mask, depth, np.nan).astype(np.float64, copy=False)
    for axis in (0, 1):
        first, second = _axis_pairs(known, axis)
        edge = np.maximum(first, second) > ratio * np.minimum(first, second)  # not for NaN
        for side in _axis_pairs(near_edge, axis):
            side |= edge
    return near_edge


def grown(mask: NDArray[np.bool_], step: int) -> NDArray[np.bool_]:
    """``mask`` [H, W] and what is ``step`` rows or columns, or both, away from it.

    Of squares of 2r + 1 pixels, 2r + 1 >= step, it makes squares of 2 (r + step) + 1.
    """
    for axis in (0, 1):
        wider = mask.copy()
        first, second = _axis_pairs(mask, axis, step)
        for side, other in zip(_axis_pairs(wider, axis, step), (second, first), strict=True):
            side |= other
        mask = wider
    return mask
