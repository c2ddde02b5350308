"""Random frames, and shards of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metricgold.data.dataset import Split
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import encode_frame
from metricgold.geometry import intrinsics_from_fov


def make_frame(scene: int, index: int, size: tuple[int, int]) -> Frame:
    rng = np.random.default_rng([scene, index])
    depth = rng.uniform(1.0 + scene, 3.0 + 2 * scene, size).astype(np.float32)
    valid = rng.random(size) > 0.1
    rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    sky = np.zeros(size, bool)
    camera = intrinsics_from_fov(50.0 + 5 * scene, *size)
    scene_name = f"scene_{scene}"
    return Frame(f"{scene_name}/{index:03d}", scene_name, rgb, depth, valid, sky, camera)


def write_shards(folder: Path, split: Split, frames: list[Frame]) -> None:
    with ShardWriter(folder, split) as writer:
        for frame in frames:
            writer.add(encode_frame(frame, 95))
