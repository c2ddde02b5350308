"""Depth read from a latent by a linear map: the metric loss without the decoder's cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metricgold.training.latents import LatentBank

FIT_ROWS = 300
"""Rows of the cache a dataset that the map is fitted on."""


@dataclass(frozen=True)
class CoarseDepth:
    """``weight`` [1, C, 1, 1] and ``bias``: depth latent [B, C, h, w] to depth_norm [B, 1, h, w].

    A cell's value is the mean depth_norm of its pixels.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, latent: Tensor) -> Tensor:
        """depth_norm of every cell, not clipped, with gradients."""
        read = (latent * self.weight.to(latent)).sum(dim=1, keepdim=True)
        return read + self.bias.to(latent)

    @classmethod
    def fit(cls, banks: dict[str, LatentBank], seed: int) -> CoarseDepth:
        """Least squares over cells whose every pixel is valid, of rows of every bank."""
        rng = np.random.default_rng(seed)
        latents, means = [], []
        for bank in banks.values():
            indices = rng.choice(len(bank), min(FIT_ROWS, len(bank)), replace=False)
            rows = bank.batch(indices, ("depth_latent", "depth_norm", "latent_mask"))
            usable = rows["latent_mask"][:, 0]
            latents.append(rows["depth_latent"].permute(0, 2, 3, 1)[usable])
            means.append(cell_means(rows["depth_norm"], usable)[:, 0][usable])
        latent = torch.cat(latents)
        inputs = torch.cat([latent, torch.ones(len(latent), 1)], dim=1).double()
        solution = torch.linalg.lstsq(inputs, torch.cat(means)[:, None].double(), driver="gelsd")
        found = solution.solution[:, 0].float()
        return cls(found[:-1].view(1, -1, 1, 1), found[-1])


def cell_means(depth_norm: Tensor, cells: Tensor) -> Tensor:
    """Mean depth_norm [B, 1, h, w] of each of the ``cells`` [..., h, w] of [B, 1, H, W]."""
    return F.adaptive_avg_pool2d(depth_norm, (cells.shape[-2], cells.shape[-1]))
