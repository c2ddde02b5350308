"""The smallest complete model, shared by the tests of model, pipeline and evaluation."""

from __future__ import annotations

import torch

from metricgold.config import LightVaeConfig, ToyModelConfig
from metricgold.pipeline import MetricGoldPipeline
from metricgold.random_weights import random_toy_pipeline

TOY = ToyModelConfig(
    vae_channels=(4, 8),
    vae_layers=1,
    unet_channels=(8, 16),
    unet_layers=1,
    attention_levels=(False, True),
    attention_head_dim=8,
    cross_attention_dim=8,
    norm_groups=4,
)
LIGHT = LightVaeConfig(width=4, encoder_blocks=(0, 1), decoder_blocks=(1, 0))
LONG_SIDE = 24


def toy_model(
    seed: int = 0, fov_matters: bool = False, light: LightVaeConfig | None = None
) -> MetricGoldPipeline:
    """Random weights; size multiple 2. ``fov_matters`` gives the FOV embedding an effect."""
    model = random_toy_pipeline(TOY, seed, light, default_processing_resolution=LONG_SIDE)
    model.set_progress_bar_config(disable=True)
    if fov_matters:
        generator = torch.Generator().manual_seed(seed)
        weight = model.unet.class_embedding.linear_2.weight
        weight.data = torch.randn(weight.shape, generator=generator)
    return model
