"""Evaluation of the finished model on one dataset's held-out scenes.

Two tracks that are never mixed: metric (keys without prefix: no alignment whatsoever)
and affine-invariant (keys ``affine_*``: per-image scale and shift from the truth). The
constant predictors are fitted on training frames. Every figure is the mean over images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metricgold import files
from metricgold.config import DatasetName, ProfileConfig
from metricgold.data.dataset import Split
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.depth_codec import DepthCodec
from metricgold.errors import UserError
from metricgold.evaluation import pictures, ranges
from metricgold.evaluation.alignment import align_depth, align_disparity
from metricgold.evaluation.baselines import ConstantDepths, evaluation_mask, fit_constants
from metricgold.evaluation.boundaries import boundary_score
from metricgold.evaluation.metrics import bootstrap_interval, depth_metrics, mean_over_images
from metricgold.evaluation.predictors import PipelinePredictor
from metricgold.evaluation.skipped import write_skipped
from metricgold.pipeline import MetricGoldPipeline
from metricgold.progress import progress_bar
from metricgold.workspace import Workspace

CONSTANT_FIT_FRAMES = 200
BATCH_PIXELS = 2**18
MAX_BATCH = 16
DIGITS = 5

Depth = NDArray[np.float32]


class EvaluationError(UserError):
    """Nothing can be evaluated; the message says what is missing and what to run."""


@dataclass(frozen=True)
class FrameResult:
    """Figures of one held-out frame; ``index`` is its place in the shards."""

    index: int
    key: str
    scene: str
    values: dict[str, float]


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """All indices below ``total``, or ``limit`` of them at even distances."""
    if limit is None or limit >= total:
        return list(range(total))
    return [i * total // limit for i in range(limit)]


def batches(frames: Iterable[tuple[int, Frame]]) -> Iterator[list[tuple[int, Frame]]]:
    """Consecutive (index, frame) of equal size together, bounded in pixels and in number."""
    batch: list[tuple[int, Frame]] = []
    for index, frame in frames:
        if batch:
            shape = batch[0][1].depth.shape
            most = max(1, min(MAX_BATCH, BATCH_PIXELS // (shape[0] * shape[1])))
            if len(batch) >= most or frame.depth.shape != shape:
                yield batch
                batch = []
        batch.append((index, frame))
    if batch:
        yield batch


def _selected(values: dict[str, float], prefix: str, *names: str) -> dict[str, float]:
    return {f"{prefix}_{name}": values[name] for name in names}


def frame_figures(
    frame: Frame, known: Depth, unknown: Depth, constants: ConstantDepths, codec: DepthCodec
) -> dict[str, float]:
    """Figures of one frame.

    Args:
        known, unknown: predictions [H, W] in metres with and without the field of view.
    """
    gt, mask = frame.depth, evaluation_mask(frame, codec)
    limits = (codec.depth_min_m, codec.depth_max_m)
    figures = depth_metrics(known, gt, mask)
    boundary = boundary_score(known, gt, mask)
    figures |= {f"boundary_{name}": value for name, value in boundary._asdict().items()}
    without_fov = depth_metrics(unknown, gt, mask)
    figures |= _selected(without_fov, "unknown_fov", "abs_rel", "delta1", "scale_ratio")
    affine = depth_metrics(align_depth(known, gt, mask, *limits), gt, mask)
    figures |= _selected(affine, "affine", "abs_rel", "delta1")
    disparity = depth_metrics(align_disparity(known, gt, mask, *limits), gt, mask)
    figures |= _selected(disparity, "affine_disparity", "abs_rel", "delta1")
    for name, constant in (
        ("constant", constants.best_abs_rel_m),
        ("constant_median", constants.median_m),
    ):
        guess = np.full(gt.shape, constant, dtype=np.float32)
        figures |= _selected(depth_metrics(guess, gt, mask), name, "abs_rel", "delta1")
    return figures


def evaluate_frames(
    reader: ShardReader,
    chosen: Sequence[int],
    known: PipelinePredictor,
    unknown: PipelinePredictor,
    constants: ConstantDepths,
    codec: DepthCodec,
) -> tuple[list[FrameResult], ranges.RangeErrors]:
    """Figures a frame, in order, and pixel errors by depth; frames without truth are left out."""
    results: list[FrameResult] = []
    by_range = ranges.RangeErrors(ranges.octave_edges(codec))
    with progress_bar(description="evaluate", total=len(chosen), unit="frame") as bar:
        for batch in batches((i, reader[i]) for i in chosen):
            rgbs, cameras = [f.rgb for _, f in batch], [f.intrinsics for _, f in batch]
            with_fov = known.predict_batch(rgbs, cameras)
            without_fov = unknown.predict_batch(rgbs, cameras)
            _check_finite(batch, with_fov, without_fov)
            for (index, frame), pred, blind in zip(batch, with_fov, without_fov, strict=True):
                mask = evaluation_mask(frame, codec)
                if mask.any():
                    values = frame_figures(frame, pred, blind, constants, codec)
                    results.append(FrameResult(index, frame.key, frame.scene, values))
                    by_range.add(pred, frame.depth, mask, constants.best_abs_rel_m)
            bar.update(len(batch))
    return results, by_range


def _check_finite(batch: Sequence[tuple[int, Frame]], *predictions: Depth) -> None:
    for prediction in predictions:
        for (_, frame), depth in zip(batch, prediction, strict=True):
            if not np.isfinite(depth).all():
                raise EvaluationError(
                    f"{frame.key}: the model predicts depth that is not finite; its weights are "
                    "damaged or diverged, train again ('dvc repro -f train_one_step')"
                )


def summarise(
    results: Sequence[FrameResult], constants: ConstantDepths, seed: int
) -> dict[str, Any]:
    """Flat figures of a dataset: means over frames, intervals over scenes, counts."""
    scenes = [r.scene for r in results]
    means = mean_over_images([r.values for r in results])
    summary: dict[str, Any] = {"frames": len(results), "scenes": len(set(scenes))}
    summary |= means
    for name in ("abs_rel", "delta1"):
        low, high = bootstrap_interval([r.values[name] for r in results], scenes, seed=seed)
        summary |= {f"{name}_low": low, f"{name}_high": high}
    summary["ratio_to_constant"] = means["abs_rel"] / means["constant_abs_rel"]
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


def _load_pipeline(folder: Path) -> MetricGoldPipeline:
    pipeline = MetricGoldPipeline.from_pretrained(str(folder))
    if torch.cuda.is_available():
        pipeline.to("cuda")
    return pipeline


def _open(workspace: Workspace, dataset: str, split: Split) -> ShardReader:
    reader = ShardReader(shard_paths(workspace.shards(dataset), split))
    if len(reader) == 0:
        raise EvaluationError(
            f"{workspace.shards(dataset)}: no {split} frame to evaluate with; check the split of "
            f"'{dataset}' in params.yaml and run 'dvc repro' again"
        )
    return reader


def _predictor(
    pipeline: MetricGoldPipeline, config: ProfileConfig, dataset: DatasetName, use_fov: bool
) -> PipelinePredictor:
    return PipelinePredictor(
        pipeline,
        config.evaluate.num_inference_steps,
        config.evaluate.ensemble_size,
        max(config.datasets[dataset].train_size),
        use_fov=use_fov,
        seed=config.seed,
    )


def _write_frames(
    workspace: Workspace,
    dataset: str,
    results: Sequence[FrameResult],
    holdout: ShardReader,
    predictor: PipelinePredictor,
    count: int,
) -> None:
    """``per_frame.csv``, panels and examples into the dataset's folder of predictions."""
    names = list(results[0].values)
    ranks = pictures.pick_ranks([r.values["abs_rel"] for r in results], count)
    picked = [holdout[results[rank.position].index] for rank in ranks]
    codec = predictor.pipeline.codec
    with files.replaced_folder(workspace.predictions / dataset) as folder:
        rows = ([r.key, r.scene, *(r.values[n] for n in names)] for r in results)
        files.write_csv(folder / "per_frame.csv", ["key", "scene", *names], rows)
        pictures.write_panels(folder, ranks, picked, predictor, codec)
        pictures.write_examples(folder, _first_of_scenes(holdout, count))


