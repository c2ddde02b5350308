"""Constant predictors and the predictor interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_model

from metricgold.data.sample import Frame
from metricgold.evaluation.baselines import fit_constants, weighted_median
from metricgold.evaluation.metrics import depth_metrics
from metricgold.evaluation.predictors import ConstantPredictor, Observation, PipelinePredictor
from metricgold.geometry import intrinsics_from_fov

RANGE_M = (0.1, 80.0)


def frame(depth: Any, valid: Any = None, key: str = "s/0") -> Frame:
    depth = np.asarray(depth, np.float32)
    mask = np.ones(depth.shape, bool) if valid is None else np.asarray(valid)
    rgb = np.zeros((*depth.shape, 3), np.uint8)
    camera = intrinsics_from_fov(60, *depth.shape)
    return Frame(key, "s", rgb, depth, mask, np.zeros_like(mask), camera)


def test_weighted_median_by_hand() -> None:
    values = np.array([3.0, 1.0, 2.0])
    assert weighted_median(values, np.ones(3)) == 2.0
    assert weighted_median(values, np.array([5.0, 1.0, 1.0])) == 3.0
    with pytest.raises(ValueError, match="as many weights"):
        weighted_median(values, np.ones(2))


def test_constants_by_hand() -> None:
    constants = fit_constants([frame([[1.0, 2.0, 4.0, 8.0, 16.0]])], RANGE_M)
    assert constants.median_m == 4.0
    # weights 1, 1/2, 1/4, ... sum to 31/16; half is reached at 1
    assert constants.best_abs_rel_m == 1.0
    assert constants.frames == 1


def test_frames_count_the_same_and_invalid_pixels_do_not_count() -> None:
    many = frame(np.full((4, 100), 9.0))
    few = frame([[3.0, 70.0]], [[True, False]])
    out_of_range = frame([[500.0, 0.0]])
    empty = frame([[1.0]], [[False]])
    constants = fit_constants([few, many, few, out_of_range, empty], RANGE_M)
    assert (constants.median_m, constants.frames) == (3.0, 3)
    with pytest.raises(ValueError, match="no training frame"):
        fit_constants([empty], RANGE_M)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_other_constant_has_a_smaller_training_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [frame(np.exp(rng.normal(1, 1, (3, 5)))) for _ in range(4)]
    frames = [frame(np.clip(f.depth, 0.1, 80)) for f in frames]

    def error(constant: float) -> float:
        guesses = [(np.full(f.depth.shape, constant), f.depth, f.valid_mask) for f in frames]
        return float(np.mean([depth_metrics(*g)["abs_rel"] for g in guesses]))

    best = error(fit_constants(frames, RANGE_M).best_abs_rel_m)
    assert best <= min(error(c) for c in np.geomspace(0.1, 80, 60)) + 1e-9
    assert best <= error(fit_constants(frames, RANGE_M).median_m) + 1e-9


def test_constant_predictor() -> None:
    predictor = ConstantPredictor(2.5)
    rgb = np.zeros((4, 6, 3), np.uint8)
    first, depth = (e.depth for e in predictor.predict([Observation("", rgb, None)] * 2))
    np.testing.assert_array_equal(first, depth)
    assert depth.shape == (4, 6)
    assert depth.dtype == np.float32
    assert (depth == 2.5).all()
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="finite and positive"):
            ConstantPredictor(bad)


def test_pipeline_predictor_takes_the_camera_from_k_unless_told_not_to() -> None:
    pipeline = toy_model(fov_matters=True)
    rgb = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    camera = intrinsics_from_fov(70, 16, 24)
    fov = 2 * np.degrees(np.arctan(16 / (2 * camera[1, 1])))
    known = PipelinePredictor(pipeline)(rgb, camera)
    assert known.shape == (16, 24)
    np.testing.assert_array_equal(known, pipeline(rgb, fov_deg=float(fov)).prediction[0, ..., 0])
    hidden = PipelinePredictor(pipeline, use_fov=False)(rgb, camera)
    np.testing.assert_array_equal(hidden, pipeline(rgb).prediction[0, ..., 0])
    np.testing.assert_array_equal(hidden, PipelinePredictor(pipeline)(rgb, None))
    assert not np.allclose(known, hidden, rtol=1e-3)


def test_pipeline_predictor_is_deterministic_with_noise(tmp_path: Any) -> None:
    toy_model().save_pretrained(tmp_path)
    rgb = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    first = PipelinePredictor.from_pretrained(tmp_path, num_inference_steps=3, seed=1)
    np.testing.assert_array_equal(first(rgb, None), first(rgb, None))
    other = PipelinePredictor.from_pretrained(tmp_path, num_inference_steps=3, seed=2)
    assert not np.allclose(first(rgb, None), other(rgb, None))


@pytest.mark.parametrize("tile_size", [None, 12])
def test_a_pictures_noise_does_not_depend_on_the_others(tile_size: int | None) -> None:
    rng = np.random.default_rng(0)
    shown = [
        Observation(str(i), rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), None)
        for i in range(3)
    ]
    predictor = PipelinePredictor(toy_model(), 2, ensemble_size=2, tile_size=tile_size)
    together = predictor.predict(shown)
    for one, estimate in zip(shown, together, strict=True):
        np.testing.assert_allclose(estimate.depth, predictor.predict([one])[0].depth, rtol=1e-4)
    same = predictor.predict([shown[0]] * 2)  # frames of a sequence: no flicker from the noise
    np.testing.assert_allclose(same[0].depth, same[1].depth, rtol=1e-4)
    other = PipelinePredictor(toy_model(), 2, ensemble_size=2, seed=1, tile_size=tile_size)
    assert not np.allclose(other.predict(shown[:1])[0].depth, together[0].depth, rtol=1e-3)
