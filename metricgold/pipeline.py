"""From a picture to depth in metres, in the call convention of diffusers' Marigold pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricgold import imaging
from metricgold.confidence import at_pixels
from metricgold.diffusion import sample
from metricgold.model import (
    MetricGoldModel,
    decode_depth_norm,
    encode,
    fov_features,
    one_step_start,
    predict_velocity,
)


@dataclass(frozen=True)
class DepthOutput:
    """What the pipeline returns.

    Attributes:
        prediction: float32 [N, H, W, 1], z-depth in metres.
        uncertainty: float32 [N, H, W, 1] in metres, of an ensemble or of a checkpoint with a
            confidence head, else None.
        latent: depth latents [N, C, h, w] on request, else None.
    """

    prediction: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None = None
    latent: Tensor | None = None


class MetricGoldPipeline:
    """Metric depth from pictures; wraps a :class:`~metricgold.model.MetricGoldModel`."""

    def __init__(self, model: MetricGoldModel) -> None:
        self.model = model.eval()

    @classmethod
    def from_pretrained(cls, folder: str) -> MetricGoldPipeline:
        """Load a checkpoint folder; raises ``CheckpointError``."""
        return cls(MetricGoldModel.from_pretrained(folder))

    @torch.no_grad()
    def __call__(
        self,
        image: NDArray[np.uint8] | list[NDArray[np.uint8]],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        fov_deg: float | list[float | None] | None = None,
        generator: torch.Generator | None = None,
        output_latent: bool = False,
    ) -> DepthOutput:
        """Depth of one picture, or of several of the same size.

        Args:
            image: uint8 [H, W, 3] sRGB, or a list of such.
            num_inference_steps: DDIM steps; default is what the weights were trained for.
            ensemble_size: predictions from different noise, fused by the median in
                log-depth without any alignment; uncertainty is ``d (L/2) MAD(x)``. That of one
                prediction is ``d E|ln(d_pred / d_true)|`` by the confidence head.
            processing_resolution: long side in pixels, 0 for the picture's own.
            match_input_resolution: resize the result back, in log-depth.
            fov_deg: vertical field of view in degrees; None if unknown.
        """
        images = image if isinstance(image, list) else [image]
        if len({i.shape for i in images}) != 1:
            raise ValueError("pictures of one call must have the same size")
        steps = num_inference_steps or self.model.spec.num_inference_steps
        long_side = processing_resolution
        if long_side is None:
            long_side = self.model.spec.processing_resolution
        height, width = images[0].shape[:2]
        size = imaging.processing_size(height, width, long_side, self.model.size_multiple)
        fovs = fov_deg if isinstance(fov_deg, list) else [fov_deg] * len(images)
        rgb = np.stack([imaging.resize_rgb(i, size) for i in images])  # [N, h, w, 3] in [0, 1]
        device = self.model.empty_text_embed.device
        rgb_tensor = torch.from_numpy(rgb).permute(0, 3, 1, 2).to(device) * 2.0 - 1.0
        fov = torch.tensor([math.nan if f is None else float(f) for f in fovs], device=device)

        stack, latents = [], []
        rgb_latent = encode(self.model.image_vae, rgb_tensor)
        for _ in range(ensemble_size):
            latent = self._depth_latent(rgb_latent, fov, steps, generator, ensemble_size)
            norm = decode_depth_norm(self.model.depth_vae, latent).clamp(-1, 1)
            stack.append(norm.float().cpu())
            latents.append(latent)
        depth_norm = torch.stack(stack)[:, :, 0]  # [E, N, h, w]
        median = depth_norm.median(dim=0).values
        codec = self.model.spec.codec
        out_size = (height, width) if match_input_resolution else size
        depth = np.stack(
            [imaging.resize_depth_log(codec.decode(x), out_size) for x in median.numpy()]
        )[..., None]
        relative: Tensor | None = None  # [N, h, w]
        if ensemble_size > 1:
            mad = (depth_norm - median).abs().median(dim=0).values
            relative = mad * (codec.log_range / 2.0)
        elif self.model.confidence is not None:
            log_error = self.model.confidence(rgb_latent, latents[0])
            relative = at_pixels(log_error, size)[:, 0].exp().cpu()
        uncertainty = None
        if relative is not None:
            resized = [imaging.resize_plain(x, out_size) for x in relative.numpy()]
            uncertainty = depth * np.stack(resized)[..., None]
        return DepthOutput(depth, uncertainty, latents[0] if output_latent else None)

    def _depth_latent(
        self,
        rgb_latent: Tensor,
        fov: Tensor,
        steps: int,
        generator: torch.Generator | None,
        ensemble_size: int,
    ) -> Tensor:
        one_step = steps == 1 and ensemble_size == 1
        if one_step:
            initial = one_step_start(fov, rgb_latent)
        else:
            initial = torch.randn(rgb_latent.shape, generator=generator).to(rgb_latent)
        features = fov_features(fov)

        def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
            """What the U-Net predicts for these pictures and cameras."""
            return predict_velocity(
                self.model.unet,
                rgb_latent,
                noisy,
                timestep,
                self.model.empty_text_embed,
                features,
            )

        return sample(velocity, initial, self.model.scheduler, steps)
