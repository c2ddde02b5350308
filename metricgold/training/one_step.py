"""Stage C, ``train_one_step``: one step, end to end, with a metric loss in log-depth.

At t = 999 with zero terminal SNR the clean latent is ``-v``; it goes through the frozen
depth decoder and is compared with true depth. Source of end-to-end fine-tuning:
Garcia et al. 2024; their affine-invariant loss is replaced by one that keeps the scale.
"""

from __future__ import annotations

import json

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from metricgold.confidence import ConfidenceHead, at_pixels
from metricgold.config import OptimizerConfig, ProfileConfig, TrainOneStepConfig
from metricgold.depth_codec import DepthCodec
from metricgold.diffusion import LAST_TIMESTEP
from metricgold.losses import (
    laplace_nll,
    masked_l1,
    multiscale_gradient_l1,
    relative_depth_l1,
    scale_aware_log_loss,
)
from metricgold.model import (
    decode_depth_norm,
    fov_features,
    one_step_start,
    predict_velocity,
    vae_factor,
)
from metricgold.pretrained import MetricGoldModel
from metricgold.training import checkpoint
from metricgold.training.accelerator import default_device, use_all_cores, written_by_main
from metricgold.training.auxiliary import WithDepthHead, channel_weights
from metricgold.training.latents import (
    LatentBank,
    LatentBatches,
    cache_hash,
    open_latents,
    weights_hash,
)
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train
from metricgold.training.lora import merge_lora
from metricgold.training.tracking import folder_of
from metricgold.training.unet import drop_fov, prepare_for_training
from metricgold.training.validation import Validation
from metricgold.workspace import Workspace

CONFIDENCE = "confidence"
DEPTH_KEYS = ("rgb_latent", "fov_y_deg", "depth_norm", "valid_mask", "sky_mask")
CURVES = {"latent": "train_one_step_latent.csv", "depth": "train_one_step.csv"}


def predict_depth_latent(
    unet: UNet2DConditionModel, empty_text_embed: Tensor, rgb_latent: Tensor, fov_y_deg: Tensor
) -> Tensor:
    """One step at t = 999 from the camera's rays: clean depth latent [B, C, h, w], with gradients.

    ``fov_y_deg`` [B] holds NaN where the camera is unknown.
    """
    timesteps = torch.full((len(rgb_latent),), LAST_TIMESTEP, device=rgb_latent.device)
    start = one_step_start(fov_y_deg, rgb_latent)
    features = fov_features(fov_y_deg).to(rgb_latent.device)
    return -predict_velocity(unet, rgb_latent, start, timesteps, empty_text_embed, features)


def depth_loss(
    depth_norm: Tensor,
    target: Tensor,
    valid_mask: Tensor,
    sky_mask: Tensor,
    codec: DepthCodec,
    config: TrainOneStepConfig,
) -> dict[str, Tensor]:
    """The metric loss on depth_norm [B, 1, H, W]: its terms, and their weighted sum ``loss``.

    Sky, whose target is +1, enters where errors are compared in depth_norm, not in metres.
    """
    known = valid_mask | sky_mask
    l1 = masked_l1(depth_norm, target, known)
    gradient = multiscale_gradient_l1(depth_norm, target, known)
    scale = scale_aware_log_loss(
        depth_norm, target, valid_mask, codec.log_range, config.scale_loss_lambda
    )
    relative = relative_depth_l1(depth_norm, target, valid_mask, codec.log_range)
    total = l1 + config.gradient_loss_weight * gradient + config.scale_loss_weight * scale
    total = total + config.relative_loss_weight * relative
    return {"loss": total, "l1": l1, "gradient": gradient, "scale": scale, "relative": relative}