def run(config: ProfileConfig, workspace: Workspace, dataset: DatasetName) -> None:
    """Evaluate ``workspace.model`` on the holdout shards of ``dataset``.

    Writes ``metrics/evaluate_<ds>.json`` (flat, 5 digits, deterministic),
    ``plots/evaluate_<ds>.csv`` (errors by depth range) and, in
    ``workspace.predictions/<ds>``, ``per_frame.csv``, panels and examples. A dataset with
    weight 0 gets the same files, empty, with the reason.

    Raises:
        CheckpointError, EvaluationError: no model, or no frames.
    """
    if not config.datasets[dataset].enabled:
        write_skipped(workspace, dataset)
        return
    pipeline = _load_pipeline(workspace.model)
    codec = pipeline.codec
    known = _predictor(pipeline, config, dataset, use_fov=True)
    unknown = _predictor(pipeline, config, dataset, use_fov=False)
    train, holdout = _open(workspace, dataset, "train"), _open(workspace, dataset, "holdout")
    fit_on = evenly_spaced(len(train), CONSTANT_FIT_FRAMES)
    constants = fit_constants((train[i] for i in fit_on), codec)
    chosen = evenly_spaced(len(holdout), config.evaluate.max_frames)
    results, by_range = evaluate_frames(holdout, chosen, known, unknown, constants, codec)
    if not results:
        raise EvaluationError(
            f"{workspace.shards(dataset)}: none of the {len(chosen)} holdout frames has a valid "
            "depth inside the codec's range; check depth_min_m and depth_max_m in params.yaml"
        )
    _write_frames(workspace, dataset, results, holdout, known, config.evaluate.pictures)
    files.write_csv(workspace.plots / f"evaluate_{dataset}.csv", ranges.COLUMNS, by_range.rows())
    summary = summarise(results, constants, config.seed)
    files.write_json(workspace.metrics / f"evaluate_{dataset}.json", summary)
