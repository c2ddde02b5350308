"""Pictures of the evaluation: comparison panels at fixed ranks of error, and plain examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold import files, visualize
from metricgold.data.sample import Frame
from metricgold.depth_codec import DepthCodec
from metricgold.evaluation.baselines import evaluation_mask
from metricgold.evaluation.predictors import PipelinePredictor
from metricgold.evaluation.skipped import EXAMPLES_FILE, PANELS_FILE
from metricgold.geometry import fov_y_deg


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


def _save_png(picture: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(picture).save(path, format="PNG", optimize=False)


def write_panels(
    folder: Path,
    ranks: Sequence[Rank],
    frames: Sequence[Frame],
    predictor: PipelinePredictor,
    codec: DepthCodec,
) -> None:
    """``panel_00.png`` ... (rgb, truth, prediction) and ``panels.json`` that says what they are."""
    entries = []
    for i, (rank, frame) in enumerate(zip(ranks, frames, strict=True)):
        prediction = predictor(frame.rgb, frame.intrinsics)
        mask = evaluation_mask(frame, codec)
        picture = visualize.panel(frame.rgb, frame.depth, prediction, mask)
        name = f"panel_{i:02d}.png"
        _save_png(picture, folder / name)
        entries.append(
            {
                "file": name,
                "key": frame.key,
                "percentile": rank.percentile,
                "abs_rel": round(rank.abs_rel, 5),
            }
        )
    files.write_json(folder / PANELS_FILE, entries)


def write_examples(folder: Path, frames: Sequence[Frame]) -> None:
    """``example_00.png`` ...: the plain rgb; ``examples.json`` has each field of view."""
    entries = []
    for i, frame in enumerate(frames):
        name = f"example_{i:02d}.png"
        _save_png(frame.rgb, folder / name)
        fov = fov_y_deg(frame.intrinsics, frame.rgb.shape[0])
        entries.append({"file": name, "key": frame.key, "fov_y_deg": round(fov, 3)})
    files.write_json(folder / EXAMPLES_FILE, entries)
