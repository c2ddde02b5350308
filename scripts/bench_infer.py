"""Times pictures to metres, beside diffusers' Marigold; writes docs/benchmarks/infer.json.

Usage: python scripts/bench_infer.py [--toy] [--sizes 480x640,768x1024] [--batches 1,8]
                                     [--precisions fp16,bf16] [--modes eager,compiled]
                                     [--steps 1,4] [--rounds 10] [--out FILE]

Networks have Stable Diffusion 2's size and random weights, Marigold's are the same ones; ``--toy``
takes the demo's networks. Ours are timed with the full autoencoders and with the light one (of the
demo's size, or TAESD's). A round calls every case once, one after the other, so that a machine's
mood meets all alike; figures are medians, ratios are against Marigold with its default of four
steps in the same round. Everything is in them: resizing, transfer, all networks, resizing back.
FLOPs are counted by torch; the roofline is the speed of matrix products measured in the same run.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _header import header
from diffusers import MarigoldDepthPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from export.onnx_export import export_checkpoint
from export.runtime import open_session
from metricgold.config import ExportConfig, LightVaeConfig, ProfileConfig, load_config
from metricgold.pipeline import MetricGoldPipeline
from metricgold.progress import progress_bar
from metricgold.random_weights import random_full_size_pipeline, random_toy_pipeline
from metricgold.training.accelerator import default_device, use_all_cores
from metricgold.training.plan import matmul_flops_a_second

REFERENCE = ("marigold", 4)
"""System and steps that everything is compared with: diffusers' pipeline and its default."""

AUTOENCODERS = ("full", "light")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODES = ("eager", "compiled", "cuda graph")
WARM_UP = 2
REST_S = 0.3
"""Before each call: threads of the library before it go on spinning for a while."""
Pictures = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    system: str
    steps: int
    mode: str = "eager"
    autoencoder: str = "full"


def cases(modes: Sequence[str], numbers: Sequence[int], onnx: bool) -> Iterator[Case]:
    """Marigold first, so that it is there to be compared with; ``numbers`` of steps."""
    yield Case(*REFERENCE)
    for steps in numbers:
        if ("marigold", steps) != REFERENCE:
            yield Case("marigold", steps)
    for autoencoder in AUTOENCODERS:
        for steps in numbers:
            for mode in modes:
                yield Case("metricgold", steps, mode, autoencoder)
            if onnx:
                yield Case("onnxruntime", steps, "three graphs", autoencoder)
        if onnx:
            yield Case("onnxruntime", 1, "fused", autoencoder)


def marigold_of(pipeline: MetricGoldPipeline) -> MarigoldDepthPipeline:
    """diffusers' pipeline on the very same networks, but for the field of view it does not know."""
    config = dict(pipeline.unet.config) | {"class_embed_type": None}
    with torch.device("meta"):  # the weights are the pipeline's own
        unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(pipeline.unet.state_dict(), strict=False, assign=True)
    theirs = MarigoldDepthPipeline(
        unet=unet.eval().requires_grad_(False),
        vae=pipeline.image_vae,
        scheduler=pipeline.scheduler,
        text_encoder=None,
        tokenizer=None,
        prediction_type="depth",
    )
    theirs.empty_text_embedding = pipeline.empty_text_embed
    theirs.set_progress_bar_config(disable=True)
    return theirs


def compiled(pipeline: MetricGoldPipeline, mode: str) -> MetricGoldPipeline:
    """A copy of the pipeline, with the same weights, whose networks are compiled."""
    options = {"mode": "reduce-overhead"} if mode == "cuda graph" else {}
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    kept = {id(t): t for part in networks for t in (*part.parameters(), *part.buffers())}
    own: MetricGoldPipeline = copy.deepcopy(pipeline, kept)
    own.set_progress_bar_config(disable=True)
    own.picture_encoder.encoder.compile(**options)
    own.depth_decoder.decoder.compile(**options)
    own.unet.compile(**options)
    return own


def caller(
    case: Case, pipeline: MetricGoldPipeline, onnx: dict[str, Path]
) -> Callable[[Pictures], Any]:
    """What is timed: pictures to depth at their own size."""
    if case.system == "marigold":
        theirs = marigold_of(pipeline)
        return lambda pictures: theirs(
            [p / np.float32(255) for p in pictures],
            num_inference_steps=case.steps,
            processing_resolution=0,
            batch_size=len(pictures),
        )
    if case.system == "onnxruntime":
        fused = case.mode == "fused"
        session = open_session(onnx[case.autoencoder], "onnxruntime-cpu", fused=fused)
        resolution = None if fused else 0
        return lambda pictures: [
            session.infer(p, steps=case.steps, processing_resolution=resolution, fov_deg=50)
            for p in pictures
        ]
    ours = MetricGoldPipeline.of(pipeline).use_light(case.autoencoder == "light")
    ours.set_progress_bar_config(disable=True)
    if case.mode != "eager":
        ours = compiled(ours, case.mode)
    return lambda pictures: ours(
        pictures,
        case.steps,
        processing_resolution=0,
        batch_size=len(pictures),
        fov_deg=50,
        generator=torch.Generator().manual_seed(0),
    )


