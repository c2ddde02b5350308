"""The smallest complete model, shared by the tests of model, pipeline and evaluation."""

from __future__ import annotations

import torch

from metricgold.config import ToyModelConfig
from metricgold.model import MetricGoldModel, ModelSpec, random_toy_model

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
SPEC = ModelSpec(depth_min_m=0.1, depth_max_m=80.0, num_inference_steps=1, processing_resolution=24)


def toy_model(seed: int = 0, fov_matters: bool = False) -> MetricGoldModel:
    """Random weights; size multiple 4. ``fov_matters`` gives the FOV embedding an effect."""
    model = random_toy_model(TOY, SPEC, seed)
    if fov_matters:
        generator = torch.Generator().manual_seed(seed)
        weight = model.unet.class_embedding.linear_2.weight
        weight.data = torch.randn(weight.shape, generator=generator)
    return model
