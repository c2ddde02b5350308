"""Pictures of the evaluation: panels and points at fixed ranks of error, and plain examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold import files, visualize
from metricgold.data.sample import Frame
from metricgold.evaluation import point_view
from metricgold.evaluation.figures import Truth, aligner
from metricgold.evaluation.point_view import Cloud
from metricgold.evaluation.predictors import Observation, Predictor
from metricgold.evaluation.skipped import CLOUDS_FILE, EXAMPLES_FILE, PANELS_FILE
from metricgold.geometry import fov_y_deg

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Rank:
    """One picked frame: its position in the evaluation and how good it is among all."""

    position: int
    percentile: float
    abs_rel: float


def pick_ranks(abs_rel: Sequence[float], count: int) -> list[Rank]:
    """Up to ``count`` frames evenly spread from the best to the worst, the median among them."""
    order = sorted(range(len(abs_rel)), key=lambda i: (abs_rel[i], i))
    shares = np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
    if count > 2:
        shares[count // 2] = 0.5
    places = sorted({int(share * (len(order) - 1) + 0.5) for share in shares}) if order else []
    last = max(len(order) - 1, 1)
    return [Rank(order[p], round(100 * p / last, 1), abs_rel[order[p]]) for p in places]


def _save_png(picture: Picture, path: Path) -> None:
    Image.fromarray(picture).save(path, format="PNG", optimize=False)


def panel(frame: Frame, predictor: Predictor, depth_range_m: tuple[float, float]) -> Picture:
    """Picture, truth, prediction and error; of a model without metres its aligned depth."""
    estimate = predictor.predict([Observation(frame.key, frame.rgb, frame.intrinsics)])[0]
    truth = Truth(frame, depth_range_m)
    depth = aligner(truth, estimate, predictor.invariance)(estimate.depth)
    return visualize.panel(frame.rgb, frame.depth, depth.astype(np.float32), truth.mask)


def clouds_of(
    frame: Frame, predictors: Mapping[str, Predictor], depth_range_m: tuple[float, float]
) -> dict[str, Cloud]:
    """Points of the truth and of every prediction, at the pixels that have a truth."""
    truth = Truth(frame, depth_range_m)
    depths = {"truth": frame.depth}
    for label, predictor in predictors.items():
        estimate = predictor.predict([Observation(frame.key, frame.rgb, frame.intrinsics)])[0]
        depths[label] = aligner(truth, estimate, predictor.invariance)(estimate.depth)
    return {
        label: point_view.cloud_of(depth, frame.rgb, frame.intrinsics, truth.mask)
        for label, depth in depths.items()
    }


def write_panels(
    folder: Path,
    ranks: Sequence[Rank],
    frames: Sequence[Frame],
    predictor: Predictor,
    depth_range_m: tuple[float, float],
) -> None:
    """``panel_00.png`` ... (rgb, truth, prediction) and ``panels.json`` that says what they are."""
    entries = []
    for i, (rank, frame) in enumerate(zip(ranks, frames, strict=True)):
        name = f"panel_{i:02d}.png"
        _save_png(panel(frame, predictor, depth_range_m), folder / name)
        entries.append(_entry(name, rank, frame))
    files.write_json(folder / PANELS_FILE, entries)


def write_clouds(
    folder: Path,
    ranks: Sequence[Rank],
    frames: Sequence[Frame],
    predictors: Mapping[str, Predictor],
    depth_range_m: tuple[float, float],
) -> None:
    """``cloud_00.json`` ... (for the page's view of points) and ``clouds.json``, as above."""
    entries = []
    for i, (rank, frame) in enumerate(zip(ranks, frames, strict=True)):
        name = f"cloud_{i:02d}.json"
        clouds = clouds_of(frame, predictors, depth_range_m)
        files.write_json(folder / name, point_view.content(clouds))
        entries.append(_entry(name, rank, frame))
    files.write_json(folder / CLOUDS_FILE, entries)


def _entry(name: str, rank: Rank, frame: Frame) -> dict[str, Any]:
    return {
        "file": name,
        "key": frame.key,
        "percentile": rank.percentile,
        "abs_rel": round(rank.abs_rel, 5),
    }


def write_examples(folder: Path, frames: Sequence[Frame]) -> None:
    """``example_00.png`` ...: the plain rgb; ``examples.json`` has each field of view."""
    entries = []
    for i, frame in enumerate(frames):
        name = f"example_{i:02d}.png"
        _save_png(frame.rgb, folder / name)
        fov = fov_y_deg(frame.intrinsics, frame.rgb.shape[0])
        entries.append({"file": name, "key": frame.key, "fov_y_deg": round(fov, 3)})
    files.write_json(folder / EXAMPLES_FILE, entries)
