"""A complete pipeline with random weights: for tests, trials of an export and benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from metricgold.config import ToyModelConfig
from metricgold.diffusion import make_scheduler
from metricgold.empty_text import EmptyText
from metricgold.model import build_toy_unet, build_toy_vae, widen_conv_in
from metricgold.pipeline import MetricGoldPipeline


def random_toy_pipeline(
    config: ToyModelConfig, seed: int = 0, **options: Any
) -> MetricGoldPipeline:
    """Of toy size; ``options`` are the pipeline's. torch's own random numbers stay as they are."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        return MetricGoldPipeline(
            image_vae=build_toy_vae(config),
            depth_vae=build_toy_vae(config),
            unet=widen_conv_in(build_toy_unet(config)),
            scheduler=make_scheduler(),
            empty_text=EmptyText.of(torch.randn(1, 2, config.cross_attention_dim)),
            **options,
        ).freeze()
    finally:
        torch.random.set_rng_state(state)
