"""The only place for intrinsics, field of view, ray distance, unprojection.

Camera frame: OpenCV (x right, y down, z forward). A pixel's centre is at integer
coordinates: the image spans [-0.5, W - 0.5]. K is [3, 3] in pixels; it may carry skew.
Everything here is numpy, float64 inside, and free of torch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

RAY_CHANNELS = 4
"""How many channels of :func:`ray_latent` say something."""


def make_intrinsics(
    focal_x_px: float, focal_y_px: float, centre_x_px: float, centre_y_px: float
) -> Array:
    """K [3, 3] without skew."""
    return np.array(
        [[focal_x_px, 0.0, centre_x_px], [0.0, focal_y_px, centre_y_px], [0.0, 0.0, 1.0]]
    )


def intrinsics_from_fov(fov_x_deg: float, height: int, width: int) -> Array:
    """Centred square-pixel K of a camera with horizontal field of view ``fov_x_deg``."""
    if not 0 < fov_x_deg < 180:
        raise ValueError(f"field of view must lie in (0, 180) degrees, got {fov_x_deg}")
    focal = width / (2.0 * math.tan(math.radians(fov_x_deg) / 2.0))
    return make_intrinsics(focal, focal, (width - 1) / 2.0, (height - 1) / 2.0)


def fov_y_deg(intrinsics: Array, height: int) -> float:
    """Vertical field of view ``2 atan(H / (2 f_y))`` in degrees."""
    return math.degrees(2.0 * math.atan(height / (2.0 * float(intrinsics[1, 1]))))


def pixel_rays(intrinsics: Array, height: int, width: int) -> Array:
    """Rays K^-1 [x, y, 1] with z = 1, one a pixel: [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)  # [H, W, 3]
    return pixels @ np.linalg.inv(intrinsics).T


def unproject(depth: Array, intrinsics: Array) -> Array:
    """z-depth [H, W] in metres to points [H, W, 3] in metres, camera frame."""
    return pixel_rays(intrinsics, *depth.shape) * depth[..., None]


def project(points: Array, intrinsics: Array) -> Array:
    """Points [..., 3] in metres, camera frame, to pixel coordinates [..., 2] (x, y)."""
    homogeneous = points @ intrinsics.T
    return homogeneous[..., :2] / homogeneous[..., 2:3]


def ray_distance_to_depth(ray_distance: Array, intrinsics: Array) -> Array:
    """Distance along the ray [H, W] in metres to z-depth [H, W] in metres."""
    return ray_distance / np.linalg.norm(pixel_rays(intrinsics, *ray_distance.shape), axis=-1)


def depth_to_ray_distance(depth: Array, intrinsics: Array) -> Array:
    """z-depth [H, W] in metres to distance along the ray [H, W] in metres."""
    return depth * np.linalg.norm(pixel_rays(intrinsics, *depth.shape), axis=-1)


def crop_intrinsics(intrinsics: Array, top: int, left: int) -> Array:
    """K after rows above ``top`` and columns left of ``left`` are cut off."""
    shifted = intrinsics.copy()
    shifted[0, 2] -= left
    shifted[1, 2] -= top
    return shifted


def resize_intrinsics(
    intrinsics: Array, old_size: tuple[int, int], new_size: tuple[int, int]
) -> Array:
    """K after a resize from (H, W) to (H', W') that keeps the image's outer edges."""
    scale_y, scale_x = new_size[0] / old_size[0], new_size[1] / old_size[1]
    matrix = np.array(
        [[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1.0]]
    )
    return matrix @ intrinsics


def flip_intrinsics(intrinsics: Array, width: int) -> Array:
    """K after a left-right flip; skew changes sign."""
    flipped = intrinsics.copy()
    flipped[0, 2] = (width - 1) - intrinsics[0, 2]
    flipped[0, 1] = -intrinsics[0, 1]
    return flipped


def hypersim_intrinsics(
    m_cam_from_uv: Array, height: int = 768, width: int = 1024
) -> tuple[Array, Array]:
    """Exact K of a Hypersim scene and the rotation that makes its camera upright.

    Hypersim gives ``M_cam_from_uv`` (uv in [-1, 1], y up, camera looking down -z), which
    may be tilted and off-centre. With ``B = diag(1,-1,-1) M A`` (A: pixels to uv) and the
    sign-fixed factorisation ``B = Q U``, ``K = U^-1`` scaled to ``K[2, 2] = 1``.

    Returns:
        K [3, 3] in pixels (possibly with skew) and Q [3, 3] (rotate poses by it).
    """
    pixels_to_uv = np.array(
        [[2 / width, 0, 1 / width - 1], [0, -2 / height, 1 - 1 / height], [0, 0, 1.0]]
    )
    matrix = np.diag([1.0, -1.0, -1.0]) @ np.asarray(m_cam_from_uv, float) @ pixels_to_uv
    rotation, upper = np.linalg.qr(matrix)
    signs = np.sign(np.diag(upper))
    if np.any(signs == 0):
        raise ValueError("camera matrix M_cam_from_uv is singular")
    rotation, upper = rotation * signs, signs[:, None] * upper
    intrinsics = np.linalg.inv(upper)
    return intrinsics / intrinsics[2, 2], rotation


def ray_latent(
    fov_y_deg: Array, size: tuple[int, int], channels: int = RAY_CHANNELS
) -> NDArray[np.float32]:
    """What the one-step model starts from in place of noise: [B, C, h, w], a picture of the camera.

    At t = 999 with zero terminal SNR the noisy latent says nothing of the depth, so its
    channels are free: the first two hold the position in [-1, 1] (x, y), the next two the
    ray's tangents ``x tan(fov_x/2)`` and ``y tan(fov_y/2)``, zeros for an unknown camera
    (NaN); the rest are zeros. The principal point is taken to be the centre.

    Args:
        fov_y_deg: vertical fields of view [B] in degrees, NaN where unknown.
        size: latent height and width; cells are taken to be square.
        channels: C, that of the VAE's latent; 4 or more.

    Raises:
        ValueError: too few channels.
    """
    if channels < RAY_CHANNELS:
        raise ValueError(f"a ray latent needs {RAY_CHANNELS} channels or more, got {channels}")
    height, width = size
    y, x = np.meshgrid(
        (np.arange(height) + 0.5) * (2.0 / height) - 1.0,
        (np.arange(width) + 0.5) * (2.0 / width) - 1.0,
        indexing="ij",
    )
    tangent = np.nan_to_num(np.tan(np.radians(np.asarray(fov_y_deg, np.float64)) / 2.0))
    t = tangent[:, None, None]
    rays = np.zeros((len(t), channels, height, width), np.float32)
    rays[:, 0], rays[:, 1] = x, y
    rays[:, 2], rays[:, 3] = x * t * (width / height), y * t
    return rays
