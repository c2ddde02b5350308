"""How well a confidence head knows the errors of a finished run, beside the mirror image.

Usage: python scripts/confidence.py [--steps 300] [--width 32]

Trains a head for ``artifacts/metricgold`` on the run's own latents, as it is trained at the end of
stage C where ``train_one_step.confidence`` asks for one, and judges two uncertainties on the
held-out frames: that of the head, from one prediction, and that of the picture and its mirror
image, from two. The checkpoint stays as it is; the one with a head goes to ``.work/confidence``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from _header import header

from metricgold.config import ConfidenceConfig, ProfileConfig, load_config
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.errors import run_cli
from metricgold.evaluation.engine import Evaluation, evaluate
from metricgold.evaluation.metrics import bootstrap_interval
from metricgold.evaluation.predictors import PipelinePredictor, Predictor
from metricgold.memory import keep_freed_memory
from metricgold.pipeline import MetricGoldPipeline
from metricgold.pretrained import MetricGoldModel
from metricgold.training import checkpoint
from metricgold.training.accelerator import default_device, use_all_cores
from metricgold.training.latents import open_latents
from metricgold.training.one_step import CONFIDENCE, train_confidence
from metricgold.workspace import Workspace

RESULT = Path("docs/benchmarks/confidence.json")
OUT = Path(".work/confidence")
FIGURES = ("nause", "spearman", "abs_rel")


def with_head(config: ProfileConfig, steps: int, width: int) -> ProfileConfig:
    """The profile with a head, trained like the latent phase but for the number of steps."""
    optimizer = config.train_one_step.latent_phase.model_copy(
        update={"steps": steps, "warmup_steps": steps // 10, "ema_decay": 0.0}
    )
    confidence = ConfidenceConfig(width=width, optimizer=optimizer)
    section = config.train_one_step.model_copy(update={"confidence": confidence})
    return config.model_copy(update={"train_one_step": section})


def judged(config: ProfileConfig, workspace: Workspace) -> dict[str, Evaluation]:
    """Both uncertainties on all held-out frames, by dataset."""
    pipeline = MetricGoldPipeline.from_pretrained(str(OUT))
    found = {}
    for name, dataset in config.enabled_datasets().items():
        size = max(dataset.train_size)
        predictors: dict[str, Predictor] = {
            "head": PipelinePredictor(pipeline, processing_resolution=size),
            "mirror image": PipelinePredictor(
                pipeline, ensemble_size=2, processing_resolution=size
            ),
        }
        reader = ShardReader(shard_paths(workspace.shards(name), "holdout"))
        limits = config.codec.depth_min_m, config.codec.depth_max_m
        found[str(name)] = evaluate(reader, range(len(reader)), predictors, limits)
    return found


def means(found: dict[str, Evaluation], model: str, seed: int) -> dict[str, Any]:
    """Means over all frames with intervals over scenes, and nAUSE by dataset."""
    scenes = [f"{name}/{scene}" for name, one in found.items() for scene in one.scenes]
    result: dict[str, Any] = {}
    for figure in FIGURES:
        values = np.concatenate([one.scores[model].column(figure) for one in found.values()])
        result[figure] = round(float(values.mean()), 4)
        interval = bootstrap_interval(values.tolist(), scenes, seed=seed)
        result[f"{figure}_interval"] = [round(v, 4) for v in interval]
    result["nause_by_dataset"] = {
        name: round(one.scores[model].mean("nause"), 4) for name, one in found.items()
    }
    return result


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=32)
    arguments = parser.parse_args()
    use_all_cores()
    keep_freed_memory()
    workspace = Workspace()
    config = with_head(load_config(), arguments.steps, arguments.width)
    model = MetricGoldModel.from_pretrained(workspace.model).to(default_device())
    began = time.perf_counter()
    train_confidence(config, workspace, model, open_latents(config, workspace), "by a script")
    seconds = time.perf_counter() - began
    model.to("cpu").save_pretrained(OUT)
    checkpoint.discard(workspace.scratch(f"train_one_step_{CONFIDENCE}"))
    found = judged(config, workspace)
    head = model.confidence
    result = header(default_device()) | {
        "steps": arguments.steps,
        "width": arguments.width,
        "parameters": sum(p.numel() for p in head.parameters()),
        "training_seconds": round(seconds, 1),
        "frames": sum(len(one.keys) for one in found.values()),
        "models": {m: means(found, m, config.seed) for m in ("head", "mirror image")},
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_cli(main)
