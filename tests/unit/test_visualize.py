"""Depth pictures: near is bright, far is dark, limits are kept, tiny pictures work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricgold import visualize

RAMP = np.geomspace(0.3, 80.0, 64, dtype=np.float32)[None].repeat(8, axis=0)


def luminance(picture: visualize.Picture) -> np.ndarray:
    return picture.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_near_is_bright_and_far_is_dark_all_along() -> None:
    row = luminance(visualize.colourise(RAMP, 0.3, 80.0))[0]
    assert (np.diff(row) <= 1.5).all()
    assert row[0] > 200
    assert row[-1] < 40


def test_colours_run_along_log_depth_and_saturate() -> None:
    depth = np.array([[1.0, 10.0, 100.0, 0.5, 1000.0]], np.float32)
    near, middle, far, nearer, farther = visualize.colourise(depth, 1.0, 100.0)[0]
    np.testing.assert_array_equal(middle, visualize.DEPTH_COLOURS[128])
    np.testing.assert_array_equal(near, visualize.DEPTH_COLOURS[0])
    np.testing.assert_array_equal(far, visualize.DEPTH_COLOURS[-1])
    np.testing.assert_array_equal(nearer, near)
    np.testing.assert_array_equal(farther, far)


def test_pixels_without_depth_are_grey() -> None:
    depth = np.array([[0.0, -1.0, np.nan, np.inf, 2.0]], np.float32)
    picture = visualize.colourise(depth)
    np.testing.assert_array_equal(picture[0, :4], [visualize.NO_DEPTH] * 4)
    assert tuple(picture[0, 4]) != visualize.NO_DEPTH


@pytest.mark.parametrize("value", [0.0, np.nan, 3.0])
def test_flat_and_empty_depth_have_limits(value: float) -> None:
    near, far = visualize.depth_limits(np.full((4, 4), value, np.float32))
    assert far / near >= 1.5 - 1e-6
    if value == 3.0:
        assert near < 3.0 < far


@pytest.mark.parametrize("limits", [(0.0001, 0.0001), (5.0, 2.0), (-1.0, 2.0), (1.0, np.inf)])
def test_impossible_limits_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="near < far"):
        visualize.colourise(RAMP, *limits)
    with pytest.raises(ValueError, match="near < far"):
        visualize.add_scale_bar(np.zeros((4, 4, 3), np.uint8), *limits)


@given(st.integers(1, 400), st.floats(0.1, 10.0), st.floats(1.05, 500.0))
def test_scale_bar_leaves_the_picture_alone(width: int, near: float, ratio: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, width, 3), dtype=np.uint8)
    result = visualize.add_scale_bar(image, near, near * ratio)
    assert result.dtype == np.uint8
    assert result.shape[1:] == (width, 3)
    assert result.shape[0] > 3
    np.testing.assert_array_equal(result[:3], image)


def test_scale_bar_shows_the_colours_and_writes_both_ends() -> None:
    bar = visualize.add_scale_bar(np.zeros((1, 300, 3), np.uint8), 0.5, 20.0)[1:]
    for colour in (visualize.DEPTH_COLOURS[0], visualize.DEPTH_COLOURS[-1]):
        assert (bar == colour).all(axis=-1).any()
    dark = (luminance(bar[16:]) < 120).any(axis=0)
    assert dark[:30].any(), "the near label is missing"
    assert dark[-30:].any(), "the far label is missing"


def test_panel_has_four_pictures_and_the_mean_error() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 64, 3), dtype=np.uint8)
    mask = np.ones(RAMP.shape, bool)
    good = visualize.panel(rgb, RAMP, RAMP, mask)
    bad = visualize.panel(rgb, RAMP, RAMP * 1.4, mask)
    assert good.dtype == np.uint8
    assert good.shape == bad.shape
    quarter = good.shape[1] // 4
    assert quarter >= 240, "tiny frames are enlarged"
    np.testing.assert_array_equal(good[30:60, : 2 * quarter], bad[30:60, : 2 * quarter])
    assert (good[:, 2 * quarter :] != bad[:, 2 * quarter :]).any()


def test_panel_without_any_valid_pixel() -> None:
    rgb = np.zeros((8, 64, 3), np.uint8)
    nothing = np.zeros(RAMP.shape, bool)
    assert visualize.panel(rgb, np.zeros_like(RAMP), RAMP, nothing).ndim == 3


def test_error_map_saturates_and_masks() -> None:
    error = np.array([[0.0, 0.25, 0.5, 7.0, np.nan]])
    mask = np.array([[True, True, True, True, False]])
    zero, middle, full, beyond, masked = visualize.colourise_error(error, mask)[0]
    np.testing.assert_array_equal(zero, visualize.ERROR_COLOURS[0])
    np.testing.assert_array_equal(middle, visualize.ERROR_COLOURS[128])
    np.testing.assert_array_equal(full, visualize.ERROR_COLOURS[-1])
    np.testing.assert_array_equal(beyond, full)
    np.testing.assert_array_equal(masked, visualize.NO_DEPTH)


def test_contact_sheet_places_every_picture() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [np.full((20 + i, 30, 3), c, np.uint8) for i, c in enumerate(colours)]
    sheet = visualize.contact_sheet(pictures, columns=2, titles=["a", "b", "c"])
    for i, colour in enumerate(colours):
        assert (sheet == colour).all(axis=-1).sum() == (20 + i) * 30
    with pytest.raises(ValueError, match="at least one"):
        visualize.contact_sheet([], columns=2)
