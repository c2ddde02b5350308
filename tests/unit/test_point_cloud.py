"""Normals, faces and files of points: against planes whose geometry is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricgold.errors import UserError
from metricgold.geometry import make_intrinsics, pixel_rays
from metricgold.point_cloud import faces, normals, write

K = make_intrinsics(40.0, 40.0, 15.5, 11.5)


def plane(normal: Any, distance: float, size: tuple[int, int] = (24, 32)) -> Any:
    """z-depth of the plane ``normal . p = -distance``, seen by K."""
    return (-distance / (pixel_rays(K, *size) @ normal)).astype(np.float32)


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(1, 50))
def test_normals_of_a_plane(x: float, y: float, distance: float) -> None:
    normal = np.array([x, y, -1.0]) / np.linalg.norm([x, y, -1.0])
    found = normals(plane(normal, distance), K)
    assert found.shape == (24, 32, 3)
    inside = found[1:-1, 1:-1].reshape(-1, 3)
    assert (inside @ normal).min() > np.cos(np.radians(1.5))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)


def test_a_picture_of_one_pixel_has_a_normal() -> None:
    assert normals(np.ones((1, 5), np.float32), K).tolist() == [[[0, 0, -1]] * 5]


def test_faces_are_all_there_and_none_crosses_an_edge() -> None:
    depth = np.full((5, 7), 2.0, np.float32)
    assert len(faces(depth)) == 2 * 4 * 6
    depth[:, 3:] = 4.0
    found = faces(depth)
    assert len(found) == 2 * 4 * (2 + 3)
    columns = found % 7
    assert not ((columns.min(axis=1) < 3) & (columns.max(axis=1) >= 3)).any()
    valid = np.ones((5, 7), bool)
    valid[2, 0] = False
    assert not (faces(depth, valid) == 2 * 7).any()


def test_a_mesh_faces_the_camera_and_has_the_area_of_the_plane(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    depth = np.full((24, 32), 4.0, np.float32)
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    valid = np.ones_like(depth, bool)
    write(tmp_path / "a.glb", depth, rgb, K, valid, mesh=True)
    (mesh,) = trimesh.load(tmp_path / "a.glb", force="scene").geometry.values()
    assert mesh.area == pytest.approx(31 * 23 * (4.0 / 40.0) ** 2, rel=1e-4)
    assert (mesh.face_normals @ [0, 0, 1] > 0.99).all(), "y up, z backward: towards the viewer"


def test_a_picture_of_edges_alone_has_no_mesh(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    depth = np.array([[1.0, 9.0], [9.0, 1.0]], np.float32)
    with pytest.raises(UserError, match="no surface to write"):
        write(tmp_path / "a.glb", depth, np.zeros((2, 2, 3), np.uint8), K, depth > 0, mesh=True)


def test_points_keep_their_place_and_colour(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    depth = np.full((24, 32), 4.0, np.float32)
    rgb = np.zeros((24, 32, 3), np.uint8)
    rgb[0, 0] = (200, 100, 50)
    valid = np.zeros_like(depth, bool)
    valid[0, 0] = True
    write(tmp_path / "a.ply", depth, rgb, K, valid)
    cloud = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_allclose(cloud.vertices, [[-15.5 / 10, -11.5 / 10, 4.0]], rtol=1e-5)
    assert cloud.colors[0][:3].tolist() == [200, 100, 50]
    with pytest.raises(UserError, match="no pixel has a depth"):
        write(tmp_path / "b.ply", depth, rgb, K, np.zeros_like(valid))
