"""Complete checkpoints with random weights: for tests, trials of an export and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from metricgold.config import ToyModelConfig
from metricgold.diffusion import make_scheduler
from metricgold.empty_text import EmptyText
from metricgold.full_size import SD2_TEXT_TOKENS, SD2_UNET, SD2_VAE
from metricgold.model import build_toy_unet, build_toy_vae, widen_conv_in, with_fov_embedding
from metricgold.pipeline import MetricGoldPipeline


def random_toy_pipeline(
    config: ToyModelConfig, seed: int = 0, **options: Any
) -> MetricGoldPipeline:
    """Of toy size; ``options`` are the pipeline's. torch's own random numbers stay as they are."""
    with _seeded(seed):
        return MetricGoldPipeline(
            image_vae=build_toy_vae(config),
            depth_vae=build_toy_vae(config),
            unet=widen_conv_in(build_toy_unet(config)),
            scheduler=make_scheduler(),
            empty_text=EmptyText.of(torch.randn(1, 2, config.cross_attention_dim)),
            **options,
        ).freeze()


def random_full_size_pipeline(seed: int = 0, **options: Any) -> MetricGoldPipeline:
    """Of Stable Diffusion 2's size, as the profile ``sd2`` trains it; 4 GB in float32."""
    with _seeded(seed):
        unet = widen_conv_in(with_fov_embedding(UNet2DConditionModel(**SD2_UNET)))
        return MetricGoldPipeline(
            image_vae=AutoencoderKL(**SD2_VAE),
            depth_vae=AutoencoderKL(**SD2_VAE),
            unet=unet,
            scheduler=make_scheduler(),
            empty_text=EmptyText.of(
                torch.randn(1, SD2_TEXT_TOKENS, unet.config.cross_attention_dim)
            ),
            **options,
        ).freeze()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
