"""Boundary F1 by hand, and against a slow loop written from the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricgold.evaluation.boundaries import boundary_score, edge_mask


def slow_f1(pred: Any, gt: Any, mask: Any) -> tuple[float, float, float]:
    """Every pixel, every direction, every threshold."""
    height, width = gt.shape
    scores, weights = [], []
    for t in np.linspace(1.05, 1.25, 10):
        precision = recall = 0.0
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            hits = in_pred = in_gt = 0
            for y in range(height):
                for x in range(width):
                    ny, nx = y + dy, x + dx
                    if not (0 <= ny < height and 0 <= nx < width):
                        continue
                    if not (mask[y, x] and mask[ny, nx]):
                        continue
                    p = (1 / pred[ny, nx]) / (1 / pred[y, x]) > t
                    g = (1 / gt[ny, nx]) / (1 / gt[y, x]) > t
                    hits, in_pred, in_gt = hits + (p and g), in_pred + p, in_gt + g
            precision += hits / max(in_pred, 1) / 4
            recall += hits / max(in_gt, 1) / 4
        total = precision + recall
        f1 = 2 * precision * recall / total if total else 0.0
        scores.append((f1, precision, recall))
        weights.append(t)
    share = np.array(weights) / np.sum(weights)
    return tuple(share @ np.array(scores))


def random_case(seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    gt = np.exp(rng.normal(1.0, 0.15, (6, 8)))
    pred = gt * np.exp(rng.normal(0.0, 0.08, gt.shape))
    return pred, gt, rng.random(gt.shape) > 0.2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_against_the_slow_loop(seed: int) -> None:
    case = random_case(seed)
    assert tuple(boundary_score(*case)) == pytest.approx(slow_f1(*case), rel=1e-9, abs=1e-12)


def test_by_hand() -> None:
    mask = np.ones((2, 2), bool)
    # nearer on the left and nearer on the top: 2 of 4 directions have an edge, all hit
    gt = np.array([[1.0, 2.0], [2.0, 4.0]])
    assert boundary_score(gt, gt, mask) == pytest.approx((0.5, 0.5, 0.5))
    # edges in both senses along x and along y: all four directions are hit
    both = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    assert boundary_score(both, both, np.ones((3, 3), bool)) == pytest.approx((1.0, 1.0, 1.0))


def test_thresholds_are_weighted_by_their_size() -> None:
    # a step of 1.15 exceeds the thresholds below 1.15 only
    step = np.array([[1.0, 1.15, 1.0], [1.15, 1.15**2, 1.15], [1.0, 1.15, 1.0]])
    thresholds = np.linspace(1.05, 1.25, 10)
    expected = thresholds[thresholds < 1.15].sum() / thresholds.sum()
    assert boundary_score(step, step, np.ones((3, 3), bool)).f1 == pytest.approx(expected)


def test_extra_edges_cost_precision_and_missing_ones_recall() -> None:
    gt = np.ones((8, 8))
    gt[:, 4:] = 3.0
    extra = gt.copy()
    extra[4:] *= 2.0
    mask = np.ones((8, 8), bool)
    score = boundary_score(extra, gt, mask)
    assert (score.precision, score.recall) == pytest.approx((0.25, 0.25))
    assert boundary_score(np.ones((8, 8)), gt, mask) == (0.0, 0.0, 0.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_scale_invalid_pixels_and_symmetry(seed: int, scale: float) -> None:
    pred, gt, mask = random_case(seed)
    score = boundary_score(pred, gt, mask)
    spoilt = boundary_score(np.where(mask, pred * scale, np.nan), np.where(mask, gt, 0.0), mask)
    assert tuple(spoilt) == pytest.approx(tuple(score), abs=0.02)
    swapped = boundary_score(gt, pred, mask)
    assert (swapped.f1, swapped.precision, swapped.recall) == pytest.approx(
        (score.f1, score.recall, score.precision)
    )


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"need equal \[H, W\]"):
        boundary_score(np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 2), bool))


def test_edge_mask_marks_both_sides_and_skips_invalid_pairs() -> None:
    depth = np.array([[1.0, 1.0, 2.0, 0.0, 9.0]])
    valid = np.array([[True, True, True, False, True]])
    assert edge_mask(depth, valid).tolist() == [[False, True, True, False, False]]