class _OneStep(Objective):
    """What both phases share: the depth latent of one step from the picture's latent."""

    network: UNet2DConditionModel
    empty_text_embed: Tensor
    keys: tuple[str, ...]

    def __init__(self, model: MetricGoldModel, config: TrainOneStepConfig) -> None:
        super().__init__(model.unet)
        self.config, self.codec = config, model.codec
        self.register_buffer("empty_text_embed", model.empty_text_embed, persistent=False)

    def predict(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Depth latent [B, C, h, w] of the micro-batch, some cameras made unknown."""
        fov_y_deg = drop_fov(batch["fov_y_deg"], self.config.fov_dropout, generator)
        rgb_latent = batch["rgb_latent"].to(self.device)
        return predict_depth_latent(self.network, self.empty_text_embed, rgb_latent, fov_y_deg)

    def depth_loss(self, depth_norm: Tensor, batch: Batch) -> dict[str, Tensor]:
        """:func:`depth_loss` of the micro-batch."""
        target = batch["depth_norm"].to(depth_norm)
        valid, sky = (batch[key].to(target.device) for key in ("valid_mask", "sky_mask"))
        return depth_loss(depth_norm, target, valid, sky, self.codec, self.config)


class LatentObjective(_OneStep):
    """L1 between depth latents, over cells whose every pixel is valid; no decoder is needed.

    With ``auxiliary_loss_weight`` also the metric loss on the depth of an auxiliary head.

    Args:
        channel_weights: [1, C, 1, 1], what an error in each channel counts.
    """

    network: UNet2DConditionModel | WithDepthHead
    channel_weights: Tensor
    keys = (*DEPTH_KEYS, "depth_latent", "latent_mask")

    def __init__(
        self, model: MetricGoldModel, config: TrainOneStepConfig, channel_weights: Tensor
    ) -> None:
        super().__init__(model, config)
        self.register_buffer("channel_weights", channel_weights, persistent=False)
        if config.auxiliary_loss_weight:
            self.network = WithDepthHead(model.unet, vae_factor(model.depth_vae))

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of cached rows with ``keys``."""
        predicted = self.predict(batch, generator)
        target = batch["depth_latent"].to(predicted.device)
        mask = batch["latent_mask"].to(predicted.device)
        weights = self.channel_weights
        latent = masked_l1(predicted * weights, target * weights, mask.expand_as(target))
        losses = {"loss": self.config.latent_loss_weight * latent, "latent": latent}
        if isinstance(self.network, WithDepthHead):
            found = self.depth_loss(self.network.depth_norm, batch)
            losses["auxiliary"] = found["loss"]
            losses["loss"] = losses["loss"] + self.config.auxiliary_loss_weight * found["loss"]
        return losses


class MetricObjective(_OneStep):
    """The metric loss on decoded depth; gradients pass through the frozen decoder."""

    keys = DEPTH_KEYS

    def __init__(self, model: MetricGoldModel, config: TrainOneStepConfig) -> None:
        super().__init__(model, config)
        self.depth_vae = model.depth_vae

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of cached rows with ``keys``."""
        decoded = decode_depth_norm(self.depth_vae, self.predict(batch, generator))
        return self.depth_loss(decoded, batch)


class ConfidenceObjective(Objective):
    """How likely the errors of the frozen one-step model are by the confidence head."""

    network: ConfidenceHead
    keys = MetricObjective.keys

    def __init__(self, model: MetricGoldModel, config: TrainOneStepConfig) -> None:
        assert model.confidence is not None
        super().__init__(model.confidence)
        self.one_step = MetricObjective(model, config)

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of cached rows with ``keys``."""
        with torch.no_grad():
            depth_latent = self.one_step.predict(batch, generator)
            decoded = decode_depth_norm(self.one_step.depth_vae, depth_latent).clamp(-1, 1)
            difference = (decoded - batch["depth_norm"].to(decoded)).abs()
            error = difference * (self.one_step.codec.log_range / 2)  # |ln(d_pred / d_true)|
        valid, rgb_latent = batch["valid_mask"].to(decoded.device), batch["rgb_latent"]
        height, width = error.shape[-2:]
        log_error = self.network(rgb_latent.to(decoded.device), depth_latent.float())
        log_error = at_pixels(log_error, (height, width))
        return {
            "loss": laplace_nll(log_error, error, valid),
            "error": masked_l1(error, torch.zeros_like(error), valid),
            "expected": masked_l1(log_error.exp(), torch.zeros_like(error), valid),
        }


def train_confidence(
    config: ProfileConfig,
    workspace: Workspace,
    model: MetricGoldModel,
    banks: dict[str, LatentBank],
    identity: str,
) -> None:
    """Give ``model``, which is done, a confidence head, if the config asks for one."""
    section = config.train_one_step
    if section.confidence is None:
        return
    torch.manual_seed(config.seed + 5)
    channels = model.image_vae.config.latent_channels
    model.freeze().register_modules(confidence=ConfidenceHead(channels, section.confidence.width))
    model.to(default_device())
    objective, optimizer = ConfidenceObjective(model, section), section.confidence.optimizer
    train(
        Run(
            name="train_one_step (confidence)",
            objective=objective,
            optimizer=optimizer,
            batches=LatentBatches(config, banks, optimizer, 17, objective.keys),
            scratch=workspace.scratch(f"train_one_step_{CONFIDENCE}"),
            seed=config.seed + 5,
            identity=identity,
            workers=config.loader.workers,
            tracking=config.tracking,
        )
    )


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Fine-tune the stage-B U-Net; the complete checkpoint goes to ``workspace.one_step``.

    Two phases: ``latent_phase`` compares latents, which spares the decoder and so sees
    twice the pictures in the same time; then the metric loss on decoded depth. A confidence
    head, if asked for, is trained when the U-Net is done.
    """
    section = config.train_one_step
    use_all_cores()
    torch.manual_seed(config.seed)
    banks = open_latents(config, workspace)
    model = MetricGoldModel.from_pretrained(workspace.unet).to(default_device())
    model.register_to_config(default_denoising_steps=1)
    unet = prepare_for_training(model.unet, section.lora)
    identity = json.dumps(
        [cache_hash(workspace), weights_hash(workspace.unet), section.model_dump(mode="json")]
    )
    phases: tuple[tuple[str, _OneStep, OptimizerConfig], ...] = (
        (
            "latent",
            LatentObjective(model, section, channel_weights(model.depth_vae, banks, config.seed)),
            section.latent_phase,
        ),
        ("depth", MetricObjective(model, section), section.optimizer),
    )
    for number, (phase, objective, optimizer) in enumerate(phases):
        if optimizer.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            model.depth_vae.enable_gradient_checkpointing()
        name = f"train_one_step ({phase})"
        train(
            Run(
                name=name,
                objective=objective,
                optimizer=optimizer,
                batches=LatentBatches(config, banks, optimizer, 15 + number, objective.keys),
                scratch=workspace.scratch(f"train_one_step_{phase}"),
                seed=config.seed + 3 + number,
                identity=identity,
                curve=workspace.plots / CURVES[phase],
                workers=config.loader.workers,
                tracking=config.tracking,
                validate=Validation(config, workspace, model, folder_of(config.tracking, name)),
            )
        )
        if isinstance(objective.network, WithDepthHead):
            objective.network.detach_head()
    merge_lora(unet)
    train_confidence(config, workspace, model, banks, identity)
    with written_by_main(workspace.one_step) as folder:
        if folder is not None:
            model.to("cpu").save_pretrained(folder)
            for phase in (*CURVES, CONFIDENCE):
                checkpoint.discard(workspace.scratch(f"train_one_step_{phase}"))
