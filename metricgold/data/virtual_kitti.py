"""Virtual KITTI 2: driving, 1242x375, planar depth in centimetres, sky marked.

The split is by scene, so that nothing of a held-out street is seen in training.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from metricgold.config import DatasetConfig
from metricgold.data.archives import tar_index, tar_texts
from metricgold.data.dataset import (
    Dataset,
    DatasetError,
    FrameRef,
    Part,
    ReadMetadata,
    RemoteFile,
    masked_frame,
)
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics

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
_INTRINSIC = re.compile(_SEQUENCE + r"/intrinsic\.txt$")


def parse_intrinsics(text: str) -> dict[tuple[int, int], tuple[float, float, float, float]]:
    """(frame, camera) to (fx, fy, cx, cy) in pixels from an ``intrinsic.txt``."""
    table: dict[tuple[int, int], tuple[float, float, float, float]] = {}
    for line in text.splitlines()[1:]:
        if fields := line.split():
            frame, camera = int(fields[0]), int(fields[1])
            fx, fy, cx, cy = (float(value) for value in fields[2:6])
            table[frame, camera] = (fx, fy, cx, cy)
    return table


class VirtualKitti(Dataset):
    """Two tars of pictures and one tar.gz of text."""

    name = "virtual_kitti"

    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """The three tars: see ``Dataset``."""
        return [RemoteFile(TEXT_TAR), RemoteFile(RGB_TAR), RemoteFile(DEPTH_TAR)]

    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Frames with colour, depth and intrinsics: see ``Dataset``."""
        depth_parts = {
            m.name[m.name.find("Scene") :]: Part(DEPTH_TAR, m.name, m.offset, m.size)
            for m in tar_index(raw / DEPTH_TAR)
        }
        cameras = _all_intrinsics(raw / TEXT_TAR)
        refs = []
        for member in tar_index(raw / RGB_TAR):
            match = _RGB.search(member.name)
            if match is None or match[2] not in VARIATIONS:
                continue
            scene, variation, camera, frame = match.groups()
            sequence = f"{scene}/{variation}"
            depth = depth_parts.get(f"{sequence}/frames/depth/{camera}/depth_{frame}.png")
            intrinsics = cameras.get((sequence, int(frame), int(camera[-1])))
            if depth is None or intrinsics is None:
                continue
            refs.append(
                FrameRef(
                    key=f"{sequence}/{camera}/{frame}",
                    scene=f"{sequence}/{camera}",
                    split="holdout" if scene in HOLDOUT_SCENES else "train",
                    rgb=Part(RGB_TAR, member.name, member.offset, member.size),
                    depth=depth,
                    camera=intrinsics,
                )
            )
        return sorted(refs, key=lambda ref: ref.key)

    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Colour and z-depth (centimetres in the file), the frame's own K: see ``Dataset``."""
        rgb = np.asarray(Image.open(io.BytesIO(rgb_bytes)).convert("RGB"))
        centimetres = np.asarray(Image.open(io.BytesIO(depth_bytes))).astype(np.uint16)
        depth = centimetres.astype(np.float32) / 100.0
        sky = centimetres == SKY_VALUE
        valid = (depth > 0) & (depth < DEPTH_MAX_M)
        return masked_frame(ref, rgb, depth, valid, sky, make_intrinsics(*ref.camera))


def _all_intrinsics(path: Path) -> dict[tuple[str, int, int], tuple[float, ...]]:
    table: dict[tuple[str, int, int], tuple[float, ...]] = {}
    for name, text in tar_texts(path, "intrinsic.txt").items():
        match = _INTRINSIC.search(name)
        if match is None:
            continue
        try:
            entries = parse_intrinsics(text)
        except (ValueError, IndexError):
            raise DatasetError(f"virtual_kitti: {name} in {path.name} cannot be read") from None
        for (frame, camera), values in entries.items():
            table[f"{match[1]}/{match[2]}", frame, camera] = values
    return table
