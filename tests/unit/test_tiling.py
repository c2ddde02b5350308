"""Tiles: they cover the picture, their weights sum up, and no seam is left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_model

from metricgold.evaluation.predictors import PipelinePredictor
from metricgold.geometry import intrinsics_from_fov
from metricgold.tiling import (
    TileGrid,
    blend,
    blurred,
    feather,
    predict_tiled,
    seam_error,
    tile_starts,
)

RNG = np.random.default_rng(0)


@given(st.integers(1, 400), st.integers(1, 200), st.floats(0.05, 0.9))
def test_tiles_cover_and_overlap(length: int, tile: int, overlap: float) -> None:
    starts = tile_starts(length, tile, overlap)
    side = min(tile, length)
    assert starts[0] == 0
    assert starts[-1] + side == length
    for before, after in itertools.pairwise(starts):
        assert after - before > 0
        shared = before + side - after
        assert shared >= np.floor(overlap * side) - 1


@given(st.integers(4, 300), st.integers(4, 100), st.floats(0.05, 0.49))
def test_weights_of_two_neighbours_sum_to_one(length: int, tile: int, overlap: float) -> None:
    starts = tile_starts(length, tile, overlap)
    side = min(tile, length)
    total = np.zeros(length)
    for index, start in enumerate(starts):
        total[start : start + side] += feather(side, starts, index)
    pairs = [a + side <= c for a, c in zip(starts, starts[2:], strict=False)]
    if all(pairs):  # nowhere more than two tiles
        np.testing.assert_allclose(total, 1.0, atol=1e-12)
    assert (total > 0).all()


def smooth_picture(height: int = 96, width: int = 144) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / 40.0
    return np.exp(1 + np.sin(x) * 0.5 + np.cos(y + x / 2) * 0.4).astype(np.float32)


@pytest.mark.parametrize("wrong", ["scale", "tilt"])
def test_tiles_of_another_scale_leave_no_seam(wrong: str) -> None:
    """Each tile is wrong in its own way by up to 40 %; the whole has the right layout."""
    truth = smooth_picture()
    grid = TileGrid.of((96, 144), 60, 0.25)
    assert grid.size == (40, 60)
    tiles, naive, weights = [], np.zeros_like(truth), np.zeros_like(truth)
    for part in grid.parts:
        factor = np.exp(RNG.uniform(-0.4, 0.4))
        if wrong == "tilt":
            factor = factor * np.linspace(1, np.exp(RNG.uniform(-0.4, 0.4)), 60)[None]
        tiles.append((truth[part] * factor).astype(np.float32))
        naive[part] += tiles[-1]
        weights[part] += 1
    found = blend(truth, tiles, grid)
    assert seam_error(naive / weights, grid) > 5
    assert seam_error(found, grid) < 1.2
    assert np.median(np.abs(found / truth - 1)) < 0.02


@pytest.mark.parametrize("deviation", [6.0, 9.5, 30.0])
def test_the_blur_is_nearly_a_gaussian(deviation: float) -> None:
    point = np.zeros((401, 401))
    point[200, 200] = 1.0
    found = blurred(point, (deviation, 2 * deviation))
    assert found.sum() == pytest.approx(1.0)
    for axis, expected in ((0, deviation), (1, 2 * deviation)):
        along, away = found.sum(axis=1 - axis), np.arange(401) - 200.0
        assert (along * away**2).sum() ** 0.5 == pytest.approx(expected, rel=0.1)
        gauss = np.exp(-((away / expected) ** 2) / 2) / (expected * np.sqrt(2 * np.pi))
        assert np.abs(along - gauss).sum() < 0.15  # of two that share nothing it is 2
    np.testing.assert_allclose(blurred(np.full((5, 7), 3.0), (1.0, 2.0)), 3.0)


def test_detail_comes_from_the_tiles() -> None:
    fine = np.exp(0.05 * RNG.standard_normal((96, 144)))
    truth = (smooth_picture() * fine).astype(np.float32)
    grid = TileGrid.of((96, 144), 60, 0.25)
    found = blend(smooth_picture(), [1.3 * truth[part] for part in grid.parts], grid)
    error, without = (np.abs(np.log(x / truth)).mean() for x in (found, smooth_picture()))
    assert error < 0.3 * without


def test_a_picture_in_tiles() -> None:
    pipeline = toy_model(fov_matters=True)
    rgb = RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    camera = intrinsics_from_fov(60, 60, 90)
    found = predict_tiled(pipeline, rgb, 24, intrinsics=camera, batch_size=4)
    assert found.shape == (60, 90)
    assert np.isfinite(found).all()
    whole = pipeline(rgb, fov_deg=60).prediction[0, ..., 0]
    assert not np.allclose(found, whole, rtol=1e-2)
    predictor = PipelinePredictor(pipeline, tile_size=24)
    np.testing.assert_allclose(predictor(rgb, camera), found, rtol=1e-4)
    small = predict_tiled(pipeline, rgb[:10, :20], fov_deg=60)
    np.testing.assert_allclose(small, pipeline(rgb[:10, :20], fov_deg=60).prediction[0, ..., 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tile_size": 24, "tile_overlap": 0.0}, "tile_overlap must lie"),
        ({"tile_size": 24, "tile_overlap": 0.95}, "tile_overlap must lie"),
        ({"tile_size": -1}, "tile_size must be 1"),
    ],
)
def test_an_impossible_option_is_told(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predict_tiled(toy_model(), np.zeros((60, 90, 3), np.uint8), **options)  # type: ignore[arg-type]


def test_one_picture_at_a_time() -> None:
    with pytest.raises(ValueError, match="got 2"):
        predict_tiled(toy_model(), np.zeros((2, 60, 90, 3), np.uint8))
