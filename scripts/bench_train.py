"""Times a training step of every stage; writes docs/benchmarks/train.json.

Usage: python scripts/bench_train.py [--toy] [--micro-batches 1,2,4,8] [--memory-cap-gb 24]
                                     [--only stages] [--rounds 8] [--out FILE]

Networks have Stable Diffusion 2's size (866 M in the U-Net) and random weights; a picture is
480x640. ``--toy`` takes the demo's networks and size instead, to try the script on a CPU. A step
is one micro-batch: forward, backward, gradient clipping, optimizer, average, as the training loop
does it. Beside them, in the same run and with the same micro-batch, a step as Marigold's recipe
does it: both VAE encodings inside, AdamW with fp32 state, no compilation, in bf16 autocast and in
plain fp32. Times are medians of rounds that are waited for; FLOPs are counted (recomputation by
checkpointing is not counted as work); MFU is against matrix products measured in the same run.

stages  vae, unet, latent, depth: the stages' own steps
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _header import header
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metricgold.config import OptimizerConfig, ProfileConfig, load_config
from metricgold.model import encode, encode_depth_norm, vae_factor
from metricgold.pretrained import MetricGoldModel
from metricgold.progress import progress_bar
from metricgold.random_weights import random_full_size_pipeline, random_toy_pipeline
from metricgold.training.accelerator import default_device, make_accelerator, use_all_cores
from metricgold.training.loader import Batch
from metricgold.training.loop import Average, Objective, compile_network, micro_batch_generator
from metricgold.training.one_step import LatentObjective, MetricObjective
from metricgold.training.optimizers import Optimizers
from metricgold.training.plan import matmul_flops_a_second
from metricgold.training.unet import VelocityObjective
from metricgold.training.vae import DepthObjective

FULL_SIZE = (480, 640)
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    stage: str
    micro_batch: int
    precision: str = "bf16"
    checkpointing: bool = False
    compiled: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        """For people."""
        parts = [self.stage, f"micro-batch {self.micro_batch}", self.precision]
        parts += ["checkpointing"] * self.checkpointing + ["compiled"] * self.compiled
        return ", ".join(parts + ["channels last"] * self.channels_last)


class MarigoldObjective(VelocityObjective):
    """Stage B's loss with both encodings inside the step, from pictures and depth."""

    def __init__(self, model: MetricGoldModel, config: ProfileConfig) -> None:
        super().__init__(model, config.train_unet)
        self.image_vae, self.depth_vae = model.image_vae, model.depth_vae

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of ``rgb`` and ``depth_norm``."""
        with torch.no_grad():
            rgb = encode(self.image_vae, batch["rgb"].to(self.device)).float()
            depth = encode_depth_norm(self.depth_vae, batch["depth_norm"].to(self.device)).float()
        latents = batch | {"rgb_latent": rgb.cpu(), "depth_latent": depth.cpu()}
        return super().forward(number, latents, generator)


def build(config: ProfileConfig, toy: bool) -> MetricGoldModel:
    """All networks with random weights."""
    limits = {name: getattr(config.codec, name) for name in ("depth_min_m", "depth_max_m")}
    if not toy:
        return random_full_size_pipeline(**limits)
    assert config.base_model.toy is not None
    return random_toy_pipeline(config.base_model.toy, **limits)


def make_batch(model: MetricGoldModel, size: tuple[int, int], micro_batch: int) -> Batch:
    """Random pictures, depth and latents of ``micro_batch`` samples."""
    generator = torch.Generator().manual_seed(micro_batch)
    factor, channels = vae_factor(model.depth_vae), model.depth_vae.config.latent_channels
    cells = (size[0] // factor, size[1] // factor)

    def noise(*shape: int) -> Tensor:
        return torch.randn(micro_batch, *shape, generator=generator)

    norm = noise(1, *size).clamp(-1, 1)
    return {
        "rgb": noise(3, *size).clamp(-1, 1),
        "depth": model.codec.decode(norm),
        "depth_norm": norm,
        "valid_mask": torch.ones(micro_batch, 1, *size, dtype=torch.bool),
        "sky_mask": torch.zeros(micro_batch, 1, *size, dtype=torch.bool),
        "rgb_latent": noise(channels, *cells),
        "depth_latent": noise(channels, *cells),
        "latent_mask": torch.ones(micro_batch, 1, *cells, dtype=torch.bool),
        "fov_y_deg": torch.full((micro_batch,), 60.0),
    }


def objective_of(case: Case, model: MetricGoldModel, config: ProfileConfig) -> Objective:
    """What the case minimises, its network ready to be trained."""
    model.freeze()
    network = model.depth_vae if case.stage == "vae" else model.unet
    network.train().requires_grad_(True)
    for part in (model.unet, model.depth_vae, model.image_vae):
        if case.checkpointing:
            part.enable_gradient_checkpointing()
        else:
            part.disable_gradient_checkpointing()
    one_step = config.train_one_step
    if case.stage == "vae":
        return DepthObjective(model.depth_vae, model.codec, config.train_vae)
    if case.stage == "latent":
        channels = model.depth_vae.config.latent_channels
        return LatentObjective(model, one_step, torch.ones(1, channels, 1, 1))
    if case.stage == "depth":
        return MetricObjective(model, one_step)
    if case.stage == "marigold":
        return MarigoldObjective(model, config)
    return VelocityObjective(model, config.train_unet)


def time_case(
    case: Case, model: MetricGoldModel, config: ProfileConfig, size: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """Median seconds of a step, samples a second, peak memory, counted FLOPs."""
    settings = config.train_unet.optimizer.model_dump() | {
        "batch_size": case.micro_batch,
        "accumulation": 1,
        "precision": case.precision,
        "muon": None,
    }
    optimizer_config = OptimizerConfig.model_validate(settings)
    objective = objective_of(case, model, config)
    accelerator = make_accelerator(optimizer_config.precision)
    objective.to(accelerator.device)
    if case.channels_last:
        objective.network.to(memory_format=torch.channels_last)
    batch = make_batch(model, size, case.micro_batch)
    flops = count_flops(objective, batch, case)
    if case.compiled:
        compile_network(objective.network)
    parameters = [p for p in objective.network.parameters() if p.requires_grad]
    optimizer = Optimizers(objective.network, optimizer_config)
    prepared = optimizer.prepare(accelerator, objective)
    average = Average(parameters, optimizer_config.ema_decay)
    optimizer.set_rate(1e-6)

    def step(number: int) -> None:
        losses = prepared(number, batch, micro_batch_generator(0, number))
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(number)

    synchronise = torch.cuda.synchronize if accelerator.device.type == "cuda" else lambda: None
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for number in range(WARM_UP):
        step(number)
    synchronise()
    warm_up = time.perf_counter() - began
    seconds = []
    for number in range(rounds):
        began = time.perf_counter()
        step(WARM_UP + number)
        synchronise()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    result = {
        "ms_a_step": round(1000 * median, 2),
        "samples_a_second": round(case.micro_batch / median, 3),
        "tflop_a_step": round(flops / 1e12, 4),
        "warm_up_s": round(warm_up, 1),
    }
    if accelerator.device.type == "cuda":
        result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return result


def count_flops(objective: Objective, batch: Batch, case: Case) -> float:
    """Of forward and backward of the trained step, without recomputation."""
    networks = [m for m in objective.modules() if hasattr(m, "disable_gradient_checkpointing")]
    for network in networks:
        network.disable_gradient_checkpointing()  # type: ignore[operator]
    device_type = objective.device.type
    dtype = torch.bfloat16
    small = {name: value[:1] for name, value in batch.items()}  # one sample fits without
    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast(device_type, dtype, enabled=case.precision == "bf16"),
    ):
        objective(0, small, micro_batch_generator(0, 0))["loss"].backward()
    for parameter in objective.parameters():
        parameter.grad = None
    if case.checkpointing:
        for network in networks:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
    return float(counter.get_total_flops()) * case.micro_batch


def cases(stages: list[str], micro_batches: list[int], compiled: bool) -> Iterator[Case]:
    """What is timed: each stage's own ways, then Marigold's."""
    switches = itertools.product((False, True), (False, True) if compiled else (False,))
    ways = list(switches)
    for micro_batch in micro_batches:
        for stage in stages:
            for checkpointing, compiling in ways:
                yield Case(stage, micro_batch, "bf16", checkpointing, compiling)
        for precision in ("bf16", "fp32"):
            yield Case("marigold", micro_batch, precision)


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``run()``, or that it did not fit."""
    try:
        return run()
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    finally:
        gc.collect()
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    """Time everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--micro-batches", default="2,4,8")
    parser.add_argument("--only", default="vae,unet,latent,depth")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--memory-cap-gb", type=float)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/train.json"))
    arguments = parser.parse_args()
    use_all_cores()
    config = load_config("params.yaml", "demo" if arguments.toy else "sd2")
    device = default_device()
    size = config.datasets["hypersim"].train_size if arguments.toy else FULL_SIZE
    if arguments.memory_cap_gb and device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(arguments.memory_cap_gb * 1e9 / whole)
    peak = {p: matmul_flops_a_second(device, p) for p in ("bf16", "fp32")}  # type: ignore[arg-type]
    model = build(config, arguments.toy)
    result: dict[str, Any] = {
        "networks": "toy (demo)" if arguments.toy else "Stable Diffusion 2, random weights",
        "size": list(size),
        **header(device),
        "memory_cap_gb": arguments.memory_cap_gb,
        "matmul_tflop_a_second": {p: round(v / 1e12, 2) for p, v in peak.items()},
        "cases": [],
    }
    stages = arguments.only.split(",")
    batches = [int(n) for n in arguments.micro_batches.split(",")]
    todo = list(cases(stages, batches, not arguments.no_compile))
    for case in progress_bar(todo, description="steps", unit="case"):
        found = attempt(lambda c=case: time_case(c, model, config, size, arguments.rounds))  # type: ignore[misc]
        if "ms_a_step" in found:
            rate = found["tflop_a_step"] / (found["ms_a_step"] / 1000)
            found["mfu"] = round(rate / (peak[case.precision] / 1e12), 4)
        result["cases"].append({"case": case.name, **found})
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(result["cases"][-1], flush=True)


if __name__ == "__main__":
    main()
