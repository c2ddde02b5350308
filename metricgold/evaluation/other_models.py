"""Other people's depth models behind this project's interface, for tables on equal terms.

Marigold through diffusers; Depth Anything V2, ZoeDepth, Depth Pro and whatever else transformers
calls a depth estimator. Their licences are their own, some are not for commercial use.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metricgold.errors import UserError
from metricgold.evaluation.predictors import (
    Estimate,
    Invariance,
    Observation,
    Predictor,
    Rgb,
    parameters_of,
)

DEPTH_PRO, ZOE_DEPTH = "depth_pro", "zoedepth"
"""Model types of transformers."""
SMALLEST_M = 1e-3
"""Depth that metric predictions are raised to: some models give zeros, which no metric takes."""


class FunctionPredictor(Predictor):
    """Any function from a picture (and its K, if it takes two arguments) to depth [H, W].

    Args:
        function: uint8 [H, W, 3], and K [3, 3] or None, to metres or what ``invariance`` says.
    """

    def __init__(
        self, function: Callable[..., Any], invariance: Invariance = Invariance.METRIC
    ) -> None:
        self.invariance, self._function = invariance, function
        self._takes_camera = len(inspect.signature(function).parameters) > 1

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """One after the other."""
        found = []
        for one in observations:
            arguments = (one.rgb, one.intrinsics) if self._takes_camera else (one.rgb,)
            depth = np.asarray(self._function(*arguments)).astype(np.float32)
            found.append(Estimate(depth))
        return found


class MarigoldPredictor(Predictor):
    """A checkpoint of diffusers' Marigold depth pipeline: affine-invariant depth in [0, 1].

    Args:
        pipeline: ``diffusers.MarigoldDepthPipeline``.
        options: of its call, such as ``num_inference_steps`` and ``ensemble_size``.
    """

    invariance = Invariance.AFFINE_DEPTH

    def __init__(self, pipeline: Any, seed: int = 0, **options: Any) -> None:
        self._pipeline, self._seed, self._options = pipeline, seed, options
        self.parameters = parameters_of(pipeline.components.values())
        pipeline.set_progress_bar_config(disable=True)
        if pipeline.config.prediction_type == "disparity":
            self.invariance = Invariance.AFFINE_DISPARITY

    @classmethod
    def from_pretrained(
        cls, name: str, device: str | None = None, **options: Any
    ) -> MarigoldPredictor:
        """Of a folder or repository such as ``prs-eth/marigold-depth-v1-1``."""
        from diffusers import MarigoldDepthPipeline

        pipeline = _loaded(name, MarigoldDepthPipeline.from_pretrained)
        return cls(pipeline if device is None else pipeline.to(device), **options)

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """float32 [H, W]."""
        found = self._pipeline(
            [o.rgb / np.float32(255) for o in observations],
            batch_size=len(observations),
            generator=torch.Generator().manual_seed(self._seed),
            **self._options,
        )
        return [Estimate(depth[..., 0].astype(np.float32)) for depth in found.prediction]


class TransformersPredictor(Predictor):
    """A depth estimator of transformers, with the image processor of its checkpoint.

    ZoeDepth's and Depth Pro's own processing needs torchvision in parts; those parts are done
    here, to the same numbers.

    Args:
        model: what ``AutoModelForDepthEstimation`` gives.
        processor: what ``AutoImageProcessor`` gives; None for Depth Pro, which needs none.
        invariance: default: by the configuration, where it says so (Depth Anything), else metric.
    """

    def __init__(self, model: Any, processor: Any, invariance: Invariance | None = None) -> None:
        self._model, self._processor = model.eval(), processor
        self.parameters = parameters_of([model])
        relative = getattr(model.config, "depth_estimation_type", "metric") == "relative"
        default = Invariance.AFFINE_DISPARITY if relative else Invariance.METRIC
        self.invariance = invariance or default

    @classmethod
    def from_pretrained(
        cls, name: str, device: str | None = None, invariance: Invariance | None = None
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
        processor = None
        if model.config.model_type != DEPTH_PRO:
            processor = _loaded(name, AutoImageProcessor.from_pretrained)
        return cls(model if device is None else model.to(device), processor, invariance)

    @torch.no_grad()
    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """float32 [H, W] at the pictures' size; metric ones raised to :data:`SMALLEST_M`."""
        rgbs = [o.rgb for o in observations]
        device = next(self._model.parameters()).device
        kind = self._model.config.model_type
        if kind == DEPTH_PRO:
            outputs = self._model(pixel_values=_depth_pro_input(rgbs, self._model.config, device))
        else:
            inputs = self._processor(images=rgbs, return_tensors="pt")
            outputs = self._model(**inputs.to(device))
        size = rgbs[0].shape[:2]
        if kind == DEPTH_PRO:
            depths = _depth_pro_metres(outputs, size)
        elif kind == ZOE_DEPTH:
            depths = _zoe_depth_metres(outputs, size)
        else:
            found = self._processor.post_process_depth_estimation(outputs, [size] * len(rgbs))
            depths = torch.stack([one["predicted_depth"] for one in found])
        if self.invariance is Invariance.METRIC:
            depths = depths.clamp(min=SMALLEST_M)
        return [Estimate(depth) for depth in depths.float().cpu().numpy()]


def _depth_pro_input(rgbs: Sequence[Rgb], config: Any, device: torch.device) -> Tensor:
    """[N, 3, s, s] in [-1, 1], plain bilinear, where s is what its smallest patches add up to."""
    side = round(config.patch_size / min(config.scaled_images_ratios))
    pictures = torch.from_numpy(np.stack(rgbs)).permute(0, 3, 1, 2).to(device).float()
    return F.interpolate(pictures / 127.5 - 1, (side, side), mode="bilinear")


def _depth_pro_metres(outputs: Any, size: tuple[int, int]) -> Tensor:
    """Its canonical inverse depth, times width over focal length, inverted: [N, H, W].

    The focal length is that of the horizontal field of view which it predicts; Depth Pro,
    arXiv 2410.02073, section 3.1.
    """
    inverse = outputs.predicted_depth
    if outputs.field_of_view is not None:
        half = torch.deg2rad(outputs.field_of_view.reshape(-1, 1, 1)) / 2
        inverse = inverse * 2 * torch.tan(half)
    resized = F.interpolate(inverse[:, None], size, mode="bilinear")[:, 0]
    return 1 / resized.clamp(1e-4, 1e4)


def _zoe_depth_metres(outputs: Any, size: tuple[int, int]) -> Tensor:
    """Bicubic to the size that was padded to, without the padding: [N, H, W].

    Its processor pads ``3 sqrt(side / 2)`` pixels on each side by reflection.
    """
    up, left = (int(3 * math.sqrt(side / 2)) for side in size)
    padded = (size[0] + 2 * up, size[1] + 2 * left)
    depth = F.interpolate(outputs.predicted_depth[:, None], padded, mode="bicubic")[:, 0]
    return depth[:, up : up + size[0], left : left + size[1]]


def _loaded(name: str, load: Callable[..., Any]) -> Any:
    try:
        return load(name)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: model cannot be loaded: {reason}") from error
