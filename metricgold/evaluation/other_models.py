"""Other people's depth models behind this project's interface, for tables on equal terms.

Marigold through diffusers; Depth Anything V2, ZoeDepth, Depth Pro and whatever else transformers
calls a depth estimator. Their licences are their own, some are not for commercial use.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import torch

from metricgold.errors import UserError
from metricgold.evaluation.predictors import Depth, Intrinsics, Rgb

SMALLEST_M = 1e-3
"""Depth that predictions of other models are raised to: some give zeros, which no metric takes."""


class Invariance(StrEnum):
    """What a model's numbers leave open; only METRIC ones may enter the metric track."""

    METRIC = "metric"
    AFFINE_DEPTH = "affine-invariant depth"
    AFFINE_DISPARITY = "affine-invariant disparity"


class _Model(ABC):
    """Predicts pictures of one size together."""

    invariance: Invariance

    def __call__(self, rgb: Rgb, intrinsics: Intrinsics = None) -> Depth:
        """uint8 [H, W, 3] to [H, W]: metres, or what ``invariance`` says."""
        return self.predict_batch([rgb], [intrinsics])[0]

    @abstractmethod
    def predict_batch(self, rgbs: Sequence[Rgb], intrinsics: Sequence[Intrinsics]) -> Depth:
        """As above for N pictures of the same size: [N, H, W]."""


class FunctionPredictor(_Model):
    """Any function from a picture (and its K, if it takes two arguments) to depth [H, W].

    Args:
        function: uint8 [H, W, 3], and K [3, 3] or None, to metres or what ``invariance`` says.
    """

    def __init__(
        self, function: Callable[..., Any], invariance: Invariance = Invariance.METRIC
    ) -> None:
        self.invariance, self._function = invariance, function
        self._takes_camera = len(inspect.signature(function).parameters) > 1

    def predict_batch(self, rgbs: Sequence[Rgb], intrinsics: Sequence[Intrinsics]) -> Depth:
        """One after the other.

        Raises:
            ValueError: the function gave another shape than the picture has.
        """
        found = []
        for rgb, camera in zip(rgbs, intrinsics, strict=True):
            depth = np.asarray(
                self._function(rgb, camera) if self._takes_camera else self._function(rgb)
            )
            if depth.shape != rgb.shape[:2]:
                raise ValueError(
                    f"a predictor gave {list(depth.shape)} for a picture of {list(rgb.shape[:2])}"
                )
            found.append(depth.astype(np.float32))
        return np.stack(found)


class MarigoldPredictor(_Model):
    """A checkpoint of diffusers' Marigold depth pipeline: affine-invariant depth in [0, 1].

    Args:
        pipeline: ``diffusers.MarigoldDepthPipeline``.
        options: of its call, such as ``num_inference_steps`` and ``ensemble_size``.
    """

    invariance = Invariance.AFFINE_DEPTH

    def __init__(self, pipeline: Any, seed: int = 0, **options: Any) -> None:
        self._pipeline, self._seed, self._options = pipeline, seed, options
        pipeline.set_progress_bar_config(disable=True)
        if pipeline.config.prediction_type == "disparity":
            self.invariance = Invariance.AFFINE_DISPARITY

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> MarigoldPredictor:
        """Of a folder or repository such as ``prs-eth/marigold-depth-v1-1``."""
        from diffusers import MarigoldDepthPipeline

        return cls(_loaded(name, MarigoldDepthPipeline.from_pretrained), **options)

    def predict_batch(self, rgbs: Sequence[Rgb], intrinsics: Sequence[Intrinsics]) -> Depth:
        """float32 [N, H, W], raised to :data:`SMALLEST_M`."""
        found = self._pipeline(
            [rgb / np.float32(255) for rgb in rgbs],
            batch_size=len(rgbs),
            generator=torch.Generator().manual_seed(self._seed),
            **self._options,
        )
        return np.maximum(found.prediction[..., 0], SMALLEST_M).astype(np.float32)


class TransformersPredictor(_Model):
    """A depth estimator of transformers, with the image processor of its checkpoint.

    Args:
        model: what ``AutoModelForDepthEstimation`` gives.
        processor: what ``AutoImageProcessor`` gives.
        invariance: default: by the configuration, where it says so (Depth Anything), else metric.
    """

    def __init__(self, model: Any, processor: Any, invariance: Invariance | None = None) -> None:
        self._model, self._processor = model.eval(), processor
        relative = getattr(model.config, "depth_estimation_type", "metric") == "relative"
        default = Invariance.AFFINE_DISPARITY if relative else Invariance.METRIC
        self.invariance = invariance or default
        parameters = inspect.signature(processor.post_process_depth_estimation).parameters
        self._wants_source_sizes = "source_sizes" in parameters

    @classmethod
    def from_pretrained(
        cls, name: str, invariance: Invariance | None = None
    ) -> TransformersPredictor:
        """Of a folder or repository, such as
        ``depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf``, ``Intel/zoedepth-nyu-kitti``
        or ``apple/DepthPro-hf``.
        """
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        except ImportError:
            raise UserError(
                f"{name}: needs the extra 'sd2' (pip install 'metricgold[sd2]') for transformers"
            ) from None
        model = _loaded(name, AutoModelForDepthEstimation.from_pretrained)
        return cls(model, _loaded(name, AutoImageProcessor.from_pretrained), invariance)

    @torch.no_grad()
    def predict_batch(self, rgbs: Sequence[Rgb], intrinsics: Sequence[Intrinsics]) -> Depth:
        """float32 [N, H, W] at the pictures' size, raised to :data:`SMALLEST_M`."""
        sizes = [rgb.shape[:2] for rgb in rgbs]
        device = next(self._model.parameters()).device
        inputs = self._processor(images=list(rgbs), return_tensors="pt").to(device)
        source = {"source_sizes": sizes} if self._wants_source_sizes else {}
        found = self._processor.post_process_depth_estimation(
            self._model(**inputs), target_sizes=sizes, **source
        )
        depth = np.stack([one["predicted_depth"].float().cpu().numpy() for one in found])
        return np.maximum(depth, SMALLEST_M).astype(np.float32)


def _loaded(name: str, load: Callable[..., Any]) -> Any:
    try:
        return load(name)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: model cannot be loaded: {reason}") from error
