"""What the light autoencoder costs in accuracy: light and full on the same validation frames.

Usage: python scripts/light.py [--checkpoint artifacts/metricgold] [--out FILE]

Needs a finished demo run. Frames are of the worlds that ``scripts/ablations.py`` renders: seeds in
neither split, so that held-out scenes stay unseen while settings are chosen. Differences are paired
by frame, their intervals by a bootstrap over scenes. Writes docs/benchmarks/light.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from _header import header
from ablations import prepare_data

from metricgold.config import ProfileConfig, load_config
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.errors import run_cli
from metricgold.evaluation.engine import Evaluation, evaluate
from metricgold.evaluation.metrics import bootstrap_interval
from metricgold.evaluation.predictors import PipelinePredictor, Predictor, parameters_of
from metricgold.memory import keep_freed_memory
from metricgold.pipeline import MetricGoldPipeline
from metricgold.training.accelerator import default_device, use_all_cores
from metricgold.workspace import Workspace

RESULT = Path("docs/benchmarks/light.json")
FIGURES = ("abs_rel", "delta1", "boundary_f1", "rmse", "silog")


def judged(config: ProfileConfig, data: Workspace, checkpoint: Path) -> dict[str, Evaluation]:
    """Both ways on all validation frames, by dataset."""
    pipelines = {
        name: MetricGoldPipeline.from_pretrained(checkpoint, light=name == "light")
        for name in ("full", "light")
    }
    found = {}
    for dataset, section in config.enabled_datasets().items():
        size = max(section.train_size)
        predictors: dict[str, Predictor] = {
            name: PipelinePredictor(pipeline, processing_resolution=size)
            for name, pipeline in pipelines.items()
        }
        reader = ShardReader(shard_paths(data.shards(dataset), "holdout"))
        limits = config.codec.depth_min_m, config.codec.depth_max_m
        found[str(dataset)] = evaluate(reader, range(len(reader)), predictors, limits)
    return found


def compared(found: Iterable[Evaluation], seed: int) -> dict[str, Any]:
    """Means of both, and light less full with its interval, for every figure."""
    parts = list(found)
    scenes = [f"{n}/{scene}" for n, part in enumerate(parts) for scene in part.scenes]
    result: dict[str, Any] = {"frames": len(scenes)}
    for figure in FIGURES:
        full, light = (
            np.concatenate([part.scores[name].column(figure) for part in parts])
            for name in ("full", "light")
        )
        interval = bootstrap_interval((light - full).tolist(), scenes, seed=seed)
        result[figure] = {
            "full": round(float(full.mean()), 4),
            "light": round(float(light.mean()), 4),
            "difference": round(float((light - full).mean()), 4),
            "interval": [round(v, 4) for v in interval],
        }
    return result


def main() -> None:
    """Judge and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Workspace().model)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    use_all_cores()
    keep_freed_memory()
    config = load_config("params.yaml", "demo")
    found = judged(config, prepare_data(config, 1.0), arguments.checkpoint)
    light_vae = MetricGoldPipeline.from_pretrained(arguments.checkpoint).light_vae
    result = header(default_device()) | {
        "parameters": parameters_of([light_vae]),
        "all": compared(found.values(), config.seed),
        **{name: compared([one], config.seed) for name, one in found.items()},
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_cli(main)
