"""Half precision: what would not fit into it, and networks that work in it.

The largest float16 is 65504. Attention is what usually exceeds it: the products of queries and
keys of Stable Diffusion 2.1 do, and the picture comes out blank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from export.manifest import ExportError
from metricgold.pipeline import MetricGoldPipeline
from metricgold.pretrained import MetricGoldModel

LARGEST = 65504.0
NETWORKS = ("image_vae", "unet", "depth_vae", "light_vae")
_ROWS = 1024
TEST_FOV_DEG = 55.0


@dataclass
class Magnitudes:
    """Largest absolute values met, of attention's scaled products and of layers' outputs."""

    attention: float = 0.0
    layer: float = 0.0
    layer_name: str = ""


def photo_like(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A random picture [H, W, 3] that uses the whole range and has a photograph's spectrum.

    Amplitudes fall as 1/f (Field 1987, "Relations between the statistics of natural images").
    """
    rng = np.random.default_rng(seed)
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = math.inf
    noise = np.fft.rfft2(rng.standard_normal((3, height, width)))
    picture = np.fft.irfft2(noise / frequency, s=size)
    low, high = np.percentile(picture, [1, 99])
    scaled = np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
    return (scaled.transpose(1, 2, 0) * 255).round().astype(np.uint8)


def magnitudes(model: MetricGoldModel, size: tuple[int, int]) -> Magnitudes:
    """Of a prediction in float32 for a picture of ``size`` (height, width), from end to end."""
    found = Magnitudes()
    pipeline = MetricGoldPipeline.of(model)
    pipeline.set_progress_bar_config(disable=True)
    with _layers_watched(model, found), _AttentionWatched(found):
        pipeline(
            photo_like(size),
            1,
            processing_resolution=0,
            fov_deg=TEST_FOV_DEG,
            generator=torch.Generator().manual_seed(0),
        )
    return found


def attention_in_float32(model: MetricGoldModel, size: tuple[int, int], asked: str) -> bool:
    """Whether the attention of a float16 export works in float32; said when it was not asked for.

    Args:
        asked: ``fp32``, or ``auto``: only where it would overflow.

    Raises:
        ExportError: something else overflows, so that float16 cannot be.
    """
    found = magnitudes(model, size)
    if not found.layer <= LARGEST:
        raise ExportError(
            f"fp16 overflows at {found.layer_name}, which gives {found.layer:.3g} (the largest is "
            f"{LARGEST:g}): export with --precision fp32"
        )
    if asked == "fp32":
        return True
    if found.attention <= LARGEST:
        return False
    print(
        f"fp16 overflows in attention, whose products reach {found.attention:.3g} (the largest is "
        f"{LARGEST:g}): attention falls back to fp32, the rest stays fp16",
        flush=True,
    )
    return True


def _networks(model: MetricGoldModel) -> dict[str, nn.Module]:
    """Those that a prediction goes through, by name."""
    parts = model.parts_in_use
    return {name: parts[name] for name in NETWORKS if parts.get(name) is not None}


def to_half(model: MetricGoldModel, float32_attention: bool) -> None:
    """Networks to float16, in place, with attention in float32 if asked for."""
    for network in _networks(model).values():
        nn.Module.to(network, torch.float16)  # diffusers' own .to() only adds a warning
        if float32_attention:
            widen_attention(network)


def widen_attention(network: nn.Module) -> None:
    """Attention in float32 in a network of another type: only its linear layers stay as they are.

    In place; the network is for export then, as its weights have other names.
    """
    for block in network.modules():
        if isinstance(block, Attention):
            dtype = block.to_q.weight.dtype
            block.to_q = nn.Sequential(block.to_q, _Cast(torch.float32))
            block.to_k = nn.Sequential(block.to_k, _Cast(torch.float32))
            block.to_v = nn.Sequential(block.to_v, _Cast(torch.float32))
            block.to_out[0] = nn.Sequential(_Cast(dtype), block.to_out[0])


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, values: Tensor) -> Tensor:
        """``values`` in another type."""
        return values.to(self.dtype)


class _AttentionWatched(TorchFunctionMode):
    """Notes the largest ``|q k^T| / sqrt(d)`` of every attention."""

    def __init__(self, found: Magnitudes) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            scale = query.shape[-1] ** -0.5
            for rows in query.split(_ROWS, dim=-2):  # of a large picture all would not fit
                largest = float((rows * scale @ key.transpose(-1, -2)).abs().max())
                self.found.attention = _larger(self.found.attention, largest)
        return func(*args, **(kwargs or {}))


@contextmanager
def _layers_watched(model: MetricGoldModel, found: Magnitudes) -> Iterator[None]:
    """Note the largest output of any layer of the networks while the block runs."""

    def watch(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                largest = float(output.abs().max())
                if _larger(found.layer, largest) != found.layer:
                    found.layer, found.layer_name = largest, name

        return note

    handles = [
        layer.register_forward_hook(watch(f"{network_name}.{name}"))
        for network_name, network in _networks(model).items()
        for name, layer in network.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _larger(a: float, b: float) -> float:
    """The larger; a value that is not a number is the largest of all."""
    return math.inf if math.isnan(b) else max(a, b)
