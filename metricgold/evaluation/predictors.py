"""One interface for everything that predicts depth, so that one evaluation serves all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from metricgold.ensemble import same_noise
from metricgold.errors import UserError
from metricgold.geometry import fov_y_deg
from metricgold.pipeline import MetricGoldPipeline
from metricgold.tiling import predict_tiled

Rgb = NDArray[np.uint8]
Depth = NDArray[np.float32]
Intrinsics = NDArray[np.float64] | None


class Invariance(StrEnum):
    """What a model's numbers leave open; only METRIC ones may enter the metric track."""

    METRIC = "metric"
    AFFINE_DEPTH = "affine-invariant depth"
    AFFINE_DISPARITY = "affine-invariant disparity"


@dataclass(frozen=True)
class Observation:
    """What a predictor is shown of a frame.

    Attributes:
        key: the frame's name in its set.
        rgb: uint8 [H, W, 3].
        intrinsics: K [3, 3] in pixels, or None for an unknown camera.
    """

    key: str
    rgb: Rgb
    intrinsics: Intrinsics


@dataclass(frozen=True)
class Estimate:
    """What a predictor says of a frame.

    Attributes:
        depth: float32 [H, W]: metres, or what the predictor's ``invariance`` says.
        uncertainty: likewise [H, W], in the unit of ``depth``; None where there is none.
    """

    depth: Depth
    uncertainty: Depth | None = None


class Predictor(ABC):
    """From pictures to depth.

    Attributes:
        invariance: what the numbers leave open.
        parameters: how many trained numbers it has; None if unknown.
    """

    invariance: Invariance = Invariance.METRIC
    parameters: int | None = None

    @abstractmethod
    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """Of observations that are all of one size; one estimate each, in order."""

    def __call__(self, rgb: Rgb, intrinsics: Intrinsics = None) -> Depth:
        """Depth [H, W] of one picture uint8 [H, W, 3]."""
        return self.predict([Observation("", rgb, intrinsics)])[0].depth


class ConstantPredictor(Predictor):
    """The same depth everywhere, whatever the picture."""

    parameters = 1

    def __init__(self, depth_m: float) -> None:
        if not (np.isfinite(depth_m) and depth_m > 0):
            raise ValueError(f"a constant depth must be finite and positive, got {depth_m} m")
        self.depth_m = depth_m

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """Constant float32 [H, W] in metres."""
        shapes = [o.rgb.shape[:2] for o in observations]
        return [Estimate(np.full(shape, self.depth_m, dtype=np.float32)) for shape in shapes]


class PipelinePredictor(Predictor):
    """A MetricGold pipeline.

    Args:
        num_inference_steps, ensemble_size, processing_resolution: as in the pipeline;
            None takes what the checkpoint says.
        use_fov: False hides the camera from the network (field of view unknown).
        seed: of the noise, the same for every picture, whatever it is predicted with; one-step
            predictions need none.
        tile_size: larger pictures are predicted in tiles of this long side in pixels.

    Uncertainty is given where an ensemble or a confidence head gives one, but not in tiles.
    """

    def __init__(
        self,
        pipeline: MetricGoldPipeline,
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        use_fov: bool = True,
        seed: int = 0,
        tile_size: int | None = None,
    ) -> None:
        self.tile_size = tile_size
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)
        self.num_inference_steps = num_inference_steps
        self.ensemble_size = ensemble_size
        self.processing_resolution = processing_resolution
        self.use_fov = use_fov
        self.seed = seed
        self.parameters = parameters_of(pipeline.parts_in_use.values())

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: Path | str,
        device: str | None = None,
        light: bool | None = None,
        **options: Any,
    ) -> PipelinePredictor:
        """Load a checkpoint; raises ``CheckpointError``. ``light`` as there, others as above."""
        pipeline = MetricGoldPipeline.from_pretrained(checkpoint, light=light)
        if device is not None:
            pipeline.to(device)
        return cls(pipeline, **options)

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """Depth float32 [H, W] in metres at the pictures' own size.

        Raises:
            UserError: an option that is impossible.
        """
        try:
            return self._predict(observations)
        except ValueError as error:
            raise UserError(str(error)) from None

    def _predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        fovs = [
            fov_y_deg(o.intrinsics, o.rgb.shape[0])
            if self.use_fov and o.intrinsics is not None
            else None
            for o in observations
        ]
        options: dict[str, Any] = {
            "num_inference_steps": self.num_inference_steps,
            "ensemble_size": self.ensemble_size,
            "processing_resolution": self.processing_resolution,
            "batch_size": len(observations) * self.ensemble_size,
        }
        generators = same_noise(self.seed, len(observations))
        rgbs = [o.rgb for o in observations]
        if self.tile_size is not None:
            options["tile_size"] = self.tile_size
            return [
                Estimate(predict_tiled(self.pipeline, rgb, fov_deg=fov, generator=own, **options))
                for rgb, fov, own in zip(rgbs, fovs, generators, strict=True)
            ]
        unsure = self.ensemble_size > 1 or self.pipeline.confidence is not None
        output = self.pipeline(
            rgbs, fov_deg=fovs, output_uncertainty=unsure, generator=generators, **options
        )
        errors = output.uncertainty if unsure else [None] * len(observations)
        return [
            Estimate(depth[..., 0], None if error is None else error[..., 0])
            for depth, error in zip(output.prediction, errors, strict=True)
        ]


def parameters_of(parts: Any) -> int:
    """Number of parameters of those ``parts`` that are networks."""
    networks = [part for part in parts if isinstance(part, nn.Module)]
    return sum(p.numel() for network in networks for p in network.parameters())
