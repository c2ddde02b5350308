"""The stage ``evaluate``: the finished model on one dataset's held-out scenes.

Beside it, in the same table: the same model without a known camera, and two constants that are
fitted on training frames. Every figure is the mean over images.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metricgold import files
from metricgold.config import DatasetName, ProfileConfig
from metricgold.data.dataset import Split
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.evaluation import pictures
from metricgold.evaluation.baselines import ConstantDepths, evenly_spaced, fit_constants
from metricgold.evaluation.engine import Evaluation, EvaluationError, evaluate
from metricgold.evaluation.pieces import evaluate_spread
from metricgold.evaluation.predictors import ConstantPredictor, PipelinePredictor, Predictor
from metricgold.evaluation.ranges import DEPTH_BINS, EDGE_DISTANCES_PX
from metricgold.evaluation.skipped import BY_PIXEL, write_skipped
from metricgold.pipeline import MetricGoldPipeline
from metricgold.spread import Spread
from metricgold.workspace import Workspace

CONSTANT_FIT_FRAMES = 200
DIGITS = 5

MODEL = "metricgold"
OTHERS = {
    "unknown_fov": ("abs_rel", "delta1", "scale_ratio"),
    "constant": ("abs_rel", "delta1"),
    "constant_median": ("abs_rel", "delta1"),
}
"""What else is in the table, and which figures of it the summary has, under its name."""


def flat_names(found: Evaluation) -> dict[str, tuple[str, str]]:
    """Names of the stage's figures: of which predictor, and what it is called there."""
    own = {name: (MODEL, name) for name in found.scores[MODEL].names}
    return own | {
        f"{other}_{name}": (other, name) for other, names in OTHERS.items() for name in names
    }


def summarise(found: Evaluation, constants: ConstantDepths, seed: int) -> dict[str, Any]:
    """Flat figures of a dataset: means over frames, intervals over scenes, counts."""
    summary: dict[str, Any] = {"frames": len(found.keys), "scenes": len(set(found.scenes))}
    summary |= {flat: found.scores[m].mean(n) for flat, (m, n) in flat_names(found).items()}
    for name in ("abs_rel", "delta1"):
        low, high = found.interval(MODEL, name, seed)
        summary |= {f"{name}_low": low, f"{name}_high": high}
    summary["ratio_to_constant"] = summary["abs_rel"] / summary["constant_abs_rel"]
    summary["constant_depth_m"] = constants.best_abs_rel_m
    summary["constant_median_depth_m"] = constants.median_m
    summary["constant_fit_frames"] = constants.frames
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in summary.items()}


def _first_of_scenes(reader: ShardReader, count: int) -> list[Frame]:
    """The first frame of each of the first ``count`` scenes."""
    first: dict[str, int] = {}
    for i in range(len(reader)):
        first.setdefault(reader.scene_of(i), i)
        if len(first) == count:
            break
    return [reader[i] for i in first.values()]


def load_pipeline(folder: Path) -> MetricGoldPipeline:
    """A checkpoint on the GPU, where there is one; raises ``CheckpointError``."""
    pipeline = MetricGoldPipeline.from_pretrained(str(folder))
    if torch.cuda.is_available():
        pipeline.to("cuda")
    return pipeline


def open_split(workspace: Workspace, dataset: str, split: Split) -> ShardReader:
    """The frames of one split; raises :class:`EvaluationError` where there are none."""
    reader = ShardReader(shard_paths(workspace.shards(dataset), split))
    if len(reader) == 0:
        raise EvaluationError(
            f"{workspace.shards(dataset)}: no {split} frame to evaluate with; check the split of "
            f"'{dataset}' in params.yaml and run 'dvc repro' again"
        )
    return reader


def model_predictor(
    pipeline: MetricGoldPipeline, config: ProfileConfig, dataset: DatasetName, use_fov: bool = True
) -> PipelinePredictor:
    """A pipeline as the profile evaluates it on a dataset; ``use_fov`` False hides the camera."""
    return PipelinePredictor(
        pipeline,
        config.evaluate.num_inference_steps,
        config.evaluate.ensemble_size,
        max(config.datasets[dataset].train_size),
        use_fov=use_fov,
        seed=config.seed,
    )


def stage_predictors(
    config: ProfileConfig,
    dataset: DatasetName,
    constants: ConstantDepths,
    pipeline: MetricGoldPipeline,
) -> dict[str, Predictor]:
    """All that stand in the stage's table."""
    return {
        MODEL: model_predictor(pipeline, config, dataset),
        "unknown_fov": model_predictor(pipeline, config, dataset, use_fov=False),
        "constant": ConstantPredictor(constants.best_abs_rel_m),
        "constant_median": ConstantPredictor(constants.median_m),
    }


