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

from metricgold.config import OptimizerConfig, ProfileConfig, TrainOneStepConfig
from metricgold.depth_codec import DepthCodec
from metricgold.diffusion import LAST_TIMESTEP
from metricgold.files import replaced_folder
from metricgold.losses import (
    masked_l1,
    multiscale_gradient_l1,
    relative_depth_l1,
    scale_aware_log_loss,
)
from metricgold.model import (
    MetricGoldModel,
    decode_depth_norm,
    fov_features,
    one_step_start,
    predict_velocity,
)
from metricgold.training import checkpoint
from metricgold.training.coarse_depth import CoarseDepth, cell_means
from metricgold.training.latents import (
    LatentBank,
    LatentBatches,
    cache_hash,
    open_latents,
    weights_hash,
)
from metricgold.training.loader import Batch
from metricgold.training.loop import Run, default_device, train, use_all_cores
from metricgold.training.unet import drop_fov, prepare_for_training
from metricgold.workspace import Workspace

CURVES = {"latent": "train_one_step_latent.csv", "depth": "train_one_step.csv"}


def predict_depth_latent(model: MetricGoldModel, rgb_latent: Tensor, fov_y_deg: Tensor) -> Tensor:
    """One step at t = 999 from the camera's rays: clean depth latent [B, C, h, w], with gradients.

    ``fov_y_deg`` [B] holds NaN where the camera is unknown.
    """
    timesteps = torch.full((len(rgb_latent),), LAST_TIMESTEP, device=rgb_latent.device)
    start = one_step_start(fov_y_deg, rgb_latent)
    features = fov_features(fov_y_deg).to(rgb_latent.device)
    embed = model.empty_text_embed
    return -predict_velocity(model.unet, rgb_latent, start, timesteps, embed, features)


def _latent_loss(
    predicted: Tensor,
    rows: dict[str, Tensor],
    coarse: CoarseDepth,
    codec: DepthCodec,
    config: TrainOneStepConfig,
) -> dict[str, Tensor]:
    """L1 between depth latents, and the metric loss on what a linear map reads from them.

    Both over cells whose every pixel is valid; no decoder is needed.
    """
    target = rows["depth_latent"].to(predicted.device)
    mask = rows["latent_mask"].to(predicted.device)
    latent = masked_l1(predicted, target, mask.expand_as(target))
    depth = cell_means(rows["depth_norm"].to(predicted.device), mask)
    metric = depth_loss(coarse(predicted), depth, mask, codec, config)["loss"]
    return {
        "loss": latent + config.coarse_loss_weight * metric,
        "latent": latent,
        "coarse": metric,
    }


def depth_loss(
    depth_norm: Tensor,
    target: Tensor,
    valid_mask: Tensor,
    codec: DepthCodec,
    config: TrainOneStepConfig,
) -> dict[str, Tensor]:
    """The metric loss on depth_norm [B, 1, H, W]: its terms, and their weighted sum ``loss``."""
    l1 = masked_l1(depth_norm, target, valid_mask)
    gradient = multiscale_gradient_l1(depth_norm, target, valid_mask)
    scale = scale_aware_log_loss(
        depth_norm, target, valid_mask, codec.log_range, config.scale_loss_lambda
    )
    relative = relative_depth_l1(depth_norm, target, valid_mask, codec.log_range)
    total = l1 + config.gradient_loss_weight * gradient + config.scale_loss_weight * scale
    total = total + config.relative_loss_weight * relative
    return {"loss": total, "l1": l1, "gradient": gradient, "scale": scale, "relative": relative}


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Fine-tune the stage-B U-Net; the complete checkpoint goes to ``workspace.model``.

    Two phases: ``latent_phase`` compares latents, which spares the decoder and so sees
    twice the pictures in the same time; then the metric loss on decoded depth.
    """
    section = config.train_one_step
    use_all_cores()
    torch.manual_seed(config.seed)
    banks = open_latents(config, workspace)
    model = MetricGoldModel.from_pretrained(workspace.unet).to(default_device())
    model.spec = dataclasses.replace(model.spec, num_inference_steps=1)
    unet = prepare_for_training(model.unet)
    identity = json.dumps(
        [cache_hash(workspace), weights_hash(workspace.unet), section.model_dump(mode="json")]
    )
    coarse = CoarseDepth.fit(banks, config.seed)
    phases = (("latent", section.latent_phase), ("depth", section.optimizer))
    for number, (phase, optimizer) in enumerate(phases):
        if optimizer.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            model.depth_vae.enable_gradient_checkpointing()
        _train_phase(config, workspace, model, banks, coarse, phase, optimizer, number, identity)
    with replaced_folder(workspace.model) as folder:
        model.to("cpu").save_pretrained(folder)
    for phase, _ in phases:
        checkpoint.discard(workspace.scratch(f"train_one_step_{phase}"))


def _train_phase(
    config: ProfileConfig,
    workspace: Workspace,
    model: MetricGoldModel,
    banks: dict[str, LatentBank],
    coarse: CoarseDepth,
    phase: str,
    optimizer: OptimizerConfig,
    number: int,
    identity: str,
) -> None:
    section, device = config.train_one_step, model.unet.device
    codec = model.spec.codec
    targets = ("depth_latent", "latent_mask") if phase == "latent" else ("valid_mask",)
    keys = ("rgb_latent", "fov_y_deg", "depth_norm", *targets)

    def loss(micro_batch: int, rows: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of one micro-batch: its terms, in this phase's space."""
        fov_y_deg = drop_fov(rows["fov_y_deg"], section.fov_dropout, generator)
        predicted = predict_depth_latent(model, rows["rgb_latent"].to(device), fov_y_deg)
        if phase == "latent":
            return _latent_loss(predicted, rows, coarse, codec, section)
        decoded = decode_depth_norm(model.depth_vae, predicted)
        target, valid = rows["depth_norm"].to(device), rows["valid_mask"].to(device)
        return depth_loss(decoded, target, valid, codec, section)

    train(
        Run(
            name=f"train_one_step ({phase})",
            network=model.unet,
            optimizer=optimizer,
            batches=LatentBatches(config, banks, optimizer, salt=15 + number, keys=keys),
            loss=loss,
            scratch=workspace.scratch(f"train_one_step_{phase}"),
            seed=config.seed + 3 + number,
            identity=identity,
            curve=workspace.plots / CURVES[phase],
            workers=config.loader.workers,
        )
    )
