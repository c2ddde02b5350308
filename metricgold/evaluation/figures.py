"""All figures of one picture. What belongs to the truth alone is computed once for all models.

Two tracks that are never mixed: metric (names without prefix: no alignment whatsoever) and
affine-invariant (``affine_*``: scale and shift of the picture fitted to the truth). A model whose
numbers are not metres is in the second one only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from metricgold.data.sample import Frame
from metricgold.evaluation.alignment import Alignment, fit_depth, fit_disparity
from metricgold.evaluation.baselines import evaluation_mask
from metricgold.evaluation.boundaries import DepthEdges, edge_mask, edge_score
from metricgold.evaluation.metrics import Pairs
from metricgold.evaluation.predictors import Estimate, Invariance
from metricgold.evaluation.ranges import DEPTH_BINS, EDGE_DISTANCES_PX, Binned
from metricgold.evaluation.uncertainty import uncertainty_score
from metricgold.sky import sky_mask

Figures = dict[str, float]
MIN_SKY_SHARE = 0.01


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
    def depth_bins(self) -> NDArray[np.intp]:
        """[n]: in which of :data:`DEPTH_BINS` each pixel is."""
        return np.clip(np.frexp(self.depth)[1], 0, len(DEPTH_BINS) - 1)

    @cached_property
    def edge_bins(self) -> NDArray[np.intp]:
        """[n]: in which of :data:`EDGE_DISTANCES_PX` each pixel is, from the nearest depth edge."""
        beside = edge_mask(self.frame.depth, self.mask)
        if not beside.any():
            return np.full(self._at.size, len(EDGE_DISTANCES_PX) - 1)
        away = distance_transform_cdt(~beside, "chessboard").reshape(-1)[self._at]
        return np.clip(np.frexp(away.astype(np.float32))[1], 0, len(EDGE_DISTANCES_PX) - 1)


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
    if invariance is Invariance.METRIC and not (truth.values(estimate.depth) > 0).all():
        return "depth is not positive everywhere"
    if estimate.uncertainty is not None and (estimate.uncertainty < 0).any():
        return "uncertainty is negative somewhere"
    return None


def score(truth: Truth, estimate: Estimate, invariance: Invariance = Invariance.METRIC) -> Score:
    """All figures of one estimate; ``truth`` must have a pixel that counts.

    Boundaries of a model without metres are those of its aligned depth; where the truth is not
    dense there are none, and no distance to an edge.
    """
    values = truth.values(estimate.depth)
    fits = _fits(truth, values, invariance)
    figures: Figures = {}
    if invariance is Invariance.METRIC:
        pairs = Pairs(values, truth.depth)
        figures |= pairs.metrics()
        shown: NDArray[np.floating] = estimate.depth
        if truth.sky is not None:
            figures["sky_iou"] = _overlap(
                sky_mask(estimate.depth, truth.depth_range_m[1]), truth.sky, truth.mask
            )
    else:
        align = next(iter(fits.values()))
        pairs = Pairs(align(values), truth.depth)
        shown = align(estimate.depth)
    by_edge = Binned(len(EDGE_DISTANCES_PX))
    if truth.dense:
        boundary = edge_score(DepthEdges(shown, truth.mask), truth.edges)
        figures |= {f"boundary_{name}": value for name, value in boundary._asdict().items()}
        by_edge = Binned.of(truth.edge_bins, len(EDGE_DISTANCES_PX), pairs)
    for name, align in fits.items():
        aligned = Pairs(align(_source(values, align, invariance)), truth.depth)
        figures |= {f"{name}_abs_rel": aligned.abs_rel(), f"{name}_delta1": aligned.delta(1)}
    if estimate.uncertainty is not None and invariance is Invariance.METRIC:
        quality = uncertainty_score(
            estimate.depth, truth.frame.depth, estimate.uncertainty, truth.mask
        )
        figures |= quality._asdict()
    return Score(figures, Binned.of(truth.depth_bins, len(DEPTH_BINS), pairs), by_edge)


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
        metric = invariance is Invariance.METRIC
        source = 1.0 / values if metric else values
        fits["affine_disparity"] = fit_disparity(source, truth.depth, *limits)
    return fits


def _source(
    values: NDArray[np.float64], align: Alignment, invariance: Invariance
) -> NDArray[np.float64]:
    return 1.0 / values if align.inverse and invariance is Invariance.METRIC else values
