"""Cameras: projection, K under crop, resize and flip, ray distance, Hypersim's tilted cameras."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricgold import geometry as geo
from metricgold.geometry import Array

SIZE = (12, 17)
seeds = st.integers(0, 10_000)


def camera(seed: int, skew: bool = True) -> Array:
    rng = np.random.default_rng(seed)
    matrix = geo.make_intrinsics(*rng.uniform(8, 40, 2), *rng.uniform(3, 12, 2))
    matrix[0, 1] = rng.normal(0, 1.0) if skew else 0.0
    return matrix


def depth_map(seed: int) -> Array:
    return np.random.default_rng(seed).uniform(0.2, 60, SIZE)


def pixel_grid(height: int, width: int) -> Array:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return np.stack([x, y], axis=-1)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_project_undoes_unproject(seed: int) -> None:
    points = geo.unproject(depth_map(seed), camera(seed))
    np.testing.assert_allclose(points[..., 2], depth_map(seed))
    np.testing.assert_allclose(geo.project(points, camera(seed)), pixel_grid(*SIZE), atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, top=st.integers(0, 5), left=st.integers(0, 8))
def test_crop_keeps_the_points(seed: int, top: int, left: int) -> None:
    depth, matrix = depth_map(seed), camera(seed)
    whole = geo.unproject(depth, matrix)[top:, left:]
    part = geo.unproject(depth[top:, left:], geo.crop_intrinsics(matrix, top, left))
    np.testing.assert_allclose(part, whole, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_flip_mirrors_the_points(seed: int) -> None:
    depth, matrix = depth_map(seed), camera(seed)
    expected = geo.unproject(depth, matrix)[:, ::-1] * [-1, 1, 1]
    flipped = geo.unproject(depth[:, ::-1], geo.flip_intrinsics(matrix, SIZE[1]))
    np.testing.assert_allclose(flipped, expected, atol=1e-9)
    twice = geo.flip_intrinsics(geo.flip_intrinsics(matrix, SIZE[1]), SIZE[1])
    np.testing.assert_allclose(twice, matrix)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, height=st.integers(5, 60), width=st.integers(5, 60))
def test_resize_keeps_the_outer_edges(seed: int, height: int, width: int) -> None:
    """Corners at -0.5 and size - 0.5 see the same rays before and after."""
    matrix = camera(seed)
    resized = geo.resize_intrinsics(matrix, SIZE, (height, width))
    for u, v in ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.3)):
        before = [u * SIZE[1] - 0.5, v * SIZE[0] - 0.5, 1.0]
        after = [u * width - 0.5, v * height - 0.5, 1.0]
        rays = np.linalg.inv(matrix) @ before, np.linalg.inv(resized) @ after
        np.testing.assert_allclose(*rays, atol=1e-9)
    assert geo.fov_y_deg(resized, height) == pytest.approx(geo.fov_y_deg(matrix, SIZE[0]))


def test_halving_by_pooling_sees_the_middle_of_each_block() -> None:
    half = geo.resize_intrinsics(camera(3), (8, 8), (4, 4))
    np.testing.assert_allclose(
        geo.pixel_rays(half, 4, 4),
        geo.pixel_rays(camera(3), 8, 8).reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)),
    )


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_ray_distance_round_trip_and_norm(seed: int) -> None:
    depth, matrix = depth_map(seed), camera(seed)
    distance = geo.depth_to_ray_distance(depth, matrix)
    np.testing.assert_allclose(distance, np.linalg.norm(geo.unproject(depth, matrix), axis=-1))
    np.testing.assert_allclose(geo.ray_distance_to_depth(distance, matrix), depth)


@settings(max_examples=30, deadline=None)
@given(fov=st.floats(10, 150), height=st.integers(2, 500))
def test_field_of_view_round_trip(fov: float, height: int) -> None:
    matrix = geo.intrinsics_from_fov(fov, height, height)
    assert geo.fov_y_deg(matrix, height) == pytest.approx(fov)
    np.testing.assert_allclose(matrix[:2, 2], (height - 1) / 2)


@pytest.mark.parametrize("fov", [0.0, 180.0, -5.0, math.nan])
def test_impossible_field_of_view(fov: float) -> None:
    with pytest.raises(ValueError, match="field of view"):
        geo.intrinsics_from_fov(fov, 10, 10)


def nominal_hypersim(fov_x: float = math.pi / 3) -> Array:
    """M_cam_from_uv of an upright, centred camera (the dataset's default: 60 degrees)."""
    half = math.tan(fov_x / 2)
    return np.diag([half, half * 768 / 1024, 1.0]) @ np.diag([1, 1, -1.0])


def test_hypersim_nominal_camera() -> None:
    matrix, rotation = geo.hypersim_intrinsics(nominal_hypersim())
    assert matrix[0, 0] == pytest.approx(886.81, abs=0.01)
    assert matrix[1, 1] == pytest.approx(886.81, abs=0.01)
    assert (matrix[0, 2], matrix[1, 2]) == pytest.approx((511.5, 383.5))
    assert matrix[0, 1] == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(rotation, np.eye(3), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=seeds)
def test_hypersim_tilted_camera(seed: int) -> None:
    """Any M: rays rotated upright by Q are K's own rays, and the factors multiply back."""
    rng = np.random.default_rng(seed)
    m_cam_from_uv = nominal_hypersim() + rng.normal(0.0, 0.15, (3, 3))
    matrix, rotation = geo.hypersim_intrinsics(m_cam_from_uv)
    np.testing.assert_allclose(np.tril(matrix, -1), 0.0, atol=1e-8 * abs(matrix).max())
    assert (np.diag(matrix) > 0).all()
    assert matrix[2, 2] == pytest.approx(1.0)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    for x, y in ((0, 0), (1023, 0), (300, 767), (511.5, 383.5)):
        uv = [2 * (x + 0.5) / 1024 - 1, 1 - 2 * (y + 0.5) / 768, 1.0]
        ray = np.diag([1, -1, -1.0]) @ m_cam_from_uv @ uv  # OpenCV axes
        upright = rotation.T @ ray
        own = np.linalg.inv(matrix) @ [x, y, 1.0]
        np.testing.assert_allclose(upright / upright[2], own, rtol=1e-7, atol=1e-9)


def test_hypersim_known_tilt_is_found() -> None:
    """A camera rotated by 5 degrees about its x axis has the nominal K and that rotation."""
    angle = math.radians(5)
    tilt = np.array(
        [
            [1, 0, 0],
            [0, math.cos(angle), -math.sin(angle)],
            [0, math.sin(angle), math.cos(angle)],
        ]
    )
    flip = np.diag([1, -1, -1.0])
    matrix, rotation = geo.hypersim_intrinsics(flip @ tilt @ flip @ nominal_hypersim())
    np.testing.assert_allclose(rotation, tilt, atol=1e-12)
    assert matrix[1, 1] == pytest.approx(886.81, abs=0.01)


def test_hypersim_singular_matrix() -> None:
    with pytest.raises(ValueError, match="singular"):
        geo.hypersim_intrinsics(np.zeros((3, 3)))


def test_ray_latent_by_hand() -> None:
    """2 x 4 cells, 90 degrees: the upper edge is at tangent 1, the left edge at 2."""
    rays = geo.ray_latent(np.array([90.0]), (2, 4))
    assert rays.shape == (1, 4, 2, 4)
    assert rays.dtype == np.float32
    np.testing.assert_allclose(rays[0, :, 0, 0], [-0.75, -0.5, -1.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(rays[0, :, 0, 3], [0.75, -0.5, 1.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(rays[0, :, 1, 1], [-0.25, 0.5, -0.5, 0.5], atol=1e-6)


def test_ray_latent_fills_up_with_zeros_and_needs_four_channels() -> None:
    wide = geo.ray_latent(np.array([50.0, math.nan]), (3, 5), channels=16)
    assert wide.shape == (2, 16, 3, 5)
    np.testing.assert_array_equal(wide[:, :4], geo.ray_latent(np.array([50.0, math.nan]), (3, 5)))
    assert (wide[:, 4:] == 0).all()
    with pytest.raises(ValueError, match="4 channels or more, got 3"):
        geo.ray_latent(np.array([50.0]), (3, 5), channels=3)


def test_ray_latent_of_an_unknown_camera() -> None:
    unknown, known = geo.ray_latent(np.array([math.nan, 60.0]), (3, 5))
    assert (unknown[2:] == 0).all()
    np.testing.assert_array_equal(unknown[:2], known[:2])
    assert np.abs(known[2:]).max() > 0.3


@settings(max_examples=30, deadline=None)
@given(fov=st.floats(10, 150), height=st.integers(1, 9), width=st.integers(1, 9))
def test_ray_latent_holds_the_rays_of_a_centred_camera(fov: float, height: int, width: int) -> None:
    rays = geo.ray_latent(np.array([fov]), (height, width))[0]
    np.testing.assert_allclose(rays, -rays[:, ::-1, ::-1], rtol=1e-5, atol=1e-6)
    focal = height / (2 * math.tan(math.radians(fov) / 2))
    matrix = geo.make_intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)
    expected = geo.pixel_rays(matrix, height, width)[..., :2].transpose(2, 0, 1)
    np.testing.assert_allclose(rays[2:], expected, rtol=1e-5, atol=1e-5)
