"""The confidence head: how wrong a predicted depth is likely to be, in each latent cell.

A small network beside the U-Net reads the picture's latent and the predicted depth latent. It is
trained after the U-Net, which it leaves as it is, and its output becomes metres with
``sigma_d = d * E|ln(d_pred / d_true)|``.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_ERROR = 0.2
"""Expected |ln(d_pred / d_true)| before anything is learned."""

DILATIONS = (1, 2, 4)
"""Of the residual blocks, so that a cell sees some 30 cells around it."""


class _Block(nn.Module):
    """x + conv(silu(norm(conv(x)))), dilated."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.GroupNorm(8, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w], the same shape."""
        return x + self.second(F.silu(self.norm(self.first(x))))


class ConfidenceHead(ModelMixin, ConfigMixin):
    """ln of the expected ``|ln(d_pred / d_true)|``, cell by cell.

    Args:
        latent_channels: C of each of the two latents.
        width: channels inside, a multiple of 8.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 4, width: int = 64) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2 * latent_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width, d) for d in DILATIONS)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.constant_(self.conv_out.bias, math.log(INITIAL_ERROR))

    def forward(self, rgb_latent: Tensor, depth_latent: Tensor) -> Tensor:
        """Of the two latents [B, C, h, w]: float32 [B, 1, h, w]."""
        x = F.silu(self.conv_in(torch.cat([rgb_latent, depth_latent], dim=1)))
        for block in self.blocks:
            x = block(x)
        return self.conv_out(F.silu(x)).float()


def at_pixels(log_error: Tensor, size: tuple[int, int]) -> Tensor:
    """The head's output [B, 1, h, w] at ``size`` in pixels, bilinear."""
    return F.interpolate(log_error, size=size, mode="bilinear", align_corners=False)
