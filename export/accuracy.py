"""Depth by two ways on the same frames, with the evaluation's own metrics: what does one cost?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.manifest import ExportError, Manifest
from export.runtime import DepthSession
from metricgold import imaging
from metricgold.config import DatasetName, ProfileConfig
from metricgold.data.dataset import Split
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.evaluation.baselines import evaluation_mask, evenly_spaced
from metricgold.evaluation.metrics import depth_metrics, mean_over_images
from metricgold.geometry import fov_y_deg
from metricgold.pipeline import MetricGoldPipeline
from metricgold.pretrained import MetricGoldModel
from metricgold.progress import progress_bar
from metricgold.workspace import Workspace

Predict = Callable[[Frame], NDArray[np.float32]]
"""A frame to depth [H, W] in metres, at the frame's own size."""
FIGURES = ("abs_rel", "delta1")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What ``depth`` is worth on frames with a true depth, beside a reference.

    Attributes:
        abs_rel, delta1: means over frames.
        reference_abs_rel, reference_delta1: of the reference on the same frames.
        median_relative, max_relative: of all pixels, difference from the reference's depth as a
            share of it.
        seconds, reference_seconds: of a prediction, the median; the two took turns.
    """

    dataset: str
    frames: int
    abs_rel: float
    delta1: float
    reference_abs_rel: float
    reference_delta1: float
    median_relative: float
    max_relative: float
    seconds: float
    reference_seconds: float

    @property
    def abs_rel_change(self) -> float:
        """By how much AbsRel differs from the reference's; negative where it is better."""
        return self.abs_rel - self.reference_abs_rel

    @property
    def delta1_change(self) -> float:
        """The same of the share of pixels within a factor of 1.25."""
        return self.delta1 - self.reference_delta1


def compare_on_frames(
    dataset: str,
    frames: Sequence[Frame],
    predict: Predict,
    reference: Predict,
    depth_range_m: tuple[float, float],
) -> Accuracy:
    """Both ways on every frame with a true depth inside the range.

    Raises:
        ExportError: no frame has one.
    """
    rows, others, relative = [], [], []
    seconds: dict[str, list[float]] = {"own": [], "reference": []}
    for frame in progress_bar(frames, description=f"compare on {dataset}", unit="frame"):
        mask = evaluation_mask(frame, depth_range_m)
        if not mask.any():
            continue
        expected = _timed(reference, frame, seconds["reference"])
        depth = _timed(predict, frame, seconds["own"])
        rows.append(depth_metrics(depth, frame.depth, mask))
        others.append(depth_metrics(expected, frame.depth, mask))
        relative.append(np.abs(depth - expected).ravel() / expected.ravel())
    if not rows:
        raise ExportError(
            f"{dataset}: none of {len(frames)} frames has a true depth between "
            f"{depth_range_m[0]:g} and {depth_range_m[1]:g} m"
        )
    own, other = mean_over_images(rows), mean_over_images(others)
    differences = np.concatenate(relative)
    return Accuracy(
        dataset=dataset,
        frames=len(rows),
        **{name: own[name] for name in FIGURES},
        **{f"reference_{name}": other[name] for name in FIGURES},
        median_relative=float(np.median(differences)),
        max_relative=float(differences.max()),
        seconds=float(np.median(seconds["own"])),
        reference_seconds=float(np.median(seconds["reference"])),
    )


def frames_of(
    config: ProfileConfig, ws: Workspace, split: Split, count: int
) -> Iterator[tuple[DatasetName, list[Frame]]]:
    """``count`` frames of each dataset in use, at even distances.

    Raises:
        ExportError: a dataset has none.
    """
    for name in config.enabled_datasets():
        reader = ShardReader(shard_paths(ws.shards(name), split))
        if not len(reader):
            raise ExportError(
                f"{ws.shards(name)}: no {split} frame to compare depth on; run 'dvc repro', or "
                "set export.parity_frames to 0 in params.yaml"
            )
        yield name, [reader[i] for i in evenly_spaced(len(reader), count)]


def torch_predictor(model: MetricGoldModel, manifest: Manifest, resolution: int) -> Predict:
    """The pipeline, at the size and from the noise that the graphs of ``manifest`` take."""
    pipeline = MetricGoldPipeline.of(model)
    pipeline.set_progress_bar_config(disable=True)

    def predict(frame: Frame) -> NDArray[np.float32]:
        shape, size = frame.depth.shape, working_size(manifest, frame.depth.shape, resolution)
        rgb = (imaging.resize_rgb(frame.rgb, size) * 255).round().astype(np.uint8)
        noise = initial_noise(manifest, size)
        output = pipeline(
            rgb,
            processing_resolution=0,
            fov_deg=fov_of(frame),
            latents=None if noise is None else torch.from_numpy(noise),
        )
        return imaging.resize_depth_log(output.prediction[0, ..., 0], (shape[0], shape[1]))

    return predict


def session_predictor(session: DepthSession, resolution: int) -> Predict:
    """Exported graphs; ``resolution`` is the long side in pixels, where they leave it open."""
    manifest = session.manifest

    def predict(frame: Frame) -> NDArray[np.float32]:
        size = working_size(manifest, frame.depth.shape, resolution)
        return session.infer(
            frame.rgb,
            fov_deg=fov_of(frame),
            processing_resolution=None if manifest.static_size else resolution,
            initial_latents=initial_noise(manifest, size),
        ).depth

    return predict


def working_size(manifest: Manifest, shape: Sequence[int], resolution: int) -> tuple[int, int]:
    """Height and width in pixels that the graphs work at, of a picture of ``shape``."""
    if manifest.static_size:
        return manifest.static_size[0], manifest.static_size[1]
    return imaging.processing_size(shape[0], shape[1], resolution, manifest.size_multiple)


def initial_noise(manifest: Manifest, size: tuple[int, int]) -> NDArray[np.float32] | None:
    """What both ways start from, [1, C, h, w]; None for a one-step model, which needs none."""
    if manifest.num_inference_steps == 1:
        return None
    grid = manifest.grid
    shape = (1, grid.channels, size[0] // grid.factor, size[1] // grid.factor)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def fov_of(frame: Frame) -> float:
    """Vertical field of view of the frame's camera in degrees."""
    return fov_y_deg(frame.intrinsics, frame.depth.shape[0])


def _timed(predict: Predict, frame: Frame, seconds: list[float]) -> Any:
    began = time.perf_counter()
    depth = predict(frame)
    seconds.append(time.perf_counter() - began)
    return depth
