"""Rendered frames packed as Hypersim, Virtual KITTI 2 and TartanAir pack theirs.

Only the size in pixels differs, so that the code that reads the real archives reads these.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold.data import hypersim, virtual_kitti
from metricgold.data import tartanair_v2 as v2
from metricgold.data.archive_writer import Member
from metricgold.data.procedural import Rendered
from metricgold.data.tone_map import tone_map
from metricgold.geometry import depth_to_ray_distance

TARTANAIR_SKY_M = 10_000.0
_HALF_MAX = 65504.0
_BGRA = [2, 1, 0, 3]
_PHYSICAL = (
    "anisotropy", "blades_enable", "blades_num", "blades_rotation", "bmpaperture_affects_exposure",
    "bmpaperture_enable", "bmpaperture_resolution", "bmpaperture_tex", "center_bias", "distortion",
    "distortion_tex", "distortion_type", "dof_display_threshold", "dont_affect_settings",
    "enable_thin_lens_equation", "exposure", "f_number", "film_width", "focal_length",
    "focus_distance", "fov", "horizontal_offset", "horizontal_shift", "ISO", "latency", "lens_file",
    "lens_shift", "optical_vignetting", "rolling_shutter_duration", "rolling_shutter_mode",
    "shutter_angle", "shutter_offset", "shutter_speed", "specify_focus", "specify_fov", "subdivs",
    "target_distance", "targeted", "type", "use_dof", "use_moblur", "vertical_offset", "vignetting",
    "white_balance", "zoom_factor",
)  # fmt: skip
_SETTINGS = {
    "auto_corrections_mode": 1.0, "auto_exposure": 0.0, "auto_exposure_compensation": 0.0,
    "auto_fit": 0.0, "auto_white_balance": 0.0, "curve": 1.0, "dist": 2.0,
    "dont_affect_settings": False, "fov": "", "height": 400.0, "image_planes": "", "type": 0.0,
}  # fmt: skip
CAMERA_COLUMNS = (
    "scene_name", "settings_output_img_height", "settings_output_img_width",
    "settings_units_info_meters_scale", "use_camera_physical",
    *(f"camera_physical_{word}" for word in _PHYSICAL),
    *(f"settings_camera_{word}" for word in _SETTINGS),
    *(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)),
    *(f"M_proj_{i}{j}" for i in range(4) for j in range(4)),
)  # fmt: skip
SPLIT_COLUMNS = (
    "scene_name", "camera_name", "frame_id", "included_in_public_release", "exclude_reason",
    "split_partition_name",
)  # fmt: skip


def hypersim_members(scene: str, camera: str, frames: list[Rendered]) -> list[Member]:
    """Colour (fp16 HDR), ray distance (fp16, NaN where nothing is) and a preview a frame."""
    archive = f"scenes/{scene}.zip"
    members = []
    for i, frame in enumerate(frames):
        seen = np.isfinite(frame.depth)
        distance = depth_to_ray_distance(np.where(seen, frame.depth, np.nan), frame.intrinsics)
        colour = np.clip(frame.radiance, 0.0, _HALF_MAX)
        preview = f"{scene}/images/scene_{camera}_final_preview/frame.{i:04d}.tonemap.jpg"
        members += [
            Member(archive, hypersim.colour_member(scene, camera, i), hdf5_bytes(colour)),
            Member(archive, hypersim.depth_member(scene, camera, i), hdf5_bytes(distance)),
            Member(archive, preview, _picture_bytes(tone_map(colour, seen), "JPEG", quality=85)),
        ]
    return members


def hdf5_bytes(values: NDArray[np.floating]) -> bytes:
    """An array as fp16 HDF5 under the key ``dataset``: gzip-9, chunks of 96x128 (x1)."""
    buffer = io.BytesIO()
    height, width = values.shape[:2]
    chunks = (min(96, height), min(128, width), *(1 for _ in values.shape[2:]))
    with h5py.File(buffer, "w") as file:
        file.create_dataset(
            "dataset",
            data=values.astype(np.float16),
            chunks=chunks,
            compression="gzip",
            compression_opts=9,
        )
    return buffer.getvalue()


def hypersim_camera_matrix(
    fov_x_deg: float, size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """``M_cam_from_uv`` [3, 3] of a camera with a tilted picture plane.

    ``shift`` is the tangent of the plane's tilt about the vertical and the horizontal axis;
    0, 0 gives an upright, centred camera. In the genuine table the tilts reach 0.4.
    """
    tilt = math.hypot(1.0, *shift)
    half_width = math.tan(math.radians(fov_x_deg) / 2)
    half_height = half_width * size[0] / size[1]
    return np.array(
        [
            [half_width * tilt, 0.0, 0.0],
            [0.0, half_height, 0.0],
            [half_width * shift[0], half_height * shift[1], -tilt],
        ]
    )


def hypersim_camera_csv(matrices: Mapping[str, NDArray[np.float64]], size: tuple[int, int]) -> str:
    """``metadata_camera_parameters.csv``: a row a scene with its ``M_cam_from_uv``."""
    rows = []
    for scene, matrix in matrices.items():
        inverse = np.linalg.inv(matrix)
        projection = np.zeros((4, 4))
        projection[[0, 1, 3], :3] = inverse
        projection[2, 2:] = -1.002002002002002, -2.002002002002002  # planes at 1 and 1000
        row: dict[str, object] = dict.fromkeys(CAMERA_COLUMNS, "")
        row |= {f"settings_camera_{word}": value for word, value in _SETTINGS.items()}
        row |= {f"M_cam_from_uv_{i}{j}": float(matrix[i, j]) for i, j in np.ndindex(3, 3)}
        row |= {f"M_proj_{i}{j}": float(projection[i, j]) for i, j in np.ndindex(4, 4)}
        row |= {
            "scene_name": scene,
            "settings_output_img_height": float(size[0]),
            "settings_output_img_width": float(size[1]),
            "settings_units_info_meters_scale": 0.0254,
            "use_camera_physical": False,
            "settings_camera_fov": 2 * math.atan(float(matrix[0, 0])),
        }
        rows.append(row)
    return _csv_text(CAMERA_COLUMNS, rows)


def hypersim_split_csv(frames: Iterable[tuple[str, str, int, str]]) -> str:
    """``metadata_images_split_scene_v1.csv`` from (scene, camera, frame, partition)."""
    rows = [
        dict(zip(SPLIT_COLUMNS, (scene, camera, frame, True, "", partition), strict=True))
        for scene, camera, frame, partition in frames
    ]
    return _csv_text(SPLIT_COLUMNS, rows)


def _csv_text(columns: tuple[str, ...], rows: list[dict[str, object]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def virtual_kitti_members(
    sequence: str, camera: str, first_frame: int, frames: list[Rendered]
) -> list[Member]:
    """JPEG picture and centimetre PNG16 a frame; ``sequence`` is such as ``Scene02/clone``."""
    members = []
    for i, frame in enumerate(frames, start=first_frame):
        sky = ~np.isfinite(frame.depth)
        nearest = np.rint(np.where(sky, np.inf, frame.depth) * 100.0)
        centimetres = np.clip(nearest, 0, virtual_kitti.SKY_VALUE).astype(np.uint16)
        rgb = tone_map(frame.radiance, np.ones_like(sky))
        folder = f"{sequence}/frames"
        members += [
            Member(
                virtual_kitti.RGB_TAR,
                f"{folder}/rgb/{camera}/rgb_{i:05d}.jpg",
                _picture_bytes(rgb, "JPEG", quality=95),
            ),
            Member(
                virtual_kitti.DEPTH_TAR,
                f"{folder}/depth/{camera}/depth_{i:05d}.png",
                _picture_bytes(centimetres, "PNG", compress_level=1),
            ),
        ]
    return members


def virtual_kitti_intrinsics(rows: Iterable[tuple[int, int, NDArray[np.floating]]]) -> str:
    """``intrinsic.txt`` from (frame, camera, K)."""
    lines = [virtual_kitti.INTRINSIC_HEADER]
    for frame, camera, k in sorted(rows, key=lambda row: row[:2]):
        numbers = (k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        lines.append(f"{frame} {camera} " + " ".join(f"{float(n):.10g}" for n in numbers))
    return "\n".join(lines) + "\n"


def tartanair_members(scene: str, frames: list[Rendered]) -> list[Member]:
    """PNG picture and float32 planar depth a frame; ``scene`` is such as ``office/Easy/P000``."""
    folder = scene.rsplit("/", 1)[0]
    members = []
    for i, frame in enumerate(frames):
        sky = ~np.isfinite(frame.depth)
        depth = np.where(sky, TARTANAIR_SKY_M, frame.depth).astype(np.float32)
        buffer = io.BytesIO()
        np.save(buffer, depth)
        rgb = _picture_bytes(tone_map(frame.radiance, np.ones_like(sky)), "PNG", compress_level=1)
        members += [
            Member(f"{folder}/image_left.zip", f"{scene}/image_left/{i:06d}_left.png", rgb),
            Member(
                f"{folder}/depth_left.zip",
                f"{scene}/depth_left/{i:06d}_left_depth.npy",
                buffer.getvalue(),
            ),
        ]
    return members


def tartanair_v2_members(scene: str, frames: list[Rendered]) -> list[Member]:
    """As V2 has them: depth is a float32 in a PNG's channels; ``scene`` as ``House/easy/P000``."""
    environment, difficulty, trajectory = scene.split("/")
    members = []
    for i, frame in enumerate(frames):
        sky = ~np.isfinite(frame.depth)
        depth = np.where(sky, TARTANAIR_SKY_M, frame.depth).astype("<f4")
        bgra = np.ascontiguousarray(depth).view(np.uint8).reshape(*depth.shape, 4)
        rgb = tone_map(frame.radiance, np.ones_like(sky))
        for kind, ending, pixels in (("image", "", rgb), ("depth", "_depth", bgra[..., _BGRA])):
            members.append(
                Member(
                    f"{v2.FOLDER}/{v2.archive(environment, difficulty, kind)}",
                    f"{trajectory}/{kind}_lcam_front/{i:06d}_lcam_front{ending}.png",
                    _picture_bytes(pixels, "PNG", compress_level=1),
                )
            )
    return members


def _picture_bytes(values: NDArray[np.generic], kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()
