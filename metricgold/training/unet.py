"""Stage B, ``train_unet``: the image-conditioned diffusion U-Net on cached latents."""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from metricgold.config import ProfileConfig
from metricgold.diffusion import add_noise, annealed_multires_noise, make_scheduler, velocity_target
from metricgold.files import replaced_folder
from metricgold.model import (
    LOADING,
    MetricGoldModel,
    ModelSpec,
    fov_features,
    predict_velocity,
    widen_conv_in,
    zero_fov_output,
)
from metricgold.training import checkpoint
from metricgold.training.base_model import BaseModel
from metricgold.training.latents import LatentBatches, cache_hash, open_latents
from metricgold.training.loader import Batch
from metricgold.training.loop import Run, default_device, train, use_all_cores
from metricgold.workspace import Workspace

MULTI_STEPS = 4
"""Inference steps a stage-B checkpoint recommends."""


def initial_model(config: ProfileConfig, workspace: Workspace) -> MetricGoldModel:
    """The base model widened to 8 input channels, with the depth VAE; not yet trained."""
    base = BaseModel.load(workspace.base_model)
    unet = widen_conv_in(base.unet)
    zero_fov_output(unet)
    return MetricGoldModel(
        image_vae=base.image_vae,
        depth_vae=AutoencoderKL.from_pretrained(workspace.depth_vae, **LOADING),
        unet=unet,
        scheduler=make_scheduler(),
        empty_text_embed=base.empty_text_embed,
        spec=ModelSpec(
            depth_min_m=config.codec.depth_min_m,
            depth_max_m=config.codec.depth_max_m,
            num_inference_steps=MULTI_STEPS,
            processing_resolution=config.evaluate.processing_resolution,
        ),
    ).eval()


def prepare_for_training(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Everything trainable; on the CPU attention by plain products.

    The fused attention of torch is slower there at small sizes, its backward pass above all.
    """
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    return unet.train().requires_grad_(True)


def drop_fov(fov_y_deg: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """``fov_y_deg`` [B] with each camera made unknown (NaN) with probability ``dropout``."""
    drop = torch.rand(fov_y_deg.shape, generator=generator) < dropout
    return torch.where(drop, torch.full_like(fov_y_deg, torch.nan), fov_y_deg)


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Train by v-prediction with a masked MSE; checkpoint to ``workspace.unet``."""
    section = config.train_unet
    use_all_cores()
    torch.manual_seed(config.seed)
    banks = open_latents(config, workspace)
    model = initial_model(config, workspace).to(default_device())
    unet = prepare_for_training(model.unet)
    if section.optimizer.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    alphas = model.scheduler.alphas_cumprod
    keys = ("rgb_latent", "depth_latent", "latent_mask", "fov_y_deg")

    def loss(micro_batch: int, rows: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Masked MSE of the velocity at random timesteps."""
        clean = rows["depth_latent"]
        timesteps = torch.randint(0, 1000, (len(clean),), generator=generator)
        noise = annealed_multires_noise(clean.shape, timesteps, section.noise_strength, generator)
        noisy = add_noise(clean, noise, timesteps, alphas)
        target = velocity_target(clean, noise, timesteps, alphas).to(unet.device)
        fov = fov_features(drop_fov(rows["fov_y_deg"], section.fov_dropout, generator))
        predicted = predict_velocity(
            unet,
            rows["rgb_latent"].to(unet.device),
            noisy.to(unet.device),
            timesteps.to(unet.device),
            model.empty_text_embed,
            fov.to(unet.device),
        )
        mask = rows["latent_mask"].to(unet.device).expand_as(target)
        squared = (predicted.float() - target).square() * mask
        return {"loss": squared.sum() / mask.sum().clamp_min(1)}

    train(
        Run(
            name="train_unet",
            network=unet,
            optimizer=section.optimizer,
            batches=LatentBatches(config, banks, section.optimizer, salt=14, keys=keys),
            loss=loss,
            scratch=workspace.scratch("train_unet"),
            seed=config.seed + 2,
            identity=json.dumps([cache_hash(workspace), section.model_dump(mode="json")]),
            curve=workspace.plots / "train_unet.csv",
            workers=config.loader.workers,
        )
    )
    with replaced_folder(workspace.unet) as folder:
        model.to("cpu").save_pretrained(folder)
    checkpoint.discard(workspace.scratch("train_unet"))
