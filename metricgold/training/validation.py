"""Predictions for a few held-out frames while training goes on: a look, not a measurement.

Nothing is decided by them: steps, rates and weights are what params say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from metricgold import visualize
from metricgold.config import ProfileConfig
from metricgold.data.sample import Frame
from metricgold.evaluation.metrics import depth_metrics
from metricgold.evaluation.predictors import PipelinePredictor
from metricgold.pipeline import MetricGoldPipeline
from metricgold.pretrained import MetricGoldModel
from metricgold.training.banks import open_banks
from metricgold.workspace import Workspace


class Validation:
    """Predicts ``frames_of_each`` evenly spaced held-out frames of every dataset.

    A picture (rgb, ground truth, prediction, error) goes to ``folder/step-NUMBER.png``.
    """

    def __init__(
        self,
        config: ProfileConfig,
        workspace: Workspace,
        model: MetricGoldModel,
        folder: Path,
        frames_of_each: int = 2,
    ) -> None:
        self.model, self.folder = model, folder
        self.frames: list[tuple[Frame, int]] = []  # each with the long side it is trained at
        for bank in open_banks(config, workspace, "holdout").values():
            step = max(1, len(bank) // frames_of_each)
            picked = range(0, len(bank), step)[:frames_of_each]
            self.frames += [(bank.frame(i), max(bank.size)) for i in picked]

    def __call__(self, step: int) -> dict[str, float]:
        """Mean AbsRel of the frames with the present weights, which stay as they are."""
        codec = self.model.codec
        panels, errors = [], []
        with _for_inference(self.model.unet):
            pipeline = MetricGoldPipeline.of(self.model)
            for frame, long_side in self.frames:
                predictor = PipelinePredictor(pipeline, processing_resolution=long_side)
                prediction = predictor(frame.rgb, frame.intrinsics)
                mask = frame.valid_mask & (frame.depth > codec.depth_min_m)
                mask &= frame.depth < codec.depth_max_m
                panels.append(visualize.panel(frame.rgb, frame.depth, prediction, mask))
                errors.append(depth_metrics(prediction, frame.depth, mask)["abs_rel"])
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = visualize.contact_sheet(panels, columns=1)
        Image.fromarray(sheet).save(self.folder / f"step-{step:06d}.png")
        return {"validation_abs_rel": float(np.mean(errors))}


@contextmanager
def _for_inference(network: nn.Module) -> Iterator[None]:
    """A network in inference mode inside the block, and as it was afterwards."""
    training = network.training
    trained = [p for p in network.parameters() if p.requires_grad]
    network.eval()
    try:
        yield
    finally:
        network.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
