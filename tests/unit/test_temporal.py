"""Flicker of sequences, against sequences whose flicker is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricgold.evaluation.temporal import flicker, temporal_error

RNG = np.random.default_rng(0)
TRUTH = np.exp(RNG.standard_normal((4, 5, 6)))
VALID = np.ones(TRUTH.shape, bool)


@given(st.floats(0.1, 10))
def test_a_constant_factor_is_no_flicker(factor: float) -> None:
    assert temporal_error(factor * TRUTH, TRUTH, VALID) == pytest.approx(0, abs=1e-12)


def test_a_scale_that_swings_is() -> None:
    swing = np.exp(np.array([0, 0.1, 0, 0.1]))[:, None, None]
    assert temporal_error(TRUTH * swing, TRUTH, VALID) == pytest.approx(0.1)
    assert flicker(np.ones_like(TRUTH) * swing) == pytest.approx(0.1)


def test_only_pixels_valid_twice_count() -> None:
    prediction, valid = TRUTH.copy(), VALID.copy()
    prediction[2, 0, 0], valid[2, 0, 0] = np.nan, False
    assert temporal_error(prediction, TRUTH, valid) == 0
    alternating = np.zeros_like(VALID)
    alternating[::2] = True
    with pytest.raises(ValueError, match="no pixel is valid in two frames"):
        temporal_error(prediction, TRUTH, alternating)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="three arrays"):
        temporal_error(TRUTH, TRUTH[:3], VALID)
    with pytest.raises(ValueError, match="two frames or more"):
        flicker(TRUTH[:1])
