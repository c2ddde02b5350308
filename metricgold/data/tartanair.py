"""TartanAir V1: indoor and outdoor flights, 640x480, float32 *planar* depth in metres."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from metricgold.config import DatasetConfig
from metricgold.data.archives import zip_names
from metricgold.data.dataset import (
    Dataset,
    FrameRef,
    Part,
    ReadMetadata,
    RemoteFile,
    is_selected,
    masked_frame,
    may_contain_selected,
)
from metricgold.data.sample import Frame
from metricgold.geometry import make_intrinsics

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

_IMAGE = re.compile(r"(\w+)/(Easy|Hard)/(P\d+)/image_left/(\d+)_left\.png$")


def native_intrinsics(height: int, width: int) -> np.ndarray:
    """K [3, 3]: 90 degrees across; 320, 320, 320, 240 at the native 480x640."""
    return make_intrinsics(width / 2, width / 2, width / 2, height / 2)


class TartanAir(Dataset):
    """A zip of pictures and a zip of depth for each environment and difficulty."""

    name = "tartanair"

    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """Two zips an environment and difficulty: see ``Dataset``."""
        folders = [f"{e}/{d}" for e in ENVIRONMENTS for d in DIFFICULTIES]
        return [
            RemoteFile(f"{folder}/{kind}_left.zip")
            for folder in folders
            if may_contain_selected(folder, config)
            for kind in ("image", "depth")
        ]

    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Frames of the left camera that have depth: see ``Dataset``."""
        refs = []
        for path in sorted(raw.glob("*/*/image_left.zip")):
            depth_path = path.with_name("depth_left.zip")
            if not depth_path.exists():
                continue
            archive = path.relative_to(raw).as_posix()
            depth_archive = depth_path.relative_to(raw).as_posix()
            depth_names = {_depth_key(name): name for name in zip_names(depth_path)}
            for match in filter(None, map(_IMAGE.search, sorted(zip_names(path)))):
                environment, difficulty, trajectory, frame = match.groups()
                scene = f"{environment}/{difficulty}/{trajectory}"
                depth = depth_names.get(f"{trajectory}/{frame}")
                if depth is None or not is_selected(scene, config):
                    continue
                held = environment in HOLDOUT_ENVIRONMENTS and not config.holdout
                refs.append(
                    FrameRef(
                        key=f"{scene}/{frame}",
                        scene=scene,
                        split="holdout" if held else "train",
                        rgb=Part(archive, match.string),
                        depth=Part(depth_archive, depth),
                    )
                )
        return refs

    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Colour and z-depth in metres, the one camera of the dataset: see ``Dataset``."""
        rgb = np.asarray(Image.open(io.BytesIO(rgb_bytes)).convert("RGB"))
        depth = np.load(io.BytesIO(depth_bytes), allow_pickle=False).astype(np.float32)
        finite = np.isfinite(depth)
        sky = ~finite | (depth > SKY_FROM_M)
        valid = finite & (depth > 0) & (depth < min(depth_max_m, DEPTH_LIMIT_M))
        return masked_frame(ref, rgb, depth, valid, sky, native_intrinsics(*depth.shape))


def _depth_key(member: str) -> str:
    """``…/P000/depth_left/000003_left_depth.npy`` to ``P000/000003``."""
    parts = member.split("/")
    return f"{parts[-3]}/{parts[-1].split('_')[0]}" if len(parts) >= 3 else member
