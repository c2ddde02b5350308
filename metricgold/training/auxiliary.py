"""Help for learning to predict latents: which channels matter, and depth itself beside them.

An error in a latent is worth what the decoder makes of it, and a decoder listens to few of its
channels. And a network learns more from the error of a depth than from that of a latent: while it
learns latents, a second head on its last features gives depth at pixels, without any decoder.
Source of such heads: Lee et al. 2015, https://arxiv.org/abs/1409.5185.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from metricgold.model import decode_depth_norm
from metricgold.training.latents import LatentBank

ROWS = 40
"""Rows of the cache a dataset that sensitivities are measured on."""

PUSH = 0.3
"""Standard deviation of the noise that is put on one channel; latents have about 1."""

SPREAD = 0.3
"""Standard deviation of depth_norm, about: what a head's output is multiplied by."""


class WithDepthHead(nn.Module):
    """A U-Net that also gives depth: ``depth_norm`` [B, 1, H, W] after each call.

    The head is one convolution beside the last one; it is not part of what is saved in the end.
    """

    depth_norm: Tensor
    _features: Tensor

    def __init__(self, unet: UNet2DConditionModel, factor: int) -> None:
        super().__init__()
        self.unet, self.factor = unet, factor
        self.head = nn.Conv2d(unet.conv_out.in_channels, factor**2, 3, padding=1)
        self.head.to(unet.device)
        self._hook = unet.conv_out.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self._features = inputs[0]

    def detach_head(self) -> None:
        """Let the U-Net go on alone."""
        self._hook.remove()

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the U-Net gives."""
        output = self.unet(*arguments, **options)
        self.depth_norm = SPREAD * F.pixel_shuffle(self.head(self._features), self.factor).float()
        return output


@torch.no_grad()
def channel_weights(depth_vae: AutoencoderKL, banks: dict[str, LatentBank], seed: int) -> Tensor:
    """How much decoded depth changes when a channel does, [1, C, 1, 1], 1 in the mean.

    Measured with noise on one channel after the other of cached depth latents.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    total = torch.zeros(depth_vae.config.latent_channels)
    for bank in banks.values():
        indices = rng.choice(len(bank), min(ROWS, len(bank)), replace=False)
        latent = bank.batch(indices, ("depth_latent",))["depth_latent"].to(depth_vae.device)
        decoded = decode_depth_norm(depth_vae, latent)
        for channel in range(latent.shape[1]):
            noise = PUSH * torch.randn(latent[:, channel].shape, generator=generator)
            pushed = latent.clone()
            pushed[:, channel] += noise.to(latent.device)
            change = decode_depth_norm(depth_vae, pushed) - decoded
            total[channel] += change.square().mean().sqrt().cpu() / len(banks)
    return (total / total.mean()).view(1, -1, 1, 1)
