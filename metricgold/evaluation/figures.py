"""All figures of one picture. What belongs to the truth alone is computed once for all models.

Two tracks that are never mixed: metric (names without prefix: no alignment whatsoever) and
affine-invariant (``affine_*``: scale and shift of the picture fitted to the truth). A model whose
numbers are not metres is in the second one only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.data.sample import Frame
from metricgold.evaluation.alignment import Alignment, fit_depth, fit_disparity
from metricgold.evaluation.baselines import evaluation_mask
from metricgold.evaluation.boundaries import DepthEdges, edge_mask, edge_score, grown
from metricgold.evaluation.metrics import Pairs
from metricgold.evaluation.predictors import Estimate, Invariance
from metricgold.evaluation.ranges import DEPTH_BINS, EDGE_DISTANCES_PX, Binned
from metricgold.evaluation.uncertainty import rank_quality
from metricgold.sky import sky_mask

Figures = dict[str, float]
MIN_SKY_SHARE = 0.01
BINS = len(DEPTH_BINS), len(EDGE_DISTANCES_PX)
"""Pixels are counted by both at once."""


class Truth:
    """What is true of a frame, at the pixels that count.

    Args:
        depth_range_m: depth outside is not evaluated.

    Attributes:
        mask: bool [H, W], the pixels that count.
        depth: float64 [n], their depth in metres.
    """

    def __init__(self, frame: Frame, depth_range_m: tuple[float, float]) -> None:
        self.frame, self.depth_range_m = frame, depth_range_m
        self.mask = evaluation_mask(frame, depth_range_m)
        self._at = np.flatnonzero(self.mask)
        self.depth = self.values(frame.depth)

    @property
    def empty(self) -> bool:
        """No pixel counts."""
        return not self._at.size

    def values(self, picture: NDArray[Any]) -> NDArray[np.float64]:
        """[n]: a map [H, W] at the pixels that count."""
        return picture.reshape(-1)[self._at].astype(np.float64)

    @cached_property
    def dense(self) -> bool:
        """Whether 70 % of the pixels have a neighbour to the right and below; LiDAR's have not."""
        mask = self.mask
        pairs = (
            np.count_nonzero(a & b) for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1]))
        )
        return bool(min(pairs) >= 0.7 * self._at.size)

    @cached_property
    def sky(self) -> NDArray[np.bool_] | None:
        """Its sky [H, W], if it is marked and a hundredth of the picture at least."""
        sky = self.frame.sky_mask
        return sky if np.count_nonzero(sky) >= MIN_SKY_SHARE * sky.size else None

    @cached_property
    def edges(self) -> DepthEdges:
        """Its depth edges."""
        return DepthEdges(self.frame.depth, self.mask)

    @cached_property
    def inverse_depth(self) -> NDArray[np.float64]:
        """[n] in 1/m."""
        return 1.0 / self.depth

    @cached_property
    def bins(self) -> NDArray[np.intp]:
        """[n]: which cell of :data:`BINS` each pixel is in; without edges the first of a row."""
        exponent = np.frexp(self.depth)[1]
        cells = np.clip(exponent, 0, BINS[0] - 1, out=exponent).astype(np.intp)
        cells *= BINS[1]
        if self.dense:
            cells += self._edge_bins()
        return cells

    def _edge_bins(self) -> NDArray[np.uint8]:
        """[n]: in which of :data:`EDGE_DISTANCES_PX` each pixel is, from the nearest depth edge."""
        near = edge_mask(self.frame.depth, self.mask)
        bins = np.array(~near, np.uint8)
        for low, high in EDGE_DISTANCES_PX[1:-1]:  # their widths are 1, 2, 4, ...
            near = grown(near, int(high - low))
            bins += ~near
        return bins.reshape(-1)[self._at]


@dataclass(frozen=True)
class Score:
    """What a model got for one frame.

    Attributes:
        figures: by name.
        by_depth, by_edge: sums over its pixels, by true depth and by distance to an edge.
    """

    figures: Figures
    by_depth: Binned
    by_edge: Binned


