"""All figures of one picture, against hand-made cases and the functions that compute each alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_frames import make_frame
from scipy.ndimage import distance_transform_cdt

from metricgold.data.sample import Frame
from metricgold.evaluation.boundaries import boundary_score, edge_mask
from metricgold.evaluation.figures import Truth, aligner, check, score
from metricgold.evaluation.metrics import depth_metrics
from metricgold.evaluation.predictors import Estimate, Invariance
from metricgold.evaluation.ranges import EDGE_DISTANCES_PX
from metricgold.evaluation.uncertainty import uncertainty_score

RANGE_M = (0.1, 80.0)


def flat_frame(depth: Any) -> Frame:
    depth = np.asarray(depth, np.float32)
    mask = np.ones(depth.shape, bool)
    return Frame("s/0", "s", np.zeros((*depth.shape, 3), np.uint8), depth, mask, ~mask, np.eye(3))


def test_a_perfect_estimate_has_perfect_figures() -> None:
    frame = make_frame(1, 0, (16, 24))
    depth = np.where(frame.valid_mask, frame.depth, 1.0).astype(np.float32)
    figures = score(Truth(frame, RANGE_M), Estimate(depth)).figures
    assert figures["abs_rel"] == figures["rmse"] == 0.0
    assert figures["delta1"] == figures["boundary_f1"] == figures["scale_ratio"] == 1.0
    assert figures["affine_abs_rel"] == pytest.approx(0.0, abs=1e-9)
    assert figures["affine_disparity_abs_rel"] == pytest.approx(0.0, abs=1e-6)
    assert "nause" not in figures


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_they_are_what_each_gives_alone(seed: int) -> None:
    frame = make_frame(1, seed, (16, 24))
    rng = np.random.default_rng(seed)
    frame = replace(frame, valid_mask=rng.random((16, 24)) > 0.05)
    depth = (frame.depth * np.exp(rng.normal(0, 0.3, frame.depth.shape))).astype(np.float32)
    unsure = rng.uniform(0, 1, depth.shape).astype(np.float32)
    truth = Truth(frame, (1.5, 80.0))
    found = score(truth, Estimate(depth, unsure))
    mask = frame.valid_mask & (frame.depth >= 1.5)
    np.testing.assert_array_equal(truth.mask, mask)
    expected = depth_metrics(depth, frame.depth, mask)
    boundary = boundary_score(depth, frame.depth, mask)
    expected |= {f"boundary_{k}": v for k, v in boundary._asdict().items()}
    expected |= uncertainty_score(depth, frame.depth, unsure, mask)._asdict()
    assert {k: found.figures[k] for k in expected} == pytest.approx(expected, rel=1e-12)
    for binned in (found.by_depth, found.by_edge):
        pixels, errors, close = binned.sums.sum(axis=1)
        assert pixels == mask.sum()
        assert errors / pixels == pytest.approx(expected["abs_rel"])
        assert close / pixels == pytest.approx(expected["delta1"])


def test_models_without_metres_are_in_their_own_track_only() -> None:
    frame = replace(make_frame(1, 0, (16, 24)), valid_mask=np.ones((16, 24), bool))
    truth = Truth(frame, RANGE_M)
    depth = np.where(frame.valid_mask, frame.depth, 1.0).astype(np.float32)
    relative = score(truth, Estimate(5 - 0.2 * depth), Invariance.AFFINE_DEPTH).figures
    assert relative["affine_abs_rel"] == pytest.approx(0, abs=1e-5)
    assert relative["boundary_f1"] == pytest.approx(1, abs=0.02)  # of the aligned depth
    disparity = Estimate((0.3 + 2 / depth).astype(np.float32))
    inverse = score(truth, disparity, Invariance.AFFINE_DISPARITY).figures
    assert inverse["affine_disparity_abs_rel"] == pytest.approx(0, abs=1e-5)
    boundaries = {"boundary_f1", "boundary_precision", "boundary_recall"}
    assert set(relative) == boundaries | {"affine_abs_rel", "affine_delta1"}
    assert set(inverse) == boundaries | {"affine_disparity_abs_rel", "affine_disparity_delta1"}
    shown = aligner(truth, disparity, Invariance.AFFINE_DISPARITY)(disparity.depth)
    np.testing.assert_allclose(shown[truth.mask], depth[truth.mask], rtol=1e-4)


def test_a_sparse_truth_has_no_boundaries() -> None:
    frame = make_frame(1, 0, (16, 24))
    points = np.zeros((16, 24), bool)
    points[::3, ::4] = True
    sparse = replace(frame, valid_mask=points)
    depth = np.full((16, 24), 3.0, np.float32)
    found = score(Truth(sparse, RANGE_M), Estimate(depth))
    assert "boundary_f1" not in found.figures
    assert found.by_edge.sums.sum() == 0
    assert found.by_depth.sums[0].sum() == points.sum()
    assert "boundary_f1" in score(Truth(frame, RANGE_M), Estimate(depth)).figures


def test_depth_bins_are_octaves() -> None:
    depth = [[0.5, 1.0, 1.99, 2.0, 3.9, 4.0, 127.9, 128.0, 256.0, 999.0]]
    bins = Truth(flat_frame(depth), (0.1, 1e6)).bins
    assert (bins // len(EDGE_DISTANCES_PX)).tolist() == [0, 1, 1, 2, 2, 3, 7, 8, 9, 9]


def test_edge_bins_are_distances_to_the_nearest_edge() -> None:
    depth = np.ones((8, 24))
    depth[:, 2:] = 5.0  # an edge between columns 1 and 2: both are beside it
    bins = edge_bins(depth).reshape(8, 24)[1]
    away = [max(1 - x, x - 2, 0) for x in range(24)]
    expected = [next(i for i, (_, to) in enumerate(EDGE_DISTANCES_PX) if d < to) for d in away]
    assert bins.tolist() == expected
    assert set(edge_bins(np.ones((8, 9)))) == {5}  # no edge at all


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_edge_bins_against_a_distance_transform(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = np.ones((60, 70))
    for _ in range(rng.integers(1, 4)):
        top, left = rng.integers(0, 60), rng.integers(0, 70)
        depth[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = 5.0
    away = distance_transform_cdt(~edge_mask(depth, np.ones(depth.shape, bool)), "chessboard")
    limits = [low for low, _ in EDGE_DISTANCES_PX[1:]]
    np.testing.assert_array_equal(edge_bins(depth), np.digitize(away.ravel(), limits))


def edge_bins(depth: Any) -> Any:
    return Truth(flat_frame(depth), RANGE_M).bins % len(EDGE_DISTANCES_PX)


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(np.ones((2, 2), np.float32)), r"depth is \[2, 2\], the picture \[1, 3\]"),
        (Estimate(np.array([[1, np.nan, 1]], np.float32)), "depth is not finite"),
        (Estimate(np.array([[1, 0, 1]], np.float32)), "depth is not positive"),
        (
            Estimate(np.ones((1, 3), np.float32), np.array([[-1, 1, 1]], np.float32)),
            "uncertainty is negative",
        ),
    ],
)
def test_what_is_no_depth_is_named(estimate: Estimate, said: str) -> None:
    truth = Truth(flat_frame([[1.0, 2.0, 3.0]]), RANGE_M)
    found = check(estimate, truth, Invariance.METRIC)
    assert found is not None
    assert re.match(said, found)
    assert check(Estimate(np.ones((1, 3), np.float32)), truth, Invariance.METRIC) is None
