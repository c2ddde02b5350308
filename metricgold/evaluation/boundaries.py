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


class BoundaryScore(NamedTuple):
    """Threshold-weighted means, all in [0, 1]."""

    f1: float
    precision: float
    recall: float


def _axis_pairs(values: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """First and second pixel of each neighbouring pair along ``axis``."""
    if axis == 0:
        return values[:-1], values[1:]
    return values[:, :-1], values[:, 1:]


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
            self.levels += [_levels(a / b), _levels(b / a)]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[4, 10]: how many pairs exceed each threshold."""
        return np.stack([_exceeding(levels) for levels in self.levels])

    def common(self, other: DepthEdges) -> NDArray[np.int64]:
        """[4, 10]: how many pairs exceed each threshold here and there."""
        pairs = zip(self.levels, other.levels, strict=True)
        return np.stack([_exceeding(np.minimum(a, b)) for a, b in pairs])


def _levels(ratio: NDArray[np.float64]) -> NDArray[np.uint8]:
    """How many thresholds each ratio exceeds; few exceed any, so only those are looked up."""
    found = np.zeros(ratio.shape, np.uint8)
    some = ratio > THRESHOLDS[0]  # False for NaN
    found[some] = np.searchsorted(THRESHOLDS, ratio[some], side="left")
    return found


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
    filled = np.where(valid_mask, depth, 1.0).astype(np.float64)
    for axis in (0, 1):
        first, second = _axis_pairs(filled, axis)
        mask_first, mask_second = _axis_pairs(valid_mask, axis)
        jump = np.maximum(first / second, second / first) > ratio
        edge = jump & mask_first & mask_second
        for side in _axis_pairs(near_edge, axis):
            side |= edge
    return near_edge