def open_predictors(
    config: ProfileConfig, dataset: DatasetName, constants: ConstantDepths, model: Path
) -> dict[str, Predictor]:
    """The same, from the folder of a checkpoint."""
    return stage_predictors(config, dataset, constants, load_pipeline(model))


def _write_frames(
    workspace: Workspace,
    dataset: str,
    found: Evaluation,
    holdout: ShardReader,
    predictor: Predictor,
    limits: tuple[float, float],
    count: int,
) -> None:
    """``per_frame.csv``, panels, points and examples into the dataset's folder."""
    names = flat_names(found)
    columns = [found.scores[model].column(name).tolist() for model, name in names.values()]
    ranks = pictures.pick_ranks(found.scores[MODEL].column("abs_rel").tolist(), count)
    picked = [holdout[found.indices[rank.position]] for rank in ranks]
    with files.replaced_folder(workspace.predictions / dataset) as folder:
        rows = zip(found.keys, found.scenes, *columns, strict=True)
        files.write_csv(folder / "per_frame.csv", ["key", "scene", *names], rows)
        pictures.write_panels(folder, ranks, picked, predictor, limits)
        median_and_worst = sorted({len(ranks) // 2, len(ranks) - 1})
        pictures.write_clouds(
            folder,
            [ranks[i] for i in median_and_worst],
            [picked[i] for i in median_and_worst],
            {MODEL: predictor},
            limits,
        )
        pictures.write_examples(folder, _first_of_scenes(holdout, count))


def _write_by_pixel(workspace: Workspace, dataset: str, found: Evaluation) -> None:
    """Errors by true depth and by distance to a depth edge, beside the constant's."""
    for kind, bins in zip(BY_PIXEL, (DEPTH_BINS, EDGE_DISTANCES_PX), strict=True):
        own, constant = (
            getattr(found.scores[name], f"by_{kind}").rows(bins) for name in (MODEL, "constant")
        )
        rows = [[*row.values(), other["abs_rel"]] for row, other in zip(own, constant, strict=True)]
        path = workspace.plots / f"evaluate_{dataset}_by_{kind}.csv"
        files.write_csv(path, BY_PIXEL[kind], rows)


def run(
    config: ProfileConfig,
    workspace: Workspace,
    dataset: DatasetName,
    spread: Spread | None = None,
) -> None:
    """Evaluate ``workspace.model`` on the holdout shards of ``dataset``.

    ``spread`` names machines that predict and measure; none: this one. The figures are the same.

    Writes ``metrics/evaluate_<ds>.json`` (flat, 5 digits, deterministic),
    ``plots/evaluate_<ds>_by_{depth,edge}.csv`` (errors by kind of pixel) and, in
    ``workspace.predictions/<ds>``, ``per_frame.csv``, panels, points and examples. A dataset with
    weight 0 gets the same files, empty, with the reason.

    Raises:
        CheckpointError, EvaluationError: no model, or no frames.
    """
    if not config.datasets[dataset].enabled:
        write_skipped(workspace, dataset)
        return
    pipeline = load_pipeline(workspace.model)
    codec = pipeline.codec
    limits = (codec.depth_min_m, codec.depth_max_m)
    train, holdout = (open_split(workspace, dataset, split) for split in ("train", "holdout"))
    fit_on = evenly_spaced(len(train), CONSTANT_FIT_FRAMES)
    constants = fit_constants((train[i] for i in fit_on), limits)
    predictors = stage_predictors(config, dataset, constants, pipeline)
    chosen = evenly_spaced(len(holdout), config.evaluate.max_frames)
    if spread is None:
        found = evaluate(holdout, chosen, predictors, limits)
    else:
        found = evaluate_spread(
            shard_paths(workspace.shards(dataset), "holdout"),
            chosen,
            workspace.model,
            partial(open_predictors, config, dataset, constants),
            predictors,
            limits,
            spread,
            [dataset, config.model_dump(mode="json"), asdict(constants)],
        )
    count = config.evaluate.pictures
    _write_frames(workspace, dataset, found, holdout, predictors[MODEL], limits, count)
    _write_by_pixel(workspace, dataset, found)
    summary = summarise(found, constants, config.seed)
    files.write_json(workspace.metrics / f"evaluate_{dataset}.json", summary)
