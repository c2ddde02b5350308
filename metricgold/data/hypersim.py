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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricgold.config import DatasetConfig
from metricgold.data.archives import zip_names
from metricgold.data.dataset import (
    Dataset,
    DatasetError,
    FrameRef,
    ReadMetadata,
    RemoteFile,
    Split,
    UnfitError,
    is_selected,
    masked_frame,
    named_in,
    on_stride,
    part_of,
    reading,
    unique,
)
from metricgold.data.hdf5_chunks import read_array
from metricgold.data.sample import Frame
from metricgold.data.tone_map import tone_map
from metricgold.geometry import depth_to_ray_distance, hypersim_intrinsics

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

_PUBLIC = "included_in_public_release"
_PARTITIONS = ("train", "val", "test")
_DEPTH = re.compile(
    r"(ai_\d+_\d+)/images/scene_(cam_\d+)_geometry_hdf5/frame\.(\d+)\.depth_meters\.hdf5$"
)
_COLOUR = re.compile(r"(ai_\d+_\d+)/images/scene_(cam_\d+)_final_hdf5/frame\.(\d+)\.color\.hdf5$")


def colour_member(scene: str, camera: str, frame: int) -> str:
    """Path of a frame's HDR colour inside ``scenes/{scene}.zip``."""
    return f"{scene}/images/scene_{camera}_final_hdf5/frame.{frame:04d}.color.hdf5"


def depth_member(scene: str, camera: str, frame: int) -> str:
    """Path of a frame's ray distance inside ``scenes/{scene}.zip``."""
    return f"{scene}/images/scene_{camera}_geometry_hdf5/frame.{frame:04d}.depth_meters.hdf5"


def parse_cameras(text: str) -> dict[str, np.ndarray]:
    """Scene name to ``M_cam_from_uv`` [3, 3] from ``metadata_camera_parameters.csv``.

    Raises:
        DatasetError: a column is missing, or a cell does not hold what it should.
    """
    fields = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    with _table_of(CAMERA_CSV):
        return {
            row["scene_name"]: np.array([float(row[f]) for f in fields]).reshape(3, 3)
            for row in _rows(text, ["scene_name", *fields])
        }


def parse_split(text: str) -> dict[tuple[str, str, int], str]:
    """(scene, camera, frame) of every public frame to ``train``, ``val`` or ``test``.

    Raises:
        DatasetError: a column is missing, or a cell does not hold what it should.
    """
    keys = ("scene_name", "camera_name", "frame_id", "split_partition_name")
    found = {}
    with _table_of(SPLIT_CSV):
        for row in _rows(text, [*keys, _PUBLIC]):
            if row[_PUBLIC] == "True":
                scene, camera, frame, partition = (row[key] for key in keys)
                if partition not in _PARTITIONS:
                    raise ValueError(f"'{partition}' is none of {', '.join(_PARTITIONS)}")
                found[scene, camera, int(frame)] = partition
    return found


