"""The three graphs as torch modules: what is exported, and the reference parity is checked against.

Each wraps the functions of :mod:`metricgold.model` that the pipeline calls, so that a graph
cannot drift from it. Inputs and outputs are float32 whatever the precision inside.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

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
from metricgold.model import (
    FOV_FEATURES,
    decode_depth_norm,
    encode,
    predict_velocity,
)
from metricgold.pretrained import MetricGoldModel

__all__ = [
    "COMPONENTS",
    "ComponentSpec",
    "DepthDecoder",
    "LatentGrid",
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
        self.image_vae = _in_dtype(model.image_vae, self.dtype)

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
        self.depth_vae = _in_dtype(model.depth_vae, self.dtype)
        self.codec: DepthCodec = model.codec

    def forward(self, depth_latent: Tensor) -> Tensor:
        """depth_latent [B, C, h, w] to depth [B, 1, H, W] in metres."""
        norm = decode_depth_norm(self.depth_vae, depth_latent.to(self.dtype))
        return self.codec.decode(norm)


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
