"""Stage B, ``train_unet``: the image-conditioned diffusion U-Net on cached latents."""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from metricgold.config import LoraConfig, ProfileConfig, TrainUnetConfig
from metricgold.diffusion import add_noise, annealed_multires_noise, make_scheduler, velocity_target
from metricgold.empty_text import EmptyText
from metricgold.model import (
    LOADING,
    fov_features,
    predict_velocity,
    widen_conv_in,
    with_fov_embedding,
)
from metricgold.pretrained import MetricGoldModel
from metricgold.training import checkpoint
from metricgold.training.accelerator import default_device, use_all_cores, written_by_main
from metricgold.training.base_model import BaseModel
from metricgold.training.latents import LatentBatches, cache_hash, open_latents
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train
from metricgold.training.lora import add_lora, merge_lora
from metricgold.training.tracking import folder_of
from metricgold.training.validation import Validation
from metricgold.workspace import Workspace

STAGE = "train_unet"

MULTI_STEPS = 4
"""Inference steps a stage-B checkpoint recommends."""

KEYS = ("rgb_latent", "depth_latent", "latent_mask", "fov_y_deg")
"""What stage B reads of the latent cache."""


def initial_model(config: ProfileConfig, workspace: Workspace) -> MetricGoldModel:
    """The base model widened to 8 input channels, with the depth VAE; not yet trained."""
    base = BaseModel.load(workspace.base_model)
    unet = widen_conv_in(with_fov_embedding(base.unet))
    return MetricGoldModel(
        image_vae=base.image_vae,
        depth_vae=AutoencoderKL.from_pretrained(workspace.depth_vae, **LOADING),
        unet=unet,
        scheduler=make_scheduler(),
        empty_text=EmptyText.of(base.empty_text_embed),
        depth_min_m=config.codec.depth_min_m,
        depth_max_m=config.codec.depth_max_m,
        default_denoising_steps=MULTI_STEPS,
        default_processing_resolution=config.evaluate.processing_resolution,
    ).freeze()


def prepare_for_training(
    unet: UNet2DConditionModel, lora: LoraConfig | None
) -> UNet2DConditionModel:
    """Everything trainable, or low-rank updates; on the CPU attention by plain products.

    The fused attention of torch is slower there at small sizes, its backward pass above all.
    """
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    unet.train().requires_grad_(True)
    if lora is not None:
        add_lora(unet, lora)
    return unet


def drop_fov(fov_y_deg: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """``fov_y_deg`` [B] with each camera made unknown (NaN) with probability ``dropout``."""
    drop = torch.rand(fov_y_deg.shape, generator=generator) < dropout
    return torch.where(drop, torch.full_like(fov_y_deg, torch.nan), fov_y_deg)


class VelocityObjective(Objective):
    """Masked MSE of the velocity at random timesteps."""

    network: UNet2DConditionModel
    empty_text_embed: Tensor

    def __init__(self, model: MetricGoldModel, config: TrainUnetConfig) -> None:
        super().__init__(model.unet)
        self.config, self.alphas = config, model.scheduler.alphas_cumprod
        self.register_buffer("empty_text_embed", model.empty_text_embed, persistent=False)

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of cached rows with :data:`KEYS`."""
        clean, device = batch["depth_latent"], self.device
        timesteps = torch.randint(0, 1000, (len(clean),), generator=generator)
        strength = self.config.noise_strength
        noise = annealed_multires_noise(clean.shape, timesteps, strength, generator)
        noisy = add_noise(clean, noise, timesteps, self.alphas)
        target = velocity_target(clean, noise, timesteps, self.alphas).to(device)
        fov = fov_features(drop_fov(batch["fov_y_deg"], self.config.fov_dropout, generator))
        predicted = predict_velocity(
            self.network,
            batch["rgb_latent"].to(device),
            noisy.to(device),
            timesteps.to(device),
            self.empty_text_embed,
            fov.to(device),
        )
        mask = batch["latent_mask"].to(device).expand_as(target)
        squared = (predicted.float() - target).square() * mask
        return {"loss": squared.sum() / mask.sum().clamp_min(1)}


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Train by v-prediction with a masked MSE; checkpoint to ``workspace.unet``."""
    section = config.train_unet
    use_all_cores()
    torch.manual_seed(config.seed)
    banks = open_latents(config, workspace)
    model = initial_model(config, workspace).to(default_device())
    unet = prepare_for_training(model.unet, section.lora)
    if section.optimizer.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    train(
        Run(
            name=STAGE,
            objective=VelocityObjective(model, section),
            optimizer=section.optimizer,
            batches=LatentBatches(config, banks, section.optimizer, salt=14, keys=KEYS),
            scratch=workspace.scratch("train_unet"),
            seed=config.seed + 2,
            identity=json.dumps([cache_hash(workspace), section.model_dump(mode="json")]),
            curve=workspace.plots / "train_unet.csv",
            workers=config.loader.workers,
            tracking=config.tracking,
            validate=Validation(config, workspace, model, folder_of(config.tracking, STAGE)),
        )
    )
    merge_lora(unet)
    with written_by_main(workspace.unet) as folder:
        if folder is not None:
            model.to("cpu").save_pretrained(folder)
            checkpoint.discard(workspace.scratch("train_unet"))
