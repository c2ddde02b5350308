"""The ray-caster against geometry worked out by hand, and its promise to be deterministic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metricgold import geometry as geo
from metricgold.data.procedural import (
    FOV_RANGE_DEG,
    Rendered,
    WorldKind,
    random_fov_x_deg,
    render,
    render_scene,
    to_srgb,
)
from metricgold.data.world.scene import Room, Viewpoint, World
from metricgold.data.world.shapes import Box, Cylinder, Ground, Shape, Sphere
from metricgold.data.world.textures import Material

SIZE = (24, 32)
OFF_CENTRE = geo.make_intrinsics(30.0, 28.0, 11.3, 14.6)
PLAIN = Material("plain", (0.5, 0.4, 0.3))


def world_of(*shapes: Shape, room: Room | None = None) -> World:
    return World(shapes, (), (1.0, 1.0, 1.0), lambda rng: level(), room)


def level(height: float = 1.5, yaw: float = 0.0, pitch: float = 0.0) -> Viewpoint:
    return Viewpoint((0.0, 0.0, height), yaw, pitch, 0.0)


def view(world: World, camera: Viewpoint) -> Rendered:
    return render(world, camera, np.asarray(OFF_CENTRE, np.float64), SIZE)


@pytest.mark.parametrize("kind", ["indoor", "street"])
def test_a_seed_always_gives_the_same_bytes(kind: WorldKind) -> None:
    matrix = np.asarray(OFF_CENTRE, np.float64)
    first, again = (render_scene(kind, 3, matrix, SIZE, 2) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a.depth.tobytes() == b.depth.tobytes()
        assert a.radiance.tobytes() == b.radiance.tobytes()
    assert not np.array_equal(first[0].depth, first[1].depth)  # two views of one world
    other = render_scene(kind, 4, matrix, SIZE, 1)
    assert not np.array_equal(first[0].depth, other[0].depth)


def test_an_unknown_world_is_named() -> None:
    with pytest.raises(ValueError, match="'sea'; known: indoor, street"):
        render_scene("sea", 0, np.asarray(OFF_CENTRE, np.float64), SIZE, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("yaw", [0.0, 1.0, -2.5])
def test_the_ground_below_a_level_camera(yaw: float) -> None:
    """A row that looks down by an angle sees the ground at height / tan(angle)."""
    depth = view(world_of(Ground(PLAIN)), level(1.5, yaw)).depth
    tangent = (np.arange(SIZE[0]) - OFF_CENTRE[1, 2]) / OFF_CENTRE[1, 1]
    below = tangent > 0
    assert below.sum() == 9
    expected = np.broadcast_to(1.5 / tangent[below, None], (9, SIZE[1]))
    np.testing.assert_allclose(depth[below], expected, rtol=1e-5)
    assert np.isinf(depth[~below]).all()


def test_a_camera_that_looks_down() -> None:
    """Along the axis, pitched by 30 degrees, the ground is height / sin(30 degrees) away."""
    matrix = geo.make_intrinsics(30.0, 30.0, 16.0, 12.0)
    camera = level(1.5, pitch=math.radians(30))
    depth = render(world_of(Ground(PLAIN)), camera, np.asarray(matrix, np.float64), SIZE).depth
    assert depth[12, 16] == pytest.approx(3.0, rel=1e-5)


def test_a_box_has_its_exact_depth_and_outline_under_an_off_centre_camera() -> None:
    """Front face of a 2 m cube 4 m ahead: constant z-depth inside its projected corners."""
    depth = view(world_of(Box((0.0, 5.0, 1.0), (1.0, 1.0, 1.0), PLAIN)), level()).depth
    corners = np.array([[-1.0, -0.5, 4.0], [1.0, 1.5, 4.0]])  # camera frame: y down
    (left, top), (right, bottom) = geo.project(corners, OFF_CENTRE)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    assert 100 < inside.sum() < inside.size / 2
    np.testing.assert_allclose(depth[inside], 4.0, rtol=1e-6)
    outside = depth[~inside]
    assert (np.isinf(outside) | (outside > 4.0)).all()  # the sky, or the cube's other faces


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [
        (Sphere((0.0, 6.0, 1.5), 1.0, PLAIN), 5.0),
        (Cylinder(0.0, 6.0, 0.5, 0.0, 3.0, PLAIN), 5.5),
        (Box((0.0, 6.0, 1.5), (0.5, 0.5, 0.5), PLAIN, math.pi / 4), 6 - math.sqrt(0.5)),
    ],
)
def test_the_nearest_point_of_a_shape(shape: Shape, nearest: float) -> None:
    matrix = geo.make_intrinsics(30.0, 30.0, 16.0, 12.0)
    depth = render(world_of(shape), level(), np.asarray(matrix, np.float64), SIZE).depth
    assert depth[12, 16] == pytest.approx(nearest, rel=1e-5)
    assert depth.min() == pytest.approx(nearest, rel=1e-5)
    behind = Viewpoint((0.0, 12.0, 1.5), 0.0, 0.0, 0.0)
    assert np.isinf(render(world_of(shape), behind, matrix, SIZE).depth).all()


@pytest.mark.parametrize("yaw", [0.0, 0.8, 2.0, 4.0])
def test_inside_a_closed_room_every_ray_ends_on_its_walls(yaw: float) -> None:
    room = Room(4.0, 6.0, 2.5, (PLAIN,) * 6, (), (0.0, 0.0, 0.0, 0.0), math.inf)
    camera = Viewpoint((1.0, 2.0, 1.5), yaw, 0.05, 0.0)
    rendered = view(world_of(room=room), camera)
    assert (rendered.depth > 0).all()
    assert rendered.depth.max() < math.hypot(4.0, 6.0, 2.5)
    points = geo.unproject(rendered.depth, OFF_CENTRE) @ camera.rotation().T + camera.position
    to_wall = np.abs(np.concatenate([points, points - [4.0, 6.0, 2.5]], axis=-1)).min(axis=-1)
    np.testing.assert_allclose(to_wall, 0.0, atol=1e-4)
    assert (points > -1e-4).all()
    assert (points < np.array([4.0, 6.0, 2.5]) + 1e-4).all()


@pytest.mark.parametrize("seed", range(6))
def test_furnished_rooms_have_positive_bounded_depth(seed: int) -> None:
    matrix = np.asarray(OFF_CENTRE, np.float64)
    for rendered in render_scene("indoor", seed, matrix, SIZE, 2):
        finite = np.isfinite(rendered.depth)
        assert not np.isnan(rendered.depth).any()
        assert rendered.depth.min() > 0.05
        assert rendered.depth[finite].max() < 150
        assert finite.mean() > 0.5
        assert np.isfinite(rendered.radiance).all()
        assert rendered.radiance.min() >= 0
        np.testing.assert_array_equal(rendered.intrinsics, matrix)


def test_fields_of_view_span_their_range() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([random_fov_x_deg(rng) for _ in range(300)])
    low, high = FOV_RANGE_DEG
    assert low <= drawn.min() < low + 3
    assert high - 3 < drawn.max() <= high


def test_brightness_of_the_picture() -> None:
    grey = to_srgb(np.full((4, 5, 3), 7.0, np.float32), brightness=0.8)
    assert grey.dtype == np.uint8
    assert (grey == 204).all()  # 0.8 of 255
    assert (to_srgb(np.zeros((2, 2, 3), np.float32)) == 0).all()
