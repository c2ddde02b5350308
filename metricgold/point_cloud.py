"""Depth as geometry: normals, point clouds and meshes in metres, for viewers of PLY and GLB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.errors import UserError
from metricgold.geometry import unproject

EDGE_RATIO = 1.1
"""Neighbours whose depths differ by more are of two surfaces: no face joins them."""

Depth = NDArray[np.float32]


class NothingToWriteError(UserError):
    """A picture has no points or no surface; the message says why."""


def normals(depth: Depth, intrinsics: NDArray[Any]) -> NDArray[np.float32]:
    """Unit normals [H, W, 3] of the surface, towards the camera, OpenCV frame.

    Cross product of central differences of the points; at a picture's rim one-sided ones.
    """
    points = unproject(depth.astype(np.float64), intrinsics)  # [H, W, 3]
    if min(depth.shape) < 2:
        flat = np.zeros((*depth.shape, 3), np.float32)
        flat[..., 2] = -1.0
        return flat
    down, right = np.gradient(points, axis=(0, 1))
    normal = np.cross(down, right)  # towards -z, the camera
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return (normal / np.maximum(length, 1e-12)).astype(np.float32)


def faces(depth: Depth, valid_mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Triangles [F, 3] of pixel numbers ``y W + x``, none across a depth edge or invalid pixel.

    Corners run so that a triangle faces the camera in a right-handed frame with y up.
    """
    height, width = depth.shape
    number = np.arange(height * width).reshape(height, width)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    both = np.concatenate(
        [np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)]
    )
    corner = depth.reshape(-1)[both]  # [F, 3]
    keep = corner.max(axis=1) <= EDGE_RATIO * corner.min(axis=1)
    if valid_mask is not None:
        keep &= valid_mask.reshape(-1)[both].all(axis=1)
    return both[keep]


def write(
    path: Path,
    depth: Depth,
    rgb: NDArray[np.uint8],
    intrinsics: NDArray[Any],
    valid_mask: NDArray[np.bool_],
    mesh: bool = False,
) -> None:
    """The valid pixels in their colours, as ``path`` ends: .ply (OpenCV frame) or .glb (y up).

    Points, or a mesh that is open at depth edges.

    Raises:
        NothingToWriteError: no pixel is valid, or there is no face for a mesh.
        UserError: trimesh is not installed.
    """
    trimesh = _trimesh()
    if not valid_mask.any():
        raise NothingToWriteError("no pixel has a depth, so there is no point to write")
    points = _in_frame_of(path, unproject(depth.astype(np.float64), intrinsics))  # [H, W, 3]
    if not mesh:
        shape = trimesh.PointCloud(points[valid_mask], colors=rgb[valid_mask])
    else:
        triangles = faces(depth, valid_mask)
        if not len(triangles):
            raise NothingToWriteError(
                "there is no surface to write: depth edges lie between all pixels"
            )
        vertices, colours = points.reshape(-1, 3), rgb.reshape(-1, 3)
        shape = trimesh.Trimesh(vertices, triangles, vertex_colors=colours, process=False)
        shape.remove_unreferenced_vertices()
    path.write_bytes(shape.export(file_type=path.suffix[1:]))


def _in_frame_of(path: Path, points: NDArray[Any]) -> NDArray[np.float32]:
    """PLY keeps the camera's frame (y down, z forward); glTF is defined with y up, z backward."""
    flip = np.array([1.0, -1.0, -1.0]) if path.suffix == ".glb" else np.ones(3)
    return (points * flip).astype(np.float32)


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError:
        raise UserError(
            "point clouds and meshes need the extra 'formats' (pip install 'metricgold[formats]')"
        ) from None
    return trimesh
