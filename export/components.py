"""The three graphs as torch modules: what is exported, and the reference parity is checked against.

Each wraps the functions of :mod:`metricgold.model` that the pipeline calls, so that a graph
cannot drift from it. Inputs and outputs are float32 whatever the precision inside.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.specs import (
    COMPONENTS,
    DEPTH_DECODER,
    UNET_STEP,
    VAE_ENCODER,
    ComponentSpec,
    LatentGrid,
    Precision,
    TensorSpec,
)
from metricgold.depth_codec import DepthCodec
from metricgold.diffusion import LAST_TIMESTEP
from metricgold.geometry import ray_latent
from metricgold.model import (
    FOV_FEATURES,
    decode_depth_norm,
    encode,
    fov_features,
    predict_velocity,
    vae_factor,
)
from metricgold.pretrained import MetricGoldModel

__all__ = [
    "COMPONENTS",
    "ComponentSpec",
    "DepthDecoder",
    "LatentGrid",
    "OneStep",
    "Precision",
    "TensorSpec",
    "UNetStep",
    "VAEEncoder",
    "build_components",
    "example_inputs",
]

_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16}


class VAEEncoder(nn.Module):
    """rgb [B, 3, H, W] in [-1, 1] to rgb_latent [B, C, h, w], scaling factor included."""

    def __init__(self, model: MetricGoldModel, precision: Precision = Precision.FP32) -> None:
        super().__init__()
        self.dtype = _DTYPES[precision]
        self.image_vae = _in_dtype(model.picture_encoder, self.dtype)

    def forward(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, H, W] in [-1, 1] to rgb_latent [B, C, h, w]."""
        return encode(self.image_vae, rgb.to(self.dtype)).float()


class UNetStep(nn.Module):
    """Latents [B, C, h, w], timestep int64 [B], fov features [B, 32] to velocity [B, C, h, w].

    The empty prompt's text embedding is a buffer of the graph.
    """

    empty_text_embed: Tensor

    def __init__(self, model: MetricGoldModel, precision: Precision = Precision.FP32) -> None:
        super().__init__()
        self.dtype = _DTYPES[precision]
        self.unet = _in_dtype(model.unet, self.dtype)
        self.register_buffer("empty_text_embed", model.empty_text_embed.to(self.dtype))

    def forward(
        self, rgb_latent: Tensor, noisy_depth_latent: Tensor, timestep: Tensor, fov: Tensor
    ) -> Tensor:
        """Latents [B, C, h, w], timestep [B], FOV features [B, 32] to velocity [B, C, h, w]."""
        velocity = predict_velocity(
            self.unet,
            rgb_latent.to(self.dtype),
            noisy_depth_latent.to(self.dtype),
            timestep,
            self.empty_text_embed,
            fov,
        )
        return velocity.float()


class DepthDecoder(nn.Module):
    """depth_latent [B, C, h, w] to z-depth [B, 1, H, W] in metres.

    Channel mean, clip to [-1, 1] and the exponential run in float32 even when the
    convolutions run in float16.
    """

    def __init__(self, model: MetricGoldModel, precision: Precision = Precision.FP32) -> None:
        super().__init__()
        self.dtype = _DTYPES[precision]
        self.depth_vae = _in_dtype(model.depth_decoder, self.dtype)
        self.codec: DepthCodec = model.codec

    def forward(self, depth_latent: Tensor) -> Tensor:
        """depth_latent [B, C, h, w] to depth [B, 1, H, W] in metres."""
        norm = decode_depth_norm(self.depth_vae, depth_latent.to(self.dtype))
        return self.codec.decode(norm)


class OneStep(nn.Module):
    """rgb [B, 3, H, W] in [-1, 1] and fov_y_deg [B] to z-depth [B, 1, H, W] in metres.

    The three parts one after the other, with what a runtime does between them: the camera's
    features and rays. For pictures of one size, whose cells' positions are constants.

    Args:
        size: height and width in pixels.
    """

    x: Tensor
    y: Tensor

    def __init__(
        self, model: MetricGoldModel, size: tuple[int, int], precision: Precision = Precision.FP32
    ) -> None:
        super().__init__()
        self.encoder = VAEEncoder(model, precision)
        self.unet_step = UNetStep(model, precision)
        self.decoder = DepthDecoder(model, precision)
        self.channels = model.image_vae.config.latent_channels
        factor = vae_factor(model.image_vae)
        height, width = size[0] // factor, size[1] // factor
        cells = torch.from_numpy(ray_latent(np.array([90.0]), (height, width)))[0]
        self.register_buffer("x", cells[0])
        self.register_buffer("y", cells[1])
        self.aspect = width / height

    def forward(self, rgb: Tensor, fov_y_deg: Tensor) -> Tensor:
        """Pictures and vertical fields of view, 0 where unknown, to metres."""
        known = (fov_y_deg > 0).float()
        fov = fov_features(fov_y_deg) * known[:, None]
        tangent = (torch.tan(torch.deg2rad(fov_y_deg) / 2) * known)[:, None, None]
        rays = [self.x.expand(len(rgb), -1, -1), self.y.expand(len(rgb), -1, -1)]
        rays += [self.x * tangent * self.aspect, self.y * tangent]
        start = F.pad(torch.stack(rays, dim=1), (0, 0, 0, 0, 0, self.channels - len(rays)))
        timestep = torch.full((len(rgb),), LAST_TIMESTEP, dtype=torch.int64, device=rgb.device)
        velocity = self.unet_step(self.encoder(rgb), start, timestep, fov)
        return self.decoder(-velocity)


def build_components(
    model: MetricGoldModel, precision: Precision = Precision.FP32
) -> dict[str, nn.Module]:
    """Name (as in ``COMPONENTS``) to module, in inference mode, gradients off."""
    assert UNET_STEP.inputs["fov"].axes[1] == FOV_FEATURES, "specs.py and model.py disagree"
    modules: dict[str, nn.Module] = {
        VAE_ENCODER.name: VAEEncoder(model, precision),
        UNET_STEP.name: UNetStep(model, precision),
        DEPTH_DECODER.name: DepthDecoder(model, precision),
    }
    for module in modules.values():
        module.eval().requires_grad_(False)
    return modules


def example_inputs(
    spec: ComponentSpec, size: tuple[int, int], grid: LatentGrid, batch: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of ``spec`` for pictures of ``size`` (height, width) pixels, by name."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for name, tensor in spec.inputs.items():
        shape = tensor.shape(batch, *size, grid)
        if tensor.dtype == "int64":
            inputs[name] = torch.full(shape, LAST_TIMESTEP, dtype=torch.int64)
        elif name == "fov_y_deg":
            inputs[name] = torch.full(shape, 55.0)
        elif name == "rgb":
            inputs[name] = torch.rand(shape, generator=generator) * 2.0 - 1.0
        else:
            inputs[name] = torch.randn(shape, generator=generator)
    return inputs


def _in_dtype(module: nn.Module, dtype: torch.dtype) -> Any:
    """``module`` itself when it is in ``dtype`` already, else a converted copy."""
    if next(module.parameters()).dtype == dtype:
        return module
    return nn.Module.to(copy.deepcopy(module), dtype)  # diffusers' own .to() only adds a warning
