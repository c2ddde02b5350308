"""Complete checkpoints with random weights: for tests, trials of an export and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from metricgold.config import LightVaeConfig, ToyModelConfig
from metricgold.diffusion import make_scheduler
from metricgold.empty_text import EmptyText
from metricgold.full_size import SD2_TEXT_TOKENS, SD2_UNET, SD2_VAE
from metricgold.model import (
    FOV_FEATURES,
    build_light_vae,
    build_toy_unet,
    build_toy_vae,
    widen_conv_in,
    with_fov_embedding,
)
from metricgold.pipeline import MetricGoldPipeline


def random_toy_pipeline(
    config: ToyModelConfig, seed: int = 0, light: LightVaeConfig | None = None, **options: Any
) -> MetricGoldPipeline:
    """Of toy size; ``options`` are the pipeline's. torch's own random numbers stay as they are.

    ``light``: size of a light autoencoder, if there is to be one.
    """
    with _seeded(seed):
        pipeline = MetricGoldPipeline(
            image_vae=build_toy_vae(config),
            depth_vae=build_toy_vae(config),
            unet=widen_conv_in(build_toy_unet(config)),
            scheduler=make_scheduler(),
            empty_text=EmptyText.of(torch.randn(1, 2, config.cross_attention_dim)),
            **options,
        )
        return _with_light_vae(pipeline, light).freeze()


def random_full_size_pipeline(
    seed: int = 0,
    only: str | None = None,
    light: LightVaeConfig | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> MetricGoldPipeline:
    """Of Stable Diffusion 2's size, as the profile ``sd2`` trains it; 4 GB in float32.

    Args:
        only: the one network that gets weights (``image_vae``, ``unet`` or ``depth_vae``); the
            others have their shapes alone, on torch's device ``meta``, and take no memory.
        light: adds a light autoencoder of this size.
        dtype: of the weights, made in it from the start.
    """
    conditioned = {
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": FOV_FEATURES,
    }

    def place(name: str) -> torch.device:
        return torch.device("cpu" if only in (None, name) else "meta")

    with _seeded(seed), _made_in(dtype):
        with place("unet"):
            unet = UNet2DConditionModel(**SD2_UNET, **conditioned)
            unet = widen_conv_in(with_fov_embedding(unet))
        with place("image_vae"):
            image_vae = AutoencoderKL(**SD2_VAE)
        with place("depth_vae"):
            depth_vae = AutoencoderKL(**SD2_VAE)
        text = torch.randn(1, SD2_TEXT_TOKENS, unet.config.cross_attention_dim)
        pipeline = MetricGoldPipeline(
            image_vae=image_vae,
            depth_vae=depth_vae,
            unet=unet,
            scheduler=make_scheduler(),
            empty_text=EmptyText.of(text),
            **options,
        )
        return _with_light_vae(pipeline, light).freeze()


def _with_light_vae(
    pipeline: MetricGoldPipeline, config: LightVaeConfig | None
) -> MetricGoldPipeline:
    if config is not None:
        channels = pipeline.image_vae.config.latent_channels
        pipeline.register_modules(light_vae=build_light_vae(config, channels))
    return pipeline


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Networks made inside the block have weights of this type from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
