"""Stage ``train_light``: one light autoencoder in place of the two full ones, by distillation.

Of one step the full autoencoders take most of the time. An ``AutoencoderTiny`` learns what they do:
its encoder gives the image VAE's latent of a picture, its decoder reads depth from depth latents.
First each alone, then both through the frozen one-step U-Net, so that the encoder learns what the
U-Net needs of a latent and the decoder what the U-Net makes. No other network is changed.
"""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from metricgold.config import OptimizerConfig, ProfileConfig, TrainLightConfig
from metricgold.errors import UserError
from metricgold.files import write_csv
from metricgold.model import LOADING, build_light_vae, decode_depth_norm, encode
from metricgold.pretrained import MetricGoldModel
from metricgold.training import checkpoint
from metricgold.training.accelerator import (
    default_device,
    is_main,
    use_all_cores,
    written_by_main,
)
from metricgold.training.banks import open_banks
from metricgold.training.latents import (
    PictureBatches,
    cache_hash,
    cached_rows,
    open_latents,
    weights_hash,
)
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train
from metricgold.training.one_step import DEPTH_KEYS, MetricObjective
from metricgold.training.tracking import folder_of
from metricgold.training.validation import Validation
from metricgold.workspace import Workspace

STAGE = "train_light"
CURVES = {"latent": "train_light_latent.csv", "depth": "train_light.csv"}


class LightObjective(Objective):
    """What both phases share: L1 to the full encoder's latent, stage C's metric loss on depth."""

    network: AutoencoderTiny
    keys: tuple[str, ...]

    def __init__(self, model: MetricGoldModel, config: ProfileConfig) -> None:
        assert model.light_vae is not None
        assert config.train_light is not None
        super().__init__(model.light_vae)
        self.latent_loss_weight = config.train_light.latent_loss_weight
        self.one_step = MetricObjective(model, config.train_one_step)

    def encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The light encoder's latent [B, C, h, w] of the pictures, and its L1."""
        rgb_latent = encode(self.network, batch["rgb"].to(self.device))
        return rgb_latent, F.l1_loss(rgb_latent.float(), batch["rgb_latent"].to(self.device))


class ApartObjective(LightObjective):
    """Encoder and decoder apart; the decoder reads depth from the full encoder's latents."""

    keys = (*DEPTH_KEYS, "depth_latent")

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of cached rows with ``keys``, and their ``rgb``."""
        _, latent = self.encoded(batch)
        decoded = decode_depth_norm(self.network, batch["depth_latent"].to(self.device))
        losses = self.one_step.depth_loss(decoded, batch)
        return losses | {"loss": losses["loss"] + latent, "latent": latent}


class ThroughUNetObjective(LightObjective):
    """The decoder reads depth from what the frozen U-Net makes of the light encoder's latent."""

    keys = DEPTH_KEYS

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of cached rows with ``keys``, and their ``rgb``."""
        rgb_latent, latent = self.encoded(batch)
        depth_latent = self.one_step.predict(batch | {"rgb_latent": rgb_latent}, generator)
        decoded = decode_depth_norm(self.network, depth_latent)
        losses = self.one_step.depth_loss(decoded, batch)
        total = losses["loss"] + self.latent_loss_weight * latent
        return losses | {"loss": total, "latent": latent}


def initial_light_vae(config: TrainLightConfig, latent_channels: int) -> AutoencoderTiny:
    """The light autoencoder before training.

    Raises:
        UserError: the pretrained one cannot be had: offline and not in the local cache, or missing.
    """
    if config.network is not None:
        return build_light_vae(config.network, latent_channels)
    assert config.pretrained is not None
    try:
        return AutoencoderTiny.from_pretrained(
            config.pretrained, revision=config.revision, **LOADING
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        wanted = f"light autoencoder '{config.pretrained}' (revision {config.revision})"
        raise UserError(f"{wanted} cannot be had: {reason}") from error


def train_light(
    config: ProfileConfig, workspace: Workspace, model: MetricGoldModel, identity: str
) -> None:
    """Give ``model``, which is done, a light autoencoder."""
    section = config.train_light
    assert section is not None
    torch.manual_seed(config.seed)
    light_vae = initial_light_vae(section, model.image_vae.config.latent_channels)
    model.freeze().register_modules(light_vae=light_vae.train().requires_grad_(True))
    model.to(default_device()).use_light()
    latents = open_latents(config, workspace)
    frames = cached_rows(config, open_banks(config, workspace, "train"))
    phases: tuple[tuple[str, LightObjective, OptimizerConfig], ...] = (
        ("latent", ApartObjective(model, config), section.latent_phase),
        ("depth", ThroughUNetObjective(model, config), section.optimizer),
    )
    for number, (phase, objective, optimizer) in enumerate(phases):
        if optimizer.gradient_checkpointing:  # AutoencoderTiny's own loses the scaling of pictures
            model.unet.enable_gradient_checkpointing()
        name = f"{STAGE} ({phase})"
        train(
            Run(
                name=name,
                objective=objective,
                optimizer=optimizer,
                batches=PictureBatches(
                    config, latents, frames, optimizer, 18 + number, objective.keys
                ),
                scratch=workspace.scratch(f"{STAGE}_{phase}"),
                seed=config.seed + 6 + number,
                identity=identity,
                curve=workspace.plots / CURVES[phase],
                workers=config.loader.workers,
                tracking=config.tracking,
                validate=Validation(config, workspace, model, folder_of(config.tracking, name)),
            )
        )
    model.use_light(False)


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Stage C's checkpoint to ``workspace.model``, with a light autoencoder if asked for."""
    use_all_cores()
    model = MetricGoldModel.from_pretrained(workspace.one_step)
    if config.train_light is not None:
        sections = (config.train_one_step, config.train_light)
        hashes = [cache_hash(workspace), weights_hash(workspace.one_step)]
        identity = json.dumps([*hashes, *(s.model_dump(mode="json") for s in sections)])
        train_light(config, workspace, model, identity)
    elif is_main():
        for curve in CURVES.values():
            write_csv(workspace.plots / curve, ("step", "loss"), [])
    with written_by_main(workspace.model) as folder:
        if folder is not None:
            model.to("cpu").save_pretrained(folder)
            for phase in CURVES:
                checkpoint.discard(workspace.scratch(f"{STAGE}_{phase}"))