@contextmanager
def _table_of(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the table called ``name``."""
    try:
        yield
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DatasetError(f"hypersim: {name} cannot be read: {error}") from None


def _rows(text: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    for column in columns:
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"no column '{column}'")
    yield from reader


def read_radiance(data: bytes) -> NDArray[np.float16]:
    """HDR colour [H, W, 3], linear, from the bytes of a ``color.hdf5``.

    Raises:
        ValueError: it is damaged, or not a colour picture.
    """
    return _as_half(read_array(data), ("height", "width", 3), "colour")


def read_ray_distance(data: bytes) -> NDArray[np.float16]:
    """Distance along the ray [H, W] in metres, NaN where nothing is, of a ``depth_meters.hdf5``.

    Raises:
        ValueError: it is damaged, or not a depth map.
    """
    return _as_half(read_array(data), ("height", "width"), "depth")


def _as_half(
    values: NDArray[np.generic], form: tuple[str | int, ...], what: str
) -> NDArray[np.float16]:
    fits = values.ndim == len(form) and all(
        n == wanted for n, wanted in zip(values.shape, form, strict=True) if isinstance(wanted, int)
    )
    if not fits or values.size == 0 or values.dtype != np.float16:
        raise ValueError(
            f"{what} must be float16 [{', '.join(map(str, form))}], "
            f"found {values.dtype} {list(values.shape)}"
        )
    return values.view(np.float16)


@lru_cache(maxsize=4)
def _camera(matrix: tuple[float, ...], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(K [3, 3], length of each pixel's ray [H, W]) of a scene; the same for all its frames."""
    intrinsics, _ = hypersim_intrinsics(np.array(matrix).reshape(3, 3), height, width)
    return intrinsics, depth_to_ray_distance(np.ones((height, width)), intrinsics)


class Hypersim(Dataset):
    """Scenes as zips of which only colour and depth members are fetched."""

    name = "hypersim"
    licence = (
        "CC BY-SA 3.0: name the Hypersim authors (Roberts et al., ICCV 2021) and share what you "
        "derive from the data alike"
    )
    shard_share = 0.25
    metadata_urls = METADATA_URLS

    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """The metadata CSVs and one zip a scene: see ``Dataset``."""
        files = [RemoteFile(path, urls=urls) for path, urls in METADATA_URLS.items()]
        scenes: dict[str, list[str]] = defaultdict(list)
        for (scene, camera, frame), partition in sorted(
            parse_split(read(SPLIT_CSV).decode("utf-8", "replace")).items()
        ):
            if not _may_be_in(partition, config):
                continue
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

    def group_of(self, path: str) -> str | None:
        """A group is a scene's zip: see ``Dataset``."""
        return None if path in METADATA_URLS else path

    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Frames with colour and depth, by the official split: see ``Dataset``."""
        cameras = parse_cameras((raw / CAMERA_CSV).read_text(encoding="utf-8"))
        split = parse_split((raw / SPLIT_CSV).read_text(encoding="utf-8"))
        refs = []
        for path in sorted((raw / "scenes").glob("*.zip")):
            archive = f"scenes/{path.name}"
            colours, depths = (_members(path, pattern) for pattern in (_COLOUR, _DEPTH))
            for scene, camera, number in sorted(colours.keys() | depths.keys()):
                partition = split.get((scene, camera, int(number)))
                if partition is None or not _wanted(f"{scene}/{camera}", config):
                    continue
                matrix = cameras.get(scene)
                refs.append(
                    FrameRef(
                        key=f"{scene}/{camera}/{int(number):04d}",
                        scene=f"{scene}/{camera}",
                        split=_split_of(partition),
                        rgb=part_of(archive, colours.get((scene, camera, number))),
                        depth=part_of(archive, depths.get((scene, camera, number))),
                        camera=() if matrix is None else tuple(matrix.ravel().tolist()),
                    )
                )
        return refs

    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Tone-mapped colour, z-depth from ray distance, the scene's own K: see ``Dataset``."""
        with reading("depth"):
            ray_distance = read_ray_distance(depth_bytes)
        with reading("picture"):
            radiance = read_radiance(rgb_bytes)
        if not ref.camera:
            raise UnfitError("camera", f"{CAMERA_CSV} has no row for this scene")
        intrinsics, ray_length = _camera(ref.camera, *ray_distance.shape)
        with np.errstate(invalid="ignore"):
            depth = ray_distance / ray_length  # float64
        seen = np.isfinite(depth)
        if radiance.shape[:2] != depth.shape:
            sizes = f"colour is {radiance.shape[:2]} and depth {depth.shape} pixels"
            raise UnfitError("size", sizes)
        low, high = DEPTH_RANGE_M
        valid = seen & (depth > low) & (depth < high)
        sky = np.zeros_like(valid)  # Hypersim does not tell sky from other emptiness
        with reading("picture"):
            rgb = tone_map(radiance, seen)
        return masked_frame(ref, rgb, depth, valid, sky, intrinsics)


def _members(path: Path, pattern: re.Pattern[str]) -> dict[tuple[str, ...], str]:
    """(scene, camera, frame) to member."""
    return unique(path, ((m.groups(), m.string) for m in map(pattern.search, zip_names(path)) if m))


def _wanted(path: str, config: DatasetConfig) -> bool:
    known_bad = [entry for entry in KNOWN_BAD if entry not in config.include]
    return is_selected(path, config) and not named_in(known_bad, path)


def _split_of(partition: str) -> Split:
    return "train" if partition == "train" else "holdout"


def _may_be_in(partition: str, config: DatasetConfig) -> bool:
    """Whether a frame of the official ``partition`` may be of a split that is wanted."""
    own_split = bool(config.holdout or config.holdout_last_frames)
    return own_split or _split_of(partition) in config.splits
