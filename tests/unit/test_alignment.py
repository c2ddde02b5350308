"""Alignment of the affine-invariant track: recovers what it should, and against numpy's lstsq."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricgold.evaluation.alignment import (
    fit_depth,
    fit_disparity,
    least_squares_scale_shift,
)


def random_case(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    gt = rng.uniform(1.0, 40.0, (6, 9))
    mask = rng.random(gt.shape) > 0.3
    mask[0, :2] = True
    return gt, mask


def test_scale_and_shift_by_hand() -> None:
    source, target = np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 8.0])
    # slope = cov / var = (7 / 3) / (2 / 3), through the means (1, 4)
    assert least_squares_scale_shift(source, target) == pytest.approx((3.5, 0.5))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_against_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = rng.uniform(0.1, 80, 40), rng.uniform(0.1, 80, 40)
    design = np.stack([source, np.ones(40)], axis=1)
    expected = np.linalg.lstsq(design, target, rcond=None)[0]
    assert least_squares_scale_shift(source, target) == pytest.approx(tuple(expected), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.2, 5.0), shift=st.floats(0.0, 10.0))
def test_undoes_an_affine_change_of_depth(seed: int, scale: float, shift: float) -> None:
    gt, mask = random_case(seed)
    pred = gt * scale + shift
    align = fit_depth(pred[mask], gt[mask], 0.1, 80.0)
    np.testing.assert_allclose(align(pred)[mask], gt[mask], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.2, 5.0), shift=st.floats(0.0, 1.0))
def test_undoes_an_affine_change_of_disparity(seed: int, scale: float, shift: float) -> None:
    gt, mask = random_case(seed)
    pred = scale / gt + shift
    align = fit_disparity(pred[mask], 1 / gt[mask], 0.1, 80.0)
    np.testing.assert_allclose(align(pred)[mask], gt[mask], rtol=1e-5)


def test_result_stays_in_the_range() -> None:
    gt = np.array([1.0, 2.0, 3.0, 70.0])
    pred = np.array([1.0, 1.5, 9.0, 5.0])
    for fit in (fit_depth, fit_disparity):
        aligned = fit(pred, gt, 0.5, 20.0)(np.array([[-100.0, 0.0, 3.0, 1e6]]))
        assert aligned.min() >= 0.5 - 1e-12
        assert aligned.max() <= 20.0 + 1e-9


def test_a_constant_prediction_becomes_the_mean() -> None:
    values = np.array([7.0, 7.0])
    aligned = fit_depth(values, np.array([1.0, 3.0]), 0.1, 80)(values)
    np.testing.assert_allclose(aligned, 2.0)
