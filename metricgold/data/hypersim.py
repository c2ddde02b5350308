"""Hypersim: indoor, HDR colour, *ray distance*, a camera matrix of its own for each scene.

Layout and masks follow the dataset's public repository; K follows
:func:`metricgold.geometry.hypersim_intrinsics`, because 261 of the 457 public scenes do not
have the nominal camera.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from pathlib import Path

import h5py
import numpy as np

from metricgold.config import DatasetConfig
from metricgold.data.archives import zip_names
from metricgold.data.dataset import (
    Dataset,
    DatasetError,
    FrameRef,
    Part,
    ReadMetadata,
    RemoteFile,
    is_selected,
    masked_frame,
    named_in,
    on_stride,
)
from metricgold.data.sample import Frame
from metricgold.data.tone_map import tone_map
from metricgold.geometry import hypersim_intrinsics, ray_distance_to_depth

MIRROR = "https://docs-assets.developer.apple.com/ml-research/datasets/hypersim/v1"
CAMERA_CSV = "metadata_camera_parameters.csv"
SPLIT_CSV = "metadata_images_split_scene_v1.csv"
_REPOSITORY = "https://raw.githubusercontent.com/apple/ml-hypersim/main"
METADATA_URLS = {
    CAMERA_CSV: (f"{_REPOSITORY}/contrib/mikeroberts3000/{CAMERA_CSV}",),
    SPLIT_CSV: (f"{_REPOSITORY}/evermotion_dataset/analysis/{SPLIT_CSV}",),
}
DEPTH_RANGE_M = (1e-3, 65.0)
FRAME_BYTES = 3_650_000
"""Colour and depth of one native frame, on average."""

KNOWN_BAD = (
    "ai_003_001:cam_00", "ai_004_009:cam_01", "ai_013_001", "ai_015_006", "ai_023_004:cam_01",
    "ai_023_006", "ai_023_008:cam_01", "ai_023_009", "ai_026_013", "ai_026_018", "ai_026_020",
    "ai_038_007", "ai_046_001", "ai_048_004", "ai_053_005", "ai_012_007", "ai_031_006",
)  # fmt: skip
"""Left out unless ``include`` names exactly such an entry."""

_COLOUR = re.compile(r"(ai_\d+_\d+)/images/scene_(cam_\d+)_final_hdf5/frame\.(\d+)\.color\.hdf5$")


def colour_member(scene: str, camera: str, frame: int) -> str:
    """Path of a frame's HDR colour inside ``scenes/{scene}.zip``."""
    return f"{scene}/images/scene_{camera}_final_hdf5/frame.{frame:04d}.color.hdf5"


def depth_member(scene: str, camera: str, frame: int) -> str:
    """Path of a frame's ray distance inside ``scenes/{scene}.zip``."""
    return f"{scene}/images/scene_{camera}_geometry_hdf5/frame.{frame:04d}.depth_meters.hdf5"


def parse_cameras(text: str) -> dict[str, np.ndarray]:
    """Scene name to ``M_cam_from_uv`` [3, 3] from ``metadata_camera_parameters.csv``."""
    fields = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    try:
        return {
            row["scene_name"]: np.array([float(row[f]) for f in fields]).reshape(3, 3)
            for row in csv.DictReader(io.StringIO(text))
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"hypersim: {CAMERA_CSV} cannot be read: {error}") from None


def parse_split(text: str) -> dict[tuple[str, str, int], str]:
    """(scene, camera, frame) of every public frame to ``train``, ``val`` or ``test``."""
    try:
        return {
            (row["scene_name"], row["camera_name"], int(row["frame_id"])): row[
                "split_partition_name"
            ]
            for row in csv.DictReader(io.StringIO(text))
            if row["included_in_public_release"] == "True"
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"hypersim: {SPLIT_CSV} cannot be read: {error}") from None


def read_hdf5(data: bytes) -> np.ndarray:
    """The one array of a Hypersim HDF5 file (key ``dataset``)."""
    with h5py.File(io.BytesIO(data), "r") as file:
        return np.asarray(file["dataset"])


class Hypersim(Dataset):
    """Scenes as zips of which only colour and depth members are fetched."""

    name = "hypersim"
    metadata_urls = METADATA_URLS

    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """The metadata CSVs and one zip a scene: see ``Dataset``."""
        files = [RemoteFile(path, urls=urls) for path, urls in METADATA_URLS.items()]
        scenes: dict[str, list[str]] = defaultdict(list)
        for scene, camera, frame in sorted(parse_split(read(SPLIT_CSV).decode())):
            if on_stride(frame, config) and _wanted(f"{scene}/{camera}", config):
                scenes[scene] += [
                    colour_member(scene, camera, frame),
                    depth_member(scene, camera, frame),
                ]
        for scene, members in scenes.items():
            size = len(members) // 2 * FRAME_BYTES
            files.append(
                RemoteFile(f"scenes/{scene}.zip", members=tuple(members), expected_bytes=size)
            )
        return files

    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Frames with colour and depth, by the official split: see ``Dataset``."""
        cameras = parse_cameras((raw / CAMERA_CSV).read_text(encoding="utf-8"))
        split = parse_split((raw / SPLIT_CSV).read_text(encoding="utf-8"))
        refs = []
        for path in sorted((raw / "scenes").glob("*.zip")):
            names = set(zip_names(path))
            for match in filter(None, map(_COLOUR.search, sorted(names))):
                scene, camera, frame = match[1], match[2], int(match[3])
                depth = depth_member(scene, camera, frame)
                partition = split.get((scene, camera, frame))
                skip = not _wanted(f"{scene}/{camera}", config)
                if skip or partition is None or depth not in names or scene not in cameras:
                    continue
                archive = f"scenes/{path.name}"
                refs.append(
                    FrameRef(
                        key=f"{scene}/{camera}/{frame:04d}",
                        scene=f"{scene}/{camera}",
                        split="train" if partition == "train" else "holdout",
                        rgb=Part(archive, match.string),
                        depth=Part(archive, depth),
                        camera=tuple(cameras[scene].ravel().tolist()),
                    )
                )
        return refs

    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Tone-mapped colour, z-depth from ray distance, the scene's own K: see ``Dataset``."""
        ray_distance = read_hdf5(depth_bytes).astype(np.float64)  # [H, W], NaN: nothing there
        radiance = read_hdf5(rgb_bytes)  # [H, W, 3]
        matrix = np.array(ref.camera).reshape(3, 3)
        intrinsics, _ = hypersim_intrinsics(matrix, *ray_distance.shape)
        depth = ray_distance_to_depth(ray_distance, intrinsics)
        seen = np.isfinite(depth)
        low, high = DEPTH_RANGE_M
        valid = seen & (depth > low) & (depth < high)
        sky = np.zeros_like(valid)  # Hypersim does not tell sky from other emptiness
        return masked_frame(ref, tone_map(radiance, seen), depth, valid, sky, intrinsics)


def _wanted(path: str, config: DatasetConfig) -> bool:
    known_bad = [entry for entry in KNOWN_BAD if entry not in config.include]
    return is_selected(path, config) and not named_in(known_bad, path)
