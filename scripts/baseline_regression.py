"""The yardstick: a plain regression U-Net, same size, same training time, same pictures.

Usage: ``python scripts/baseline_regression.py --seconds N`` after ``dvc repro``.

No latents, no diffusion, no VAE: a convolutional U-Net from the picture and the camera's
rays (so that it knows the field of view, as MetricGold does) to log-depth at full training
resolution, with MetricGold's stage-C loss, augmentations, mixture and optimizer. ``N`` is
the wall-clock time that all of MetricGold's training stages took together on the same
machine (their own log lines say it); steps are set from the measured time of a step.
The figures go to ``docs/benchmarks/regression_baseline.json``, which the report reads.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from metricgold import imaging
from metricgold.config import (
    OptimizerConfig,
    ProfileConfig,
    TrainOneStepConfig,
    load_config,
)
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.depth_codec import DepthCodec
from metricgold.errors import run_cli
from metricgold.evaluation.engine import Evaluation, evaluate
from metricgold.evaluation.metrics import METRIC_NAMES, bootstrap_interval, mean_over_images
from metricgold.evaluation.predictors import Estimate, Observation, Predictor
from metricgold.evaluation.summary import datasets_digest
from metricgold.geometry import fov_y_deg, ray_latent
from metricgold.pretrained import MetricGoldModel
from metricgold.training import checkpoint
from metricgold.training.accelerator import use_all_cores
from metricgold.training.autoencoder import FrameBatches
from metricgold.training.banks import depth_norm_of, open_banks
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train
from metricgold.training.one_step import depth_loss
from metricgold.workspace import Workspace

WIDTHS = (16, 32, 96, 208, 344)
TRIAL_STEPS = 200
BASELINE = "regression"
COMPARED = ("abs_rel", "delta1", "boundary_f1")
FIGURES = (*METRIC_NAMES, "boundary_f1")
RESULT = Path("docs/benchmarks/regression_baseline.json")


class Block(nn.Module):
    """Two 3x3 convolutions with GroupNorm and SiLU, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, outputs) for _ in range(2))
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W]."""
        y = F.silu(self.norms[0](self.first(x)))
        return self.shortcut(x) + F.silu(self.norms[1](self.second(y)))


class RegressionUNet(nn.Module):
    """Picture [B, 3, H, W] and rays [B, 4, H, W] to depth_norm [B, 1, H, W]."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        inputs = (7, *widths[:-1])
        self.down = nn.ModuleList(Block(i, o) for i, o in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(
            Block(deep + skip, skip)
            for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, rgb: Tensor, rays: Tensor) -> Tensor:
        """depth_norm, not clipped."""
        x = torch.cat([rgb, rays], dim=1)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        return self.out(x)


def rays_of(fov: Tensor, size: tuple[int, int]) -> Tensor:
    """The camera's rays [B, 4, H, W] at pixel resolution."""
    return torch.from_numpy(ray_latent(fov.double().numpy(), size))


class DepthRegression(Objective):
    """Stage C's metric loss on depth that is regressed from the picture."""

    def __init__(self, network: nn.Module, codec: DepthCodec, config: TrainOneStepConfig) -> None:
        super().__init__(network)
        self.codec, self.config = codec, config

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of a micro-batch of frames."""
        target, valid = depth_norm_of(self.codec, batch["depth"], batch["valid_mask"])
        rgb = batch["rgb"]
        predicted = self.network(rgb, rays_of(batch["fov_y_deg"], tuple(rgb.shape[-2:])))
        return depth_loss(predicted, target, valid, batch["sky_mask"], self.codec, self.config)


def train_network(
    config: ProfileConfig, workspace: Workspace, seconds: float
) -> tuple[nn.Module, int, float]:
    """Train for about ``seconds``; returns the network, the steps and the seconds taken."""
    codec = DepthCodec(config.codec.depth_min_m, config.codec.depth_max_m)
    section = config.train_one_step
    network = RegressionUNet()
    banks = open_banks(config, workspace, "train")

    def run_for(steps: int, scratch: str) -> None:
        """Train ``network`` as it is then."""
        values = section.optimizer.model_dump() | {
            "steps": steps, "lr": 1e-3, "checkpoint_every": 10**9, "batch_size": 16,
            "muon": section.latent_phase.muon,
        }  # fmt: skip
        optimizer = OptimizerConfig.model_validate(values)
        keys = ("rgb", "depth", "valid_mask", "sky_mask", "fov_y_deg")
        train(
            Run(
                name=scratch,
                objective=DepthRegression(network, codec, section),
                optimizer=optimizer,
                batches=FrameBatches(config, banks, optimizer, salt=31, keys=keys),
                scratch=workspace.scratch(scratch),
                seed=5,
                identity=str(time.time()),
            )
        )
        checkpoint.discard(workspace.scratch(scratch))

    def timed(steps: int) -> float:
        """Seconds that so many steps take."""
        began = time.perf_counter()
        run_for(steps, "baseline")
        return time.perf_counter() - began

    timed(TRIAL_STEPS // 5)  # to warm up
    steps = max(TRIAL_STEPS, math.ceil(seconds * TRIAL_STEPS / timed(TRIAL_STEPS)))
    torch.manual_seed(config.seed)
    network = RegressionUNet()
    took = timed(steps)
    return network.eval(), steps, took


class RegressionPredictor(Predictor):
    """The network at the resolution it was trained at."""

    def __init__(self, network: nn.Module, codec: DepthCodec, long_side: int) -> None:
        self.network, self.codec, self.long_side = network, codec, long_side

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """Depth float32 [H, W] in metres at the pictures' own size."""
        return [Estimate(self._depth(one)) for one in observations]

    @torch.no_grad()
    def _depth(self, one: Observation) -> NDArray[np.float32]:
        height, width = one.rgb.shape[:2]
        size = imaging.processing_size(height, width, self.long_side, 16)
        rgb = torch.from_numpy(imaging.resize_rgb(one.rgb, size)).permute(2, 0, 1)[None]
        fov = torch.tensor([fov_y_deg(one.intrinsics, height)])
        norm = self.network(rgb * 2 - 1, rays_of(fov, size))[0, 0].numpy()
        return imaging.resize_depth_log(self.codec.decode(np.clip(norm, -1, 1)), (height, width))


def evaluated(
    network: nn.Module, config: ProfileConfig, workspace: Workspace
) -> dict[str, Evaluation]:
    """Figures of all held-out frames at native resolution, by dataset."""
    codec = DepthCodec(config.codec.depth_min_m, config.codec.depth_max_m)
    limits = (codec.depth_min_m, codec.depth_max_m)
    found = {}
    for name, dataset in config.enabled_datasets().items():
        reader = ShardReader(shard_paths(workspace.shards(name), "holdout"))
        predictor = RegressionPredictor(network, codec, max(dataset.train_size))
        found[name] = evaluate(reader, range(len(reader)), {BASELINE: predictor}, limits)
    return found


def compared(
    found: dict[str, Evaluation], config: ProfileConfig, ws: Workspace
) -> dict[str, float]:
    """Means of the baseline, and MetricGold's figures less its own on the same frames.

    Paired bootstrap: differences a frame, whole scenes drawn with replacement.
    """
    scenes, theirs, ours = [], [], []
    for name, one in found.items():
        with (ws.predictions / name / "per_frame.csv").open(newline="") as stream:
            rows = {row["key"]: row for row in csv.DictReader(stream)}
        scenes += [f"{name}/{scene}" for scene in one.scenes]
        theirs += [{k: row[k] for k in FIGURES} for row in one.scores[BASELINE].rows()]
        ours += [rows[key] for key in one.keys]
    result = mean_over_images(theirs) | {"frames": len(theirs)}
    for figure in COMPARED:
        differences = [
            float(own[figure]) - other[figure] for own, other in zip(ours, theirs, strict=True)
        ]
        low, high = bootstrap_interval(differences, scenes, seed=config.seed)
        result |= {
            f"{figure}_difference": float(np.mean(differences)),
            f"{figure}_difference_low": low,
            f"{figure}_difference_high": high,
        }
    return result


def main() -> None:
    """Train, evaluate, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, required=True, help="training time")
    seconds = parser.parse_args().seconds
    use_all_cores()
    config, workspace = load_config(), Workspace()
    network, steps, took = train_network(config, workspace, seconds)
    means = compared(evaluated(network, config, workspace), config, workspace)
    result: dict[str, Any] = {name: round(float(value), 5) for name, value in means.items()}
    model = MetricGoldModel.from_pretrained(workspace.model)
    parts = (model.unet, model.image_vae.encoder, model.depth_vae.decoder)
    result |= {
        "datasets": datasets_digest(config),
        "parameters": sum(p.numel() for p in network.parameters()),
        "metricgold_parameters": sum(p.numel() for part in parts for p in part.parameters()),
        "training_seconds": round(took, 1),
        "seconds_asked": seconds,
        "steps": steps,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_cli(main)
