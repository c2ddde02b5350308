"""TartanAir: indoor and outdoor flights, float32 *planar* depth in metres, 90 degrees across.

V1 has 640x480 pixels and depth as npy. V2 (:mod:`metricgold.data.tartanair_v2`) is a second source
with more environments, taken where ``releases`` says so; its scenes begin with ``v2/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metricgold.config import DatasetConfig
from metricgold.data import tartanair_v2 as v2
from metricgold.data.archives import zip_names
from metricgold.data.dataset import (
    MAX_FRAME_PIXELS,
    Dataset,
    DatasetError,
    FrameRef,
    Part,
    ReadMetadata,
    RemoteFile,
    masked_frame,
    may_contain_selected,
    part_of,
    reading,
    unique,
)
from metricgold.data.npy import read_depth
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics
from metricgold.imaging import decode_picture

MIRRORS = (
    "https://airlab-cloud.andrew.cmu.edu:8080/swift/v1/"
    "AUTH_ac8533a83cff4d48bc8c608ad222d330/tartanair",
    "https://huggingface.co/datasets/theairlabcmu/tartanair/resolve/main",
)
ENVIRONMENTS = (
    "abandonedfactory", "abandonedfactory_night", "carwelding", "endofworld", "gascola",
    "hospital", "japanesealley", "neighborhood", "ocean", "office", "office2", "oldtown",
    "seasidetown", "seasonsforest", "seasonsforest_winter", "soulcity", "westerndesert",
)  # fmt: skip
"""All but ``amusement``, which stands inside an invisible dome."""
DIFFICULTIES = ("Easy", "Hard")
HOLDOUT_ENVIRONMENTS = ("office2", "oldtown")
"""No official split: one indoor and one outdoor environment, whole."""
DEPTH_LIMIT_M = 512.0
SKY_FROM_M = 200.0

_KINDS = ("image", "depth")
_IMAGE = re.compile(r"(P\d+)/image_left/(\d+)_left\.png$")
_DEPTH = re.compile(r"(P\d+)/depth_left/(\d+)_left_depth\.npy$")
_FOLDER = re.compile(r"(\w+/(?:Easy|Hard|Data_easy|Data_hard))/$")


def native_intrinsics(height: int, width: int) -> np.ndarray:
    """K [3, 3]: 90 degrees across; 320, 320, 320, 240 at the native 480x640."""
    return make_intrinsics(width / 2, width / 2, width / 2, height / 2)


class TartanAir(Dataset):
    """A zip of pictures and a zip of depth for each environment and difficulty."""

    name = "tartanair"
    licence = "CC BY 4.0: name the TartanAir authors (Wang et al., IROS 2020)"
    shard_share = 0.25

    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """Two zips an environment and difficulty: see ``Dataset``."""
        files = []
        if "v1" in config.releases:
            for folder in (f"{e}/{d}" for e in ENVIRONMENTS for d in DIFFICULTIES):
                if may_contain_selected(folder, config):
                    files += [RemoteFile(f"{folder}/{kind}_left.zip") for kind in _KINDS]
        if "v2" in config.releases:
            for environment, difficulty in (
                (e, d) for e in v2.ENVIRONMENTS for d in v2.DIFFICULTIES
            ):
                if may_contain_selected(f"{v2.FOLDER}/{environment}/{difficulty}", config):
                    paths = [v2.archive(environment, difficulty, kind) for kind in _KINDS]
                    files += [
                        RemoteFile(f"{v2.FOLDER}/{p}", tuple(f"{m}/{p}" for m in v2.MIRRORS))
                        for p in paths
                    ]
        return files

    def group_of(self, path: str) -> str | None:
        """A group is an environment at one difficulty: see ``Dataset``."""
        return path.rpartition("/")[0]

    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Frames of the left (front) camera: see ``Dataset``."""
        refs = []
        for path in sorted(raw.glob("*/*/image_left.zip")):
            environment, difficulty = path.parent.relative_to(raw).parts
            if not may_contain_selected(f"{environment}/{difficulty}", config):
                continue
            held = environment in HOLDOUT_ENVIRONMENTS and not config.holdout
            for trajectory, frame, rgb, depth in _pairs(path, _IMAGE, _DEPTH, raw):
                scene = f"{environment}/{difficulty}/{trajectory}"
                refs.append(_ref(scene, frame, rgb, depth, held))
        for path in sorted((raw / v2.FOLDER).glob("*/*/image_lcam_front.zip")):
            environment, folder = path.parent.relative_to(raw / v2.FOLDER).parts
            parent = f"{v2.FOLDER}/{environment}/{folder.removeprefix('Data_')}"
            if not may_contain_selected(parent, config):
                continue
            held = environment in v2.HOLDOUT_ENVIRONMENTS and not config.holdout
            for trajectory, frame, rgb, depth in _pairs(path, v2.IMAGE, v2.DEPTH, raw):
                scene = f"{parent}/{trajectory}"
                refs.append(_ref(scene, frame, rgb, depth, held))
        return refs

    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Colour and z-depth in metres, the one camera of the dataset: see ``Dataset``."""
        with reading("picture"):
            rgb = decode_picture(rgb_bytes, ("PNG",), ("RGB",), MAX_FRAME_PIXELS)
        with reading("depth"):
            read = v2.read_depth if ref.depth.member.endswith(".png") else read_depth
            depth = read(depth_bytes)
        sky = depth > SKY_FROM_M
        valid = (depth > 0) & (depth < min(depth_max_m, DEPTH_LIMIT_M))
        return masked_frame(ref, rgb, depth, valid, sky, native_intrinsics(*depth.shape))


def _pairs(
    images: Path, image: re.Pattern[str], depth: re.Pattern[str], raw: Path
) -> Iterator[tuple[str, str, Part, Part]]:
    """(trajectory, frame, picture, depth) of every frame in a zip and the one beside it."""
    depths = images.with_name(images.name.replace("image", "depth", 1))
    if not depths.exists():
        return
    here, there = _members(images, image), _members(depths, depth)
    if not here:
        raise DatasetError(f"tartanair: {images} holds no picture; delete it and download it again")
    for trajectory, frame in sorted(here.keys() | there.keys()):
        rgb, distance = (
            part_of(path.relative_to(raw).as_posix(), members.get((trajectory, frame)))
            for path, members in ((images, here), (depths, there))
        )
        yield trajectory, frame, rgb, distance


def _members(path: Path, pattern: re.Pattern[str]) -> dict[tuple[str, ...], str]:
    """(trajectory, frame) to member; those of another environment's archive are refused."""
    home = "/".join(path.parent.parts[-2:])
    found = []
    for match in filter(None, map(pattern.search, zip_names(path))):
        named = _FOLDER.search(match.string[: match.start()])
        if named and named[1] != home:
            raise DatasetError(
                f"tartanair: {path} holds {match.string!r}, which is not of {home}; "
                "delete it and download it again"
            )
        found.append((match.groups(), match.string))
    return unique(path, found)


def _ref(scene: str, frame: str, rgb: Part, depth: Part, held: bool) -> FrameRef:
    return FrameRef(f"{scene}/{frame}", scene, "holdout" if held else "train", rgb, depth)
