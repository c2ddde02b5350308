"""How preprocessing and training spread over cores and GPUs; writes docs/benchmarks/scaling.json.

Usage: python scripts/scaling.py --samples FOLDER [--frames 96] [--rounds 3]

Measured, on frames of the real sizes: frames a second with one and two processes, and the time
that writing takes.
FOLDER holds genuine files (tests/conftest.py); of Virtual KITTI 2 there are none, so its frames are
a genuine KITTI picture with rendered depth. Training's FLOPs are counted, not timed; what a GPU and
a network do of them is assumed, see the constants, and printed beside the tables.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _header import header
from bench_data import native_scene
from diffusers import AutoencoderKL
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from metricgold.config import DatasetConfig, DatasetName, ProfileConfig, load_config
from metricgold.data.archive_writer import ArchiveSet, Member
from metricgold.data.conversion import convert, worker_pool
from metricgold.data.native_formats import virtual_kitti_intrinsics, virtual_kitti_members
from metricgold.data.procedural import render_scene
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.virtual_kitti import RGB_TAR, TEXT_TAR
from metricgold.full_size import SD2_VAE
from metricgold.training.plan import MFU, StagePlan, plan

OUT = Path("docs/benchmarks/scaling.json")
CORES = GPUS = (1, 8, 64)
DOWNLOAD_GB = {"hypersim": 270.0, "tartanair": 210.0}
"""As published: what is taken of Hypersim's zips, TartanAir V1's left pictures and depth."""
FRAMES = {"hypersim": 59_543 + 7_386 + 7_690, "virtual_kitti": 20_148 + 5_364}
"""As published; TartanAir's follow from its size and that of genuine frames."""
TRAINING_FRAMES = {"hypersim": 53_885, "virtual_kitti": 20_148}
NETWORKS_GBIT = (1, 10)
PEAK_TFLOPS = {"RTX 3090": 71, "A100": 312, "H100": 989}
"""Published bf16 peaks with fp32 sums, without sparsity."""
EXCHANGE_GB_S = {"RTX 3090": (10, 10), "A100": (200, 20), "H100": (350, 40)}
"""Assumed bandwidth of an all-reduce within a host (PCIe 4, NVLink 3, NVLink 4) and between hosts
(100, 200 and 400 Gbit/s)."""
GPUS_A_HOST = 8
GPU_24_GB, GOAL_MFU = "RTX 3090", 0.45
BYTES_A_GRADIENT = 4
KITTI_K = np.array([[725.0087, 0, 620.5], [0, 725.0087, 187], [0, 0, 1]])


def hypersim(samples: Path, raw: Path, frames: int) -> None:
    """A scene of genuine frames."""
    native_scene(samples, raw, frames)


def tartanair(samples: Path, raw: Path, frames: int) -> None:
    """The genuine zips as they are; ``frames`` is what they hold."""
    del frames
    folder = raw / "hospital/Easy"
    folder.mkdir(parents=True)
    for name in ("image_left.zip", "depth_left.zip"):
        (folder / name).symlink_to((samples / "tartanair/hospital/Easy" / name).resolve())


def virtual_kitti(samples: Path, raw: Path, frames: int) -> None:
    """A genuine picture of KITTI's camera as JPEG, a rendered street's depth, their camera."""
    picture = io.BytesIO()
    with Image.open(sorted((samples / "kitti/rgb").glob("*.png"))[0]) as opened:
        opened.convert("RGB").resize((1242, 375)).save(picture, "JPEG", quality=95)
    (frame,) = render_scene("street", 7, KITTI_K, (375, 1242), 1)
    text = virtual_kitti_intrinsics((i, 0, KITTI_K) for i in range(frames))
    with ArchiveSet(raw) as archives:
        for member in virtual_kitti_members("Scene02/clone", "Camera_0", 0, [frame] * frames):
            data = picture.getvalue() if member.archive == RGB_TAR else member.data
            archives.add(Member(member.archive, member.name, data))
        archives.add(Member(TEXT_TAR, "Scene02/clone/intrinsic.txt", text.encode()))


