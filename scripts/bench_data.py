"""How fast data becomes shards and shards become batches; writes docs/benchmarks/data.json.

Usage: python scripts/bench_data.py --samples FOLDER [--only frame,scaling,reader,waiting]

FOLDER holds genuine Hypersim HDF5 files (``hypersim/…``, see tests/conftest.py). Everything that is
compared runs side by side in one process and in turn; figures are medians, ratios of medians.

frame    one native Hypersim frame on one core: our way against the straightforward one (h5py,
         numpy, a PNG for the picture and a 16-bit PNG of millimetres for the depth)
scaling  a scene of native frames converted by 1 and by 2 processes, and the memory they take as it
         goes on
reader   training samples a second and core from shards, against one PNG pair a sample
waiting  the share of its time that training waits for native frames, read in line and by processes
         that read ahead; a sleep stands for a step on a GPU, which leaves the cores alone
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from metricgold.config import DatasetConfig, ProfileConfig, load_config
from metricgold.data.conversion import convert, worker_pool
from metricgold.data.dataset import FrameRef, Part
from metricgold.data.frames import FrameBank
from metricgold.data.hypersim import (
    CAMERA_CSV,
    SPLIT_CSV,
    Hypersim,
    colour_member,
    depth_member,
    parse_cameras,
)
from metricgold.data.native_formats import SPLIT_COLUMNS
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import ShardReader, encode_frame
from metricgold.data.transforms import NO_AUGMENTATION, to_training_size
from metricgold.geometry import hypersim_intrinsics
from metricgold.progress import progress_bar
from metricgold.training.autoencoder import FrameBatches
from metricgold.training.loader import BatchLoader

COLOUR = "hypersim/third_party_color/frame.0000.color.hdf5"
DEPTH = "hypersim/scenes/ai_037_002/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5"
CAMERAS = "hypersim/metadata_camera_parameters.csv"
SCENE = "ai_037_002"
RESULT = Path("docs/benchmarks/data.json")
TRAIN_SIZE = (480, 640)


def side_by_side(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, and one round before is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def camera_matrix(text: str) -> tuple[float, ...]:
    """``M_cam_from_uv`` of the scene, row by row."""
    return tuple(parse_cameras(text)[SCENE].ravel().tolist())


def straightforward(
    colour: bytes, depth: bytes, matrix: tuple[float, ...], folder: Path
) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """A frame as one would write it down first: (picture [H, W, 3], z-depth [H, W] in metres)."""
    with h5py.File(io.BytesIO(colour), "r") as file:
        radiance = file["dataset"][()].astype(np.float32)
    with h5py.File(io.BytesIO(depth), "r") as file:
        distance = file["dataset"][()].astype(np.float64)
    height, width = distance.shape
    intrinsics, _ = hypersim_intrinsics(np.array(matrix).reshape(3, 3), height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T
    z = distance / np.linalg.norm(rays, axis=-1)
    valid = np.isfinite(z)
    brightness = 0.3 * radiance[..., 0] + 0.59 * radiance[..., 1] + 0.11 * radiance[..., 2]
    scale = 0.8**2.2 / np.percentile(brightness[valid], 90)
    bright = np.clip(np.maximum(scale * radiance, 0) ** (1 / 2.2), 0, 1)
    picture = np.rint(bright * 255).astype(np.uint8)
    kept = np.where(valid & (z > 1e-3) & (z < 65), z, 0)
    Image.fromarray(picture).save(folder / "rgb.png")
    Image.fromarray(np.rint(kept * 1000).astype(np.uint16)).save(folder / "depth.png")
    return picture, kept


def bench_frame(samples: Path, folder: Path) -> dict[str, Any]:
    """One frame, both ways; the results are compared as well."""
    colour, depth = (samples / COLOUR).read_bytes(), (samples / DEPTH).read_bytes()
    matrix = camera_matrix((samples / CAMERAS).read_text(encoding="utf-8"))
    reader = Hypersim()

    def ours(split: str, quality: int | None) -> Frame:
        """Decode, encode and append to an open shard."""
        ref = FrameRef("s/0", "s", "train", Part("", ""), Part("", ""), matrix)
        frame = reader.decode(ref, colour, depth, 80.0)
        writers[split].add(encode_frame(frame, quality))
        return frame

    with (
        ShardWriter(folder / "jpeg", "train") as jpeg,
        ShardWriter(folder / "lossless", "train") as lossless,
    ):
        writers = {"jpeg": jpeg, "lossless": lossless}
        seconds = side_by_side(
            {
                "straightforward": lambda: straightforward(colour, depth, matrix, folder),
                "ours": lambda: ours("jpeg", 98),
                "ours, lossless": lambda: ours("lossless", None),
            },
            rounds=63,  # the writers write a batch of 64 to disk: every frame's share is in
        )
        frame = ours("jpeg", 98)
    picture, kept = straightforward(colour, depth, matrix, folder)
    stored = ShardReader([folder / "jpeg/train-000.h5"])[0].depth
    exact = ShardReader([folder / "lossless/train-000.h5"])[0]
    told = stored[kept > 0] / kept[kept > 0] - 1
    return {
        "median_ms": {name: round(1e3 * s, 1) for name, s in seconds.items()},
        "times_faster": round(seconds["straightforward"] / seconds["ours"], 2),
        "times_faster_lossless": round(seconds["straightforward"] / seconds["ours, lossless"], 2),
        "rgb_levels_apart": int(np.abs(frame.rgb.astype(int) - picture).max()),
        "rgb_levels_apart_lossless_stored": int(np.abs(exact.rgb.astype(int) - picture).max()),
        "depth_relative_apart": float(np.abs(told).max()),
        "depth_mask_equal": bool(((stored > 0) == (kept > 0)).all()),
    }


def native_scene(samples: Path, raw: Path, frames: int) -> None:
    """A scene's zip of ``frames`` copies of the genuine colour and depth, and its tables."""
    colour, depth = (samples / COLOUR).read_bytes(), (samples / DEPTH).read_bytes()
    (raw / "scenes").mkdir(parents=True)
    with zipfile.ZipFile(raw / f"scenes/{SCENE}.zip", "w") as archive:
        for number in range(frames):
            archive.writestr(colour_member(SCENE, "cam_00", number), colour)
            archive.writestr(depth_member(SCENE, "cam_00", number), depth)
    (raw / CAMERA_CSV).write_bytes((samples / CAMERAS).read_bytes())
    rows = [f"{SCENE},cam_00,{number},True,,train" for number in range(frames)]
    (raw / SPLIT_CSV).write_text("\n".join([",".join(SPLIT_COLUMNS), *rows]) + "\n", "utf-8")


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The largest sum of resident bytes of this process and its children, as it is so far."""
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        """Look 20 times a second."""
        while not done.wait(0.05):
            used = 0
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    used += one.memory_info().rss
            peak[0] = max(peak[0], used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def bench_scaling(samples: Path, folder: Path, config: ProfileConfig) -> dict[str, Any]:
    """Frames a second with 1 and 2 processes, and the peak memory of all of them together."""
    result: dict[str, Any] = {}
    for frames in (64, 512):
        raw = folder / f"raw_{frames}"
        native_scene(samples, raw, frames)
        for workers in (1, 2):
            preprocess = config.preprocess.model_copy(update={"workers": workers})
            settings = DatasetConfig(weight=1, mirrors=("none",), train_size=TRAIN_SIZE)
            datasets = {**config.datasets, "hypersim": settings}
            changed = config.model_copy(update={"preprocess": preprocess, "datasets": datasets})
            with worker_pool(workers) as pool, peak_memory() as peak:
                if pool is not None:  # processes that are up, with everything imported
                    warm = folder / f"warm_{frames}"
                    convert(changed, "hypersim", raw, warm, pool, {}, False)
                start = time.perf_counter()
                convert(changed, "hypersim", raw, folder / f"o_{frames}_{workers}", pool, {}, False)
                seconds = time.perf_counter() - start
            result[f"{frames} frames, {workers} process{'es' * (workers > 1)}"] = {
                "frames_a_second": round(frames / seconds, 2),
                "peak_memory_mb": round(peak[0] / 1e6),
            }
    one, two = (result[f"512 frames, {n}"]["frames_a_second"] for n in ("1 process", "2 processes"))
    result["two_processes_over_one"] = round(two / one, 2)
    return result


def native_shard(samples: Path, folder: Path) -> tuple[Frame, Path]:
    """The genuine frame and a shard of 32 copies of it."""
    colour, depth = (samples / COLOUR).read_bytes(), (samples / DEPTH).read_bytes()
    matrix = camera_matrix((samples / CAMERAS).read_text(encoding="utf-8"))
    ref = FrameRef("s/0", "s", "train", Part("", ""), Part("", ""), matrix)
    frame = Hypersim().decode(ref, colour, depth, 80.0)
    with ShardWriter(folder / "reader", "train") as writer:
        for _ in range(32):
            writer.add(encode_frame(frame, 98))
    return frame, folder / "reader/train-000.h5"


def bench_waiting(samples: Path, folder: Path, config: ProfileConfig) -> dict[str, Any]:
    """Share of the time waited for batches of stage A of ``sd2``, by step time and processes."""
    _, shard = native_shard(samples, folder)
    optimizer, steps = config.train_vae.optimizer, 60
    shares: dict[str, dict[str, float]] = {}
    for step_ms in (25, 50, 100, 250):
        shares[f"step of {step_ms} ms"] = row = {}
        for workers in (0, 1, 2):
            banks = {"hypersim": FrameBank(ShardReader([shard]), TRAIN_SIZE, 0)}
            keys = ("depth", "valid_mask", "sky_mask")
            batches = FrameBatches(config, banks, optimizer, 12, keys)
            loader = BatchLoader(batches, range(steps), workers)
            first, start = 0.0, 0.0
            for number, _ in enumerate(loader):
                if number == 0:  # from here on: what starting the processes takes is not counted
                    first, start = loader.waited_s, time.perf_counter()
                time.sleep(step_ms / 1000)
            share = (loader.waited_s - first) / (time.perf_counter() - start)
            row[f"{workers} process{'es' * (workers != 1)}"] = round(share, 3)
    return {"batch_size": optimizer.batch_size, "train_size": list(TRAIN_SIZE), "waited": shares}


def bench_reader(samples: Path, folder: Path) -> dict[str, Any]:
    """Native frames to training samples: from a shard and from PNG pairs, one core."""
    frame, shard = native_shard(samples, folder)
    Image.fromarray(frame.rgb).save(folder / "rgb.png")
    Image.fromarray(np.rint(frame.depth * 1000).astype(np.uint16)).save(folder / "depth.png")
    bank = FrameBank(ShardReader([shard]), TRAIN_SIZE, 0)
    kept = FrameBank(ShardReader([shard]), TRAIN_SIZE)
    number = 0

    def from_shard(source: FrameBank) -> None:
        """The next frame."""
        nonlocal number
        number = (number + 1) % len(source)
        source.sample(number)

    def from_pngs() -> None:
        """The same frame from two pictures."""
        rgb = np.asarray(Image.open(folder / "rgb.png").convert("RGB"))
        metres = np.asarray(Image.open(folder / "depth.png")).astype(np.float32) / 1000
        sky = np.zeros(metres.shape, bool)
        whole = Frame("s/0", "s", rgb, metres, metres > 0, sky, frame.intrinsics)
        to_training_size(whole, TRAIN_SIZE, NO_AUGMENTATION, None)

    ways = {
        "png pair": from_pngs,
        "shard": lambda: from_shard(bank),
        "shard, frames kept in memory": lambda: from_shard(kept),
    }
    seconds = side_by_side(ways, rounds=65)
    return {
        "native_size": list(frame.depth.shape),
        "train_size": list(TRAIN_SIZE),
        "samples_a_second_and_core": {name: round(1 / s, 1) for name, s in seconds.items()},
        "times_faster": round(seconds["png pair"] / seconds["shard"], 2),
    }


def main() -> None:
    """Run what is asked for and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--only", default="frame,scaling,reader,waiting")
    arguments = parser.parse_args()
    if not (arguments.samples / COLOUR).is_file():
        sys.exit(f"{arguments.samples / COLOUR}: no such file; --samples names genuine samples")
    config = load_config("params.yaml", "sd2")
    result: dict[str, Any] = {}
    if RESULT.exists():
        result = json.loads(RESULT.read_text(encoding="utf-8"))
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "frame": lambda folder: bench_frame(arguments.samples, folder),
        "scaling": lambda folder: bench_scaling(arguments.samples, folder, config),
        "reader": lambda folder: bench_reader(arguments.samples, folder),
        "waiting": lambda folder: bench_waiting(arguments.samples, folder, config),
    }
    for name in progress_bar(arguments.only.split(","), description="benchmarks", unit="part"):
        with tempfile.TemporaryDirectory() as folder:
            result[name] = parts[name](Path(folder))
    result["machine"] = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    )
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