def check(estimate: Estimate, truth: Truth, invariance: Invariance) -> str | None:
    """What is wrong with an estimate, if anything."""
    for name, values in (("depth", estimate.depth), ("uncertainty", estimate.uncertainty)):
        if values is None:
            continue
        if values.shape != truth.mask.shape:
            return f"{name} is {list(values.shape)}, the picture {list(truth.mask.shape)}"
        if not np.isfinite(values).all():
            return f"{name} is not finite everywhere (damaged weights, or training that diverged)"
    if invariance is Invariance.METRIC and (truth.mask & (estimate.depth <= 0)).any():
        return "depth is not positive everywhere"
    if estimate.uncertainty is not None and (estimate.uncertainty < 0).any():
        return "uncertainty is negative somewhere"
    return None


def score(truth: Truth, estimate: Estimate, invariance: Invariance = Invariance.METRIC) -> Score:
    """All figures of one estimate; ``truth`` must have a pixel that counts.

    Boundaries of a model without metres are those of its aligned depth; where the truth is not
    dense there are none, and no distance to an edge.
    """
    metric = invariance is Invariance.METRIC
    values = truth.values(estimate.depth)
    fits = _fits(truth, values, invariance)
    figures: Figures = {}
    shown: NDArray[np.floating]
    if metric:
        pairs, shown = Pairs(values, truth.depth), estimate.depth
        figures |= pairs.metrics()
        if truth.sky is not None:
            found = sky_mask(estimate.depth, truth.depth_range_m[1])
            figures["sky_iou"] = _overlap(found, truth.sky, truth.mask)
    else:
        align = next(iter(fits.values()))
        pairs, shown = Pairs(align(values), truth.depth), align(estimate.depth)
    if truth.dense:
        boundary = edge_score(DepthEdges(shown, truth.mask), truth.edges)
        figures |= {f"boundary_{name}": value for name, value in boundary._asdict().items()}
    for name, align in fits.items():
        aligned = Pairs(align(_source(values, align, invariance)), truth.depth)
        figures |= {f"{name}_abs_rel": aligned.abs_rel(), f"{name}_delta1": aligned.delta(1)}
    if estimate.uncertainty is not None and metric:
        quality = rank_quality(values, truth.depth, truth.values(estimate.uncertainty))
        figures |= quality._asdict()
    binned = Binned.of(truth.bins, math.prod(BINS), pairs)
    by_edge = binned.along(1, BINS) if truth.dense else Binned(BINS[1])
    return Score(figures, binned.along(0, BINS), by_edge)


def _overlap(found: NDArray[np.bool_], true: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, where one knows: in ``true`` or in ``others``."""
    both = np.count_nonzero(found & true)
    return both / (np.count_nonzero(true) + np.count_nonzero(found & others))


def aligner(truth: Truth, estimate: Estimate, invariance: Invariance) -> Callable[[Any], Any]:
    """From a model's map to metres for pictures: as it is, or by the fit of its own track."""
    if invariance is Invariance.METRIC:
        return lambda depth: depth
    return next(iter(_fits(truth, truth.values(estimate.depth), invariance).values()))


def _fits(
    truth: Truth, values: NDArray[np.float64], invariance: Invariance
) -> dict[str, Alignment]:
    """The fits that are fair to a model: of depth, of inverse depth, of a metric one both."""
    limits = truth.depth_range_m
    fits = {}
    if invariance is not Invariance.AFFINE_DISPARITY:
        fits["affine"] = fit_depth(values, truth.depth, *limits)
    if invariance is not Invariance.AFFINE_DEPTH:
        source = 1.0 / values if invariance is Invariance.METRIC else values
        fits["affine_disparity"] = fit_disparity(source, truth.inverse_depth, *limits)
    return fits


def _source(
    values: NDArray[np.float64], align: Alignment, invariance: Invariance
) -> NDArray[np.float64]:
    return 1.0 / values if align.inverse and invariance is Invariance.METRIC else values