MAKERS: dict[DatasetName, Callable[[Path, Path, int], None]] = {
    "hypersim": hypersim, "virtual_kitti": virtual_kitti, "tartanair": tartanair,
}  # fmt: skip


def config_of(dataset: DatasetName, workers: int) -> ProfileConfig:
    """The profile ``sd2`` with the archives that are there and so many processes."""
    config = load_config("params.yaml", "sd2")
    was = config.datasets[dataset]
    settings = DatasetConfig(weight=1, mirrors=("none",), crop=was.crop, train_size=was.train_size)
    return config.model_copy(
        update={
            "datasets": {**config.datasets, dataset: settings},
            "preprocess": config.preprocess.model_copy(update={"workers": workers}),
        }
    )


def converted(dataset: DatasetName, raw: Path, folder: Path, workers: int) -> dict[str, float]:
    """Frames, seconds of the whole, and those in which shards were written."""
    written = [0.0]
    add, close = ShardWriter.add, ShardWriter.__exit__

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                written[0] += time.perf_counter() - began

        return call

    config = config_of(dataset, workers)
    with (
        worker_pool(workers) as pool,
        mock.patch.object(ShardWriter, "add", timed(add)),
        mock.patch.object(ShardWriter, "__exit__", timed(close)),
    ):
        if pool is not None:  # processes that are up, with everything imported
            convert(config, dataset, raw, folder / "warm", pool, {}, False)
        written[0] = 0.0
        began = time.perf_counter()
        tallies = convert(config, dataset, raw, folder / "out", pool, {}, False)
        seconds = time.perf_counter() - began
    frames = sum(tally.kept for tally in tallies.values())
    return {"frames": frames, "seconds": seconds, "writing": written[0]}


def measure(samples: Path, frames: int, rounds: int) -> dict[str, dict[str, float]]:
    """By dataset: a frame's milliseconds in a worker and in the writer, and frames a second."""
    found: dict[str, dict[str, float]] = {}
    for dataset, make in MAKERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            raw = Path(scratch) / "raw"
            raw.mkdir()
            make(samples, raw, frames)
            runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
            for number in range(rounds):
                for workers in runs:
                    folder = Path(scratch) / f"{number}_{workers}"
                    runs[workers].append(converted(dataset, raw, folder, workers))
            stored = sum(p.stat().st_size for p in (Path(scratch) / "0_1/out").rglob("*.h5"))
        count = runs[1][0]["frames"]
        rate = {w: statistics.median(count / r["seconds"] for r in runs[w]) for w in runs}
        writer = statistics.median(r["writing"] / count for r in runs[1])
        alone = 1 / rate[1]
        found[dataset] = {
            "frames": count,
            "frames_a_second_1_process": round(rate[1], 2),
            "frames_a_second_2_processes": round(rate[2], 2),
            "core_ms_alone": round(1e3 * alone, 2),
            "core_ms_with_processes": round(1e3 * 2 / rate[2], 2),
            "of_it_in_the_writer_ms": round(1e3 * (writer + 2 / rate[2] - alone), 2),
            "stored_kb": round(stored / count / 1e3, 1),
        }
    return found


def preprocessing(
    costs: dict[str, dict[str, float]], frames: dict[str, int]
) -> list[dict[str, Any]]:
    """Hours for all three sets, one after the other.

    By the stages: the cores share a frame's core time, and one process writes (Amdahl), which is
    also taken to do all that two processes cost more than one. In pieces: each core does its own,
    alone, writing included.
    """
    rows = []
    for cores in CORES:
        by_stages = in_pieces = 0.0
        for dataset, count in frames.items():
            cost = costs[dataset]
            alone = cost["core_ms_alone"] / cores
            shared = max(cost["core_ms_with_processes"] / cores, cost["of_it_in_the_writer_ms"])
            by_stages += count * (alone if cores == 1 else shared) / 3.6e6
            in_pieces += count * alone / 3.6e6
        row = {"cores": cores, "by the stages": round(by_stages, 2)}
        rows.append(row | {"in pieces": round(in_pieces, 2)})
    return rows


