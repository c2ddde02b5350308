"""Points of a laser scanner as a sparse depth picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from metricgold.geometry import project

Array = NDArray[np.floating]


def pose_matrix(rotation_wxyz: Sequence[float], translation: Sequence[float]) -> Array:
    """Rigid motion [4, 4] from a quaternion (w, x, y, z) and a translation in metres."""
    w, x, y, z = rotation_wxyz
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def named_pose(pose: Mapping[str, Mapping[str, float]]) -> Array:
    """:func:`pose_matrix` of ``{"rotation": {"qw": …}, "translation": {"x": …}}``."""
    rotation = [pose["rotation"][name] for name in ("qw", "qx", "qy", "qz")]
    return pose_matrix(rotation, [pose["translation"][name] for name in "xyz"])


def move(points: Array, pose: Array) -> Array:
    """Points [N, 3] in metres moved by ``pose`` [4, 4]."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def depth_picture(
    points: Array,
    intrinsics: Array,
    size: tuple[int, int],
    rounding: Literal["nearest", "down"],
    least_depth_m: float = 0.0,
) -> NDArray[np.float32]:
    """z-depth [H, W] in metres of points in the camera's frame, 0 where none falls.

    Of several points in one pixel the nearest counts. Nothing is done about points that the
    camera does not see because something nearer hides them.

    Args:
        points: [N, 3], OpenCV frame. intrinsics: K [3, 3]. size: (H, W).
        rounding: of pixel coordinates.
        least_depth_m: nearer points are left out.
    """
    points = points[points[:, 2] > least_depth_m].astype(np.float64)
    places = project(points, intrinsics)
    columns, rows = (np.rint(places) if rounding == "nearest" else np.floor(places)).T
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    far = np.full(size, np.inf)
    where = (rows[inside].astype(np.intp), columns[inside].astype(np.intp))
    np.minimum.at(far, where, points[inside, 2])
    return np.where(np.isfinite(far), far, 0).astype(np.float32)
