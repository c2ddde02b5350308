"""A champion and its challenger on the same held-out frames, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricgold.config import ProfileConfig
from metricgold.evaluation.baselines import evenly_spaced
from metricgold.evaluation.benchmark import load_pipeline, model_predictor, open_split
from metricgold.evaluation.comparison import HashedFrames
from metricgold.evaluation.engine import Evaluation, evaluate
from metricgold.evaluation.predictors import Predictor
from metricgold.evaluation.verdicts import CHALLENGER, CHAMPION
from metricgold.workspace import Workspace


@dataclass(frozen=True)
class SameFrames:
    """Both models on the held-out frames.

    Attributes:
        evaluations: by dataset, of ``champion`` and ``challenger``.
        data: by dataset: how many frames and scenes, and the SHA-256 of what was read.
    """

    evaluations: dict[str, Evaluation]
    data: dict[str, dict[str, Any]]

    @property
    def scenes(self) -> int:
        """Of all datasets."""
        return sum(len(set(found.scenes)) for found in self.evaluations.values())


def side_by_side(config: ProfileConfig, workspace: Workspace, champion: Path) -> SameFrames:
    """Evaluate a champion's checkpoint and ``workspace.model`` on the held-out shards, together.

    Whatever the champion was judged by before does not count: both see today's frames, in
    today's code, with the profile's steps and resolution.

    Raises:
        UserError: a checkpoint cannot be loaded or gives no depth, or there are no frames.
    """
    models = {CHAMPION: load_pipeline(champion), CHALLENGER: load_pipeline(workspace.model)}
    limits = (config.codec.depth_min_m, config.codec.depth_max_m)
    evaluations: dict[str, Evaluation] = {}
    data: dict[str, dict[str, Any]] = {}
    for dataset in config.enabled_datasets():
        frames = HashedFrames(open_split(workspace, dataset, "holdout"))
        chosen = evenly_spaced(len(frames), config.evaluate.max_frames)
        predictors: dict[str, Predictor] = {
            name: model_predictor(pipeline, config, dataset) for name, pipeline in models.items()
        }
        found = evaluate(frames, chosen, predictors, limits)
        evaluations[dataset] = found
        data[dataset] = {
            "frames": len(found.keys),
            "scenes": len(set(found.scenes)),
            "sha256": frames.digest(),
        }
    return SameFrames(evaluations, data)