def caching_flops(tartanair_frames: int) -> float:
    """Of the latents of all training frames: every variant through both encoders."""
    config = load_config("params.yaml", "sd2")
    total = 0.0
    for name, settings in config.enabled_datasets().items():
        count = TRAINING_FRAMES.get(name, tartanair_frames) / settings.frame_stride
        with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
            AutoencoderKL(**SD2_VAE).encode(torch.zeros(1, 3, *settings.train_size))
        total += 2 * config.cache_latents.variants * count * counter.get_total_flops()
    return total


def step_seconds(stage: StagePlan, gpu: str, gpus: int) -> tuple[float, float, int]:
    """Of an optimizer step: seconds of work, of exchange, and GPUs with a micro-batch to do.

    Nothing overlaps, which is the worst case.
    """
    micro_batches = stage.optimizer_config.accumulation
    busy = min(gpus, micro_batches)
    flops = stage.flops / micro_batches * math.ceil(micro_batches / busy)
    bandwidth = EXCHANGE_GB_S[gpu][busy > GPUS_A_HOST] * 1e9
    exchanged = 2 * (busy - 1) / busy * BYTES_A_GRADIENT * stage.trained
    return flops / (PEAK_TFLOPS[gpu] * 1e12 * MFU), exchanged / bandwidth, busy


def training(stages: list[StagePlan]) -> list[dict[str, Any]]:
    """Hours of all training stages one after the other, and the share of them spent exchanging."""
    rows = []
    for gpu, gpus in itertools.product(PEAK_TFLOPS, GPUS):
        working = exchanging = 0.0
        used = set()
        for stage in stages:
            work, exchange, busy = step_seconds(stage, gpu, gpus)
            working += work * stage.optimizer_config.steps / 3600
            exchanging += exchange * stage.optimizer_config.steps / 3600
            used.add(busy)
        hours = working + exchanging
        rows.append(
            {
                "gpu": gpu,
                "gpus": gpus,
                "with work": f"{min(used)} to {max(used)}",
                "hours": round(hours, 1),
                "of them exchanging": f"{exchanging / hours:.0%}",
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(row[h]) for h in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, count, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    costs = measure(given.samples, given.frames, given.rounds)
    zips = (given.samples / "tartanair/hospital/Easy").glob("*.zip")
    a_frame = sum(p.stat().st_size for p in zips) / costs["tartanair"]["frames"]
    frames = {**FRAMES, "tartanair": round(DOWNLOAD_GB["tartanair"] * 1e9 / a_frame)}
    stages = plan(load_config("params.yaml", "sd2"))
    caching = caching_flops(frames["tartanair"])
    total = caching + sum(s.flops * s.optimizer_config.steps for s in stages)
    download = sum(DOWNLOAD_GB.values())
    result = {
        **header(torch.device("cpu")),
        "a_frame": costs,
        "frames": frames,
        "download_hours": {f"{g} Gbit/s": round(download * 8 / g / 3600, 2) for g in NETWORKS_GBIT},
        "stored_gb": round(sum(costs[d]["stored_kb"] * n for d, n in frames.items()) / 1e6, 1),
        "preprocessing_hours": preprocessing(costs, frames),
        "training": training(stages),
        "training_exaflop": {
            s.stage: round(s.flops * s.optimizer_config.steps / 1e18, 3) for s in stages
        }
        | {"cache_latents": round(caching / 1e18, 3)},
        "hours_on_one_24_gb_gpu": round(
            total / (PEAK_TFLOPS[GPU_24_GB] * 1e12 * GOAL_MFU) / 3600, 1
        ),
        "assumed": {"mfu": MFU, "peak_tflops": PEAK_TFLOPS, "exchange_gb_a_second": EXCHANGE_GB_S},
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table([{"dataset": name, **cost} for name, cost in costs.items()]))
    print(table(preprocessing(costs, frames)))
    print(table(training(stages)))
    print(json.dumps({k: result[k] for k in ("training_exaflop", "hours_on_one_24_gb_gpu")}))


if __name__ == "__main__":
    main()
