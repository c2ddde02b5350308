"""The empty prompt's text embedding: all that is left of a text encoder."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class EmptyText(ModelMixin, ConfigMixin):
    """Holds the embedding [1, T, C] of "" as a checkpoint's part of its own.

    Args:
        tokens: T, 2 for Stable Diffusion 2 (un-padded).
        channels: C, what the U-Net's cross attention reads.
    """

    embedding: Tensor

    @register_to_config
    def __init__(self, tokens: int = 2, channels: int = 1024) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.zeros(1, tokens, channels))

    @classmethod
    def of(cls, embedding: Tensor) -> EmptyText:
        """Of an embedding [1, T, C] that a text encoder gave."""
        module = cls(*embedding.shape[1:])
        module.embedding.copy_(embedding)
        return module

    def forward(self) -> Tensor:
        """The embedding [1, T, C]."""
        return self.embedding
