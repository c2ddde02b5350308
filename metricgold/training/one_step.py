"""Stage C, ``train_one_step``: one step, end to end, with a metric loss in log-depth.

At t = 999 with zero terminal SNR the clean latent is ``-v``; it goes through the frozen
depth decoder and is compared with true depth. Source of end-to-end fine-tuning:
Garcia et al. 2024; their affine-invariant loss is replaced by one that keeps the scale.
"""

from __future__ import annotations

import dataclasses
import json

import torch
from torch import Tensor

from metricgold.config import ProfileConfig
from metricgold.diffusion import LAST_TIMESTEP
from metricgold.files import replaced_folder
from metricgold.losses import masked_l1, multiscale_gradient_l1, scale_aware_log_loss
from metricgold.model import MetricGoldModel, decode_depth_norm, predict_velocity
from metricgold.training.latents import cache_hash, open_latents, weights_hash
from metricgold.training.loop import Run, default_device, train, use_all_cores
from metricgold.training.unet import fov_with_dropout, latent_sampler
from metricgold.workspace import Workspace


def predict_depth_norm(
    model: MetricGoldModel, rgb_latent: Tensor, fov: Tensor
) -> Tensor:
    """One step from zeros at t = 999: depth_norm [B, 1, H, W], not clipped, with gradients."""
    timesteps = torch.full((len(rgb_latent),), LAST_TIMESTEP, device=rgb_latent.device)
    velocity = predict_velocity(
        model.unet, rgb_latent, torch.zeros_like(rgb_latent), timesteps, model.empty_text_embed, fov
    )
    return decode_depth_norm(model.depth_vae, -velocity)


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Fine-tune the stage-B U-Net; the complete checkpoint goes to ``workspace.model``."""
    section = config.train_one_step
    use_all_cores()
    torch.manual_seed(config.seed)
    banks = open_latents(config, workspace)
    model = MetricGoldModel.from_pretrained(workspace.unet).to(default_device())
    model.spec = dataclasses.replace(model.spec, num_inference_steps=1)
    unet = model.unet.train().requires_grad_(True)
    if section.optimizer.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        model.depth_vae.enable_gradient_checkpointing()
    sampler = latent_sampler(config, banks, section.optimizer, salt=15)
    log_range = model.spec.codec.log_range
    keys = ("rgb_latent", "depth_norm", "valid_mask", "fov_y_deg")

    def loss(micro_batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        name, indices = sampler.batch(micro_batch)
        rows = banks[name].batch(indices, keys)
        fov = fov_with_dropout(rows["fov_y_deg"], section.fov_dropout, generator)
        predicted = predict_depth_norm(
            model, rows["rgb_latent"].to(unet.device), fov.to(unet.device)
        )
        target = rows["depth_norm"].to(unet.device)
        valid = rows["valid_mask"].to(unet.device)
        l1 = masked_l1(predicted, target, valid)
        gradient = multiscale_gradient_l1(predicted, target, valid)
        scale = scale_aware_log_loss(
            predicted, target, valid, log_range, section.scale_loss_lambda
        )
        total = l1 + section.gradient_loss_weight * gradient + section.scale_loss_weight * scale
        return {"loss": total, "l1": l1, "gradient": gradient, "scale": scale}

    train(
        Run(
            name="train_one_step",
            network=unet,
            optimizer=section.optimizer,
            loss=loss,
            scratch=workspace.scratch("train_one_step"),
            seed=config.seed + 3,
            identity=json.dumps(
                [
                    cache_hash(workspace),
                    weights_hash(workspace.unet),
                    section.model_dump(mode="json"),
                ]
            ),
            curve=workspace.plots / "train_one_step.csv",
        )
    )
    with replaced_folder(workspace.model) as folder:
        model.to("cpu").save_pretrained(folder)
