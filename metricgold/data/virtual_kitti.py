"""Virtual KITTI 2: driving, 1242x375, planar depth in centimetres, sky marked.

The split is by scene, so that nothing of a held-out street is seen in training.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from metricgold.config import DatasetConfig
from metricgold.data.archives import tar_index, tar_texts
from metricgold.data.dataset import (
    MAX_FRAME_PIXELS,
    Dataset,
    DatasetError,
    FrameRef,
    Part,
    ReadMetadata,
    RemoteFile,
    masked_frame,
    part_of,
    reading,
    unique,
)
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics
from metricgold.imaging import decode_picture

MIRROR = "https://download.europe.naverlabs.com/virtual_kitti_2.0.3"
RGB_TAR = "vkitti_2.0.3_rgb.tar"
DEPTH_TAR = "vkitti_2.0.3_depth.tar"
TEXT_TAR = "vkitti_2.0.3_textgt.tar.gz"
TRAIN_SCENES = ("Scene02", "Scene06", "Scene18", "Scene20")
HOLDOUT_SCENES = ("Scene01",)
VARIATIONS = ("clone", "morning", "overcast", "sunset", "15-deg-left", "15-deg-right")
"""Fog and rain are left out: their pictures hide what the depth shows."""
DEPTH_MAX_M = 80.0
SKY_VALUE = 65535
INTRINSIC_HEADER = "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"

_SEQUENCE = r"(Scene\d+)/([\w-]+)"
_RGB = re.compile(_SEQUENCE + r"/frames/rgb/(Camera_\d)/rgb_(\d+)\.jpg$")
_DEPTH = re.compile(_SEQUENCE + r"/frames/depth/(Camera_\d)/depth_(\d+)\.png$")
_INTRINSIC = re.compile(_SEQUENCE + r"/intrinsic\.txt$")


def parse_intrinsics(text: str) -> dict[tuple[int, int], tuple[float, float, float, float]]:
    """(frame, camera) to (fx, fy, cx, cy) in pixels from an ``intrinsic.txt``.

    Raises:
        ValueError: another header, a line without six numbers, or a frame that is there twice.
    """
    header, *lines = text.splitlines() or [""]
    if header.split() != INTRINSIC_HEADER.split():
        raise ValueError(f"the first line is not '{INTRINSIC_HEADER}'")
    table: dict[tuple[int, int], tuple[float, float, float, float]] = {}
    for number, line in enumerate(lines, start=2):
        if not (fields := line.split()):
            continue
        try:
            frame, camera = int(fields[0]), int(fields[1])
            fx, fy, cx, cy = (float(value) for value in fields[2:])
        except (ValueError, IndexError):
            raise ValueError(f"line {number} is not two whole and four other numbers") from None
        if not all(map(math.isfinite, (fx, fy, cx, cy))) or (frame, camera) in table:
            raise ValueError(f"line {number} is not finite or is there twice")
        table[frame, camera] = (fx, fy, cx, cy)
    return table


class VirtualKitti(Dataset):
    """Two tars of pictures and one tar.gz of text."""

    name = "virtual_kitti"
    licence = (
        "CC BY-NC-SA 3.0: no commercial use, name the authors (Cabon, Murray, Humenberger, 2020) "
        "and share what you derive from the data alike"
    )
    shard_share = 1.0

    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """The three tars: see ``Dataset``."""
        return [RemoteFile(TEXT_TAR), RemoteFile(RGB_TAR), RemoteFile(DEPTH_TAR)]

    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Frames of the variations that are used: see ``Dataset``."""
        pictures, depths = _parts(raw, RGB_TAR, _RGB), _parts(raw, DEPTH_TAR, _DEPTH)
        cameras = _all_intrinsics(raw / TEXT_TAR)
        refs = []
        for place in sorted(pictures.keys() | depths.keys()):
            scene, variation, camera, frame = place
            sequence = f"{scene}/{variation}"
            refs.append(
                FrameRef(
                    key=f"{sequence}/{camera}/{frame}",
                    scene=f"{sequence}/{camera}",
                    split="holdout" if scene in HOLDOUT_SCENES else "train",
                    rgb=pictures.get(place, part_of(RGB_TAR, None)),
                    depth=depths.get(place, part_of(DEPTH_TAR, None)),
                    camera=cameras.get((sequence, int(frame), int(camera[-1])), ()),
                )
            )
        return sorted(refs, key=lambda ref: ref.key)

    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Colour and z-depth (centimetres in the file), the frame's own K: see ``Dataset``."""
        with reading("camera"):
            if not ref.camera:
                raise ValueError("intrinsic.txt does not list the frame")
            intrinsics = make_intrinsics(*ref.camera)
        with reading("picture"):
            rgb = decode_picture(rgb_bytes, ("JPEG",), ("RGB",), MAX_FRAME_PIXELS)
        with reading("depth"):
            stored = decode_picture(depth_bytes, ("PNG",), ("I;16", "I"), MAX_FRAME_PIXELS)
        centimetres = stored.astype(np.uint16)
        depth = centimetres.astype(np.float32) / 100.0
        sky = centimetres == SKY_VALUE
        valid = (depth > 0) & (depth < DEPTH_MAX_M)
        return masked_frame(ref, rgb, depth, valid, sky, intrinsics)


def _parts(raw: Path, tar: str, pattern: re.Pattern[str]) -> dict[tuple[str, ...], Part]:
    """(scene, variation, camera, frame) to the place of each file that ``pattern`` finds."""
    found = ((pattern.search(m.name), m) for m in tar_index(raw / tar))
    return unique(
        raw / tar,
        [
            (match.groups(), Part(tar, m.name, m.offset, m.size))
            for match, m in found
            if match and match[2] in VARIATIONS
        ],
    )


def _all_intrinsics(path: Path) -> dict[tuple[str, int, int], tuple[float, ...]]:
    table: dict[tuple[str, int, int], tuple[float, ...]] = {}
    for name, text in tar_texts(path, "intrinsic.txt").items():
        match = _INTRINSIC.search(name)
        if match is None:
            continue
        try:
            entries = parse_intrinsics(text)
        except ValueError as error:
            raise DatasetError(f"virtual_kitti: {name} in {path} cannot be read: {error}") from None
        for (frame, camera), values in entries.items():
            table[f"{match[1]}/{match[2]}", frame, camera] = values
    return table
