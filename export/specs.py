"""What is exported: one :class:`ComponentSpec` a graph. Free of torch, read by every back-end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

Axis = str | int
"""A fixed length, or the name of an axis whose length the picture or the model decides."""

CHANNELS = "channels"
"""The axis of a latent's channels: of one length in every graph of a model."""


class Precision(StrEnum):
    """Arithmetic inside a graph; its inputs and outputs are float32 either way.

    The last three are made of an fp32 export by ``export.quantize``, and some layers stay fp32.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8_WEIGHTS = "int8-weights"
    INT8 = "int8"
    FP8 = "fp8"


EXPORTED = (Precision.FP32, Precision.FP16)
"""What a checkpoint can be exported in."""
QUANTISED = (Precision.INT8_WEIGHTS, Precision.INT8, Precision.FP8)


@dataclass(frozen=True, kw_only=True)
class LatentGrid:
    """How a model's latents relate to the picture.

    Attributes:
        factor: pixels a latent cell spans on each axis (8 for Stable Diffusion).
        channels: of one latent (4 for Stable Diffusion).
    """

    factor: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output: element type (numpy's name) and axes.

    The axes ``height`` and ``width`` count pixels when ``latent`` is False and latent
    cells (pixels divided by the VAE's factor) when it is True.
    """

    axes: tuple[Axis, ...]
    dtype: str = "float32"
    latent: bool = False

    def shape(self, batch: int, height: int, width: int, grid: LatentGrid) -> tuple[int, ...]:
        """Concrete shape for a picture of ``height`` x ``width`` pixels."""
        scale = grid.factor if self.latent else 1
        lengths: Mapping[str, int] = {
            "batch": batch,
            "height": height // scale,
            "width": width // scale,
            CHANNELS: grid.channels,
        }
        return tuple(lengths[a] if isinstance(a, str) else a for a in self.axes)

    def dynamic_axes(self) -> dict[int, str]:
        """Index and name of every axis that may vary."""
        named = {i: a for i, a in enumerate(self.axes) if isinstance(a, str)}
        return {i: a for i, a in named.items() if a != CHANNELS}


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """Names, axes and tolerances of one exported graph.

    Attributes:
        tolerance: largest accepted difference from torch by precision, as a share of
            the reference's largest magnitude (for the depth decoder: relative depth error).
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    output_name: str
    output: TensorSpec
    tolerance: Mapping[Precision, float]

    @property
    def file(self) -> str:
        """Name of the graph's file in an export folder."""
        return f"{self.name}.onnx"


_TOLERANCE = {Precision.FP32: 1e-4, Precision.FP16: 2e-2}
_LATENT = TensorSpec(axes=("batch", CHANNELS, "height", "width"), latent=True)
FOV_LENGTH = 32

VAE_ENCODER = ComponentSpec(
    name="vae_encoder",
    inputs={"rgb": TensorSpec(axes=("batch", 3, "height", "width"))},
    output_name="rgb_latent",
    output=_LATENT,
    tolerance=_TOLERANCE,
)
UNET_STEP = ComponentSpec(
    name="unet_step",
    inputs={
        "rgb_latent": _LATENT,
        "noisy_depth_latent": _LATENT,
        "timestep": TensorSpec(axes=("batch",), dtype="int64"),
        "fov": TensorSpec(axes=("batch", FOV_LENGTH)),
    },
    output_name="velocity",
    output=_LATENT,
    tolerance=_TOLERANCE,
)
DEPTH_DECODER = ComponentSpec(
    name="depth_decoder",
    inputs={"depth_latent": _LATENT},
    output_name="depth",
    output=TensorSpec(axes=("batch", 1, "height", "width")),
    tolerance=_TOLERANCE,
)
ONE_STEP = ComponentSpec(
    name="one_step",
    inputs={
        "rgb": TensorSpec(axes=("batch", 3, "height", "width")),
        "fov_y_deg": TensorSpec(axes=("batch",)),
    },
    output_name="depth",
    output=TensorSpec(axes=("batch", 1, "height", "width")),
    tolerance={Precision.FP32: 1e-3, Precision.FP16: 1e-2},
)
"""All of a one-step model in one graph of fixed shape; a field of view of 0 is an unknown one."""
DDIM_UPDATE = ComponentSpec(
    name="ddim_update",
    inputs={
        "noisy_depth_latent": _LATENT,
        "velocity": _LATENT,
        "coefficients": TensorSpec(axes=(2, 1, 1, 1)),
    },
    output_name="next_depth_latent",
    output=_LATENT,
    tolerance=_TOLERANCE,
)
"""Between two steps of the U-Net on a GPU; an engine without a graph (:mod:`export.ddim_engine`).
``coefficients`` are those of :func:`export.numpy_sampler.sampling_steps`."""
COMPONENTS: Mapping[str, ComponentSpec] = {
    spec.name: spec for spec in (VAE_ENCODER, UNET_STEP, DEPTH_DECODER)
}
"""In the order in which a picture passes through them."""
GRAPHS: Mapping[str, ComponentSpec] = {**COMPONENTS, ONE_STEP.name: ONE_STEP}