def tflop(call: Callable[[Pictures], Any], pictures: Pictures) -> float | None:
    """FLOPs of a call in units of 1e12; None where torch cannot see them."""
    with FlopCounterMode(display=False) as counter:
        call(pictures)
    return counter.get_total_flops() / 1e12 or None


def time_cases(
    calls: dict[Case, Callable[[Pictures], Any]],
    pictures: Pictures,
    rounds: int,
    warm_up: int,
    device: torch.device,
    peak: float,
) -> list[dict[str, Any]]:
    """Rounds over all cases, FLOPs being counted before; what each took."""
    work = {c: tflop(call, pictures) for c, call in calls.items() if c.mode == "eager"}
    seconds: dict[Case, list[float]] = {case: [] for case in calls}
    memory: dict[Case, float] = {}
    for number in range(warm_up + rounds):
        for case, call in calls.items():
            time.sleep(REST_S)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            began = time.perf_counter()
            call(pictures)
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory[case] = torch.cuda.max_memory_allocated() / 1e9
            if number >= warm_up:
                seconds[case].append(time.perf_counter() - began)
    reference = next(seconds[c] for c in calls if (c.system, c.steps) == REFERENCE)
    rows = []
    for case in calls:
        median = statistics.median(seconds[case])
        row = asdict(case) | {
            "ms": round(1000 * median, 2),
            "images_a_second": round(len(pictures) / median, 3),
            "times_as_fast_as_marigold": round(
                statistics.median(r / s for r, s in zip(reference, seconds[case], strict=True)), 2
            ),
        }
        if done := work.get(case):
            row |= {"tflop": round(done, 4), "roofline": round(done * 1e12 / median / peak, 3)}
        if case in memory:
            row["peak_memory_gb"] = round(memory[case], 2)
        rows.append(row)
    return rows


def exported(pipeline: MetricGoldPipeline, size: tuple[int, int], folder: Path) -> dict[str, Path]:
    """The pipeline as fp32 graphs for any size, and fused for this one, by autoencoder."""
    pipeline.save_pretrained(folder / "model")
    found = {}
    for autoencoder in AUTOENCODERS:
        config = ExportConfig.model_validate(
            {
                "opset": 23,
                "precision": "fp32",
                "dynamic": True,
                "parity_sizes": [size],
                "engine_size": size,
                "fused": True,
                "light": autoencoder == "light",
            }
        )
        found[autoencoder] = folder / autoencoder
        export_checkpoint(folder / "model", found[autoencoder], config)
    return found


def random_pipeline(config: ProfileConfig, dtype: torch.dtype) -> MetricGoldPipeline:
    """Of the profile's size, with a light autoencoder of its size, else TAESD's."""
    light = config.train_light.network if config.train_light else None
    if config.base_model.toy is None:
        return random_full_size_pipeline(light=light or LightVaeConfig(), dtype=dtype)
    return random_toy_pipeline(config.base_model.toy, light=light).to(dtype)


def main() -> None:
    """Time everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--sizes")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--precisions")
    parser.add_argument("--modes", help=", ".join(MODES))
    parser.add_argument("--steps", default="1,4")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="rounds that do not count")
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/infer.json"))
    arguments = parser.parse_args()
    use_all_cores()
    device = default_device()
    config = load_config("params.yaml", "demo" if arguments.toy else "sd2")
    default_sizes = "64x96,128x192" if arguments.toy else "480x640,768x1024"
    modes = (arguments.modes or ",".join(MODES[: 3 if device.type == "cuda" else 2])).split(",")
    numbers = [int(steps) for steps in arguments.steps.split(",")]
    precisions = arguments.precisions or ("fp16,bf16" if device.type == "cuda" else "fp32")
    sizes = [(int(h), int(w)) for h, w in
             (s.split("x") for s in (arguments.sizes or default_sizes).split(","))]  # fmt: skip
    result: dict[str, Any] = {
        "networks": "toy (demo)" if arguments.toy else "Stable Diffusion 2, random weights",
        **header(device),
        "rounds": arguments.rounds,
        "warm_up": arguments.warm_up,
        "results": [],
    }
    todo = [(p, s, int(b)) for p in precisions.split(",") for s in sizes
            for b in arguments.batches.split(",")]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for precision, size, batch in progress_bar(todo, description="settings", unit="setting"):
            torch._dynamo.reset()
            gc.collect()
            pipeline = random_pipeline(config, DTYPES[precision])
            onnx: dict[str, Path] = {}
            if precision == "fp32" and not arguments.no_onnx:
                onnx = exported(pipeline, size, Path(scratch) / f"{size[0]}x{size[1]}")
            pipeline = pipeline.to(device)
            pipeline.set_progress_bar_config(disable=True)
            pictures = list(
                np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
            )
            peak = matmul_flops_a_second(device, precision)  # type: ignore[arg-type]
            calls = {c: caller(c, pipeline, onnx) for c in cases(modes, numbers, bool(onnx))}
            rows = time_cases(calls, pictures, arguments.rounds, arguments.warm_up, device, peak)
            head = {"precision": precision, "size": list(size), "batch": batch,
                    "matmul_tflop_a_second": round(peak / 1e12, 3)}  # fmt: skip
            result["results"].append(head | {"cases": rows})
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            for row in rows:
                print(head, row, flush=True)


if __name__ == "__main__":
    main()
