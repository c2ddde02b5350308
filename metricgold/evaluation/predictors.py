"""One interface for everything that predicts metric depth, so that one benchmark serves all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from metricgold.geometry import fov_y_deg
from metricgold.pipeline import MetricGoldPipeline

Rgb = NDArray[np.uint8]
Depth = NDArray[np.float32]
Intrinsics = NDArray[np.float64] | None


class Predictor(Protocol):
    """From pictures to metric depth."""

    def __call__(self, rgb: Rgb, intrinsics: Intrinsics) -> Depth:
        """uint8 [H, W, 3] and K [3, 3] in pixels (None: unknown camera) to depth [H, W] in m."""
        ...

    def predict_batch(self, rgbs: Sequence[Rgb], intrinsics: Sequence[Intrinsics]) -> Depth:
        """As above for N pictures of the same size: [N, H, W]."""
        ...


class ConstantPredictor:
    """The same depth everywhere, whatever the picture."""

    def __init__(self, depth_m: float) -> None:
        if not (np.isfinite(depth_m) and depth_m > 0):
            raise ValueError(f"a constant depth must be finite and positive, got {depth_m} m")
        self.depth_m = depth_m

    def __call__(self, rgb: Rgb, intrinsics: Intrinsics = None) -> Depth:
        """Constant float32 [H, W] in metres."""
        return np.full(rgb.shape[:2], self.depth_m, dtype=np.float32)

    def predict_batch(self, rgbs: Sequence[Rgb], intrinsics: Sequence[Intrinsics]) -> Depth:
        """Constant float32 [N, H, W] in metres."""
        return np.stack([self(rgb) for rgb in rgbs])


class PipelinePredictor:
    """A MetricGold pipeline.

    Args:
        num_inference_steps, ensemble_size, processing_resolution: as in the pipeline;
            None takes what the checkpoint says.
        use_fov: False hides the camera from the network (field of view unknown).
        seed: of the noise, drawn anew for each batch; one-step predictions need none.
    """

    def __init__(
        self,
        pipeline: MetricGoldPipeline,
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        use_fov: bool = True,
        seed: int = 0,
    ) -> None:
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)
        self.num_inference_steps = num_inference_steps
        self.ensemble_size = ensemble_size
        self.processing_resolution = processing_resolution
        self.use_fov = use_fov
        self.seed = seed

    @classmethod
    def from_pretrained(cls, folder: Path | str, **options: Any) -> PipelinePredictor:
        """Load a checkpoint folder; raises ``CheckpointError``. ``options`` as above."""
        return cls(MetricGoldPipeline.from_pretrained(str(folder)), **options)

    def __call__(self, rgb: Rgb, intrinsics: Intrinsics) -> Depth:
        """Depth float32 [H, W] in metres at the picture's own size."""
        return self.predict_batch([rgb], [intrinsics])[0]

    def predict_batch(self, rgbs: Sequence[Rgb], intrinsics: Sequence[Intrinsics]) -> Depth:
        """Depth float32 [N, H, W] in metres at the pictures' own (common) size."""
        fovs = [
            fov_y_deg(k, rgb.shape[0]) if self.use_fov and k is not None else None
            for rgb, k in zip(rgbs, intrinsics, strict=True)
        ]
        output = self.pipeline(
            list(rgbs),
            num_inference_steps=self.num_inference_steps,
            ensemble_size=self.ensemble_size,
            processing_resolution=self.processing_resolution,
            fov_deg=fovs,
            batch_size=len(rgbs) * self.ensemble_size,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return output.prediction[..., 0]
