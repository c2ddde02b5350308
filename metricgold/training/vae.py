"""Stage A, ``train_vae``: the depth VAE, from the image VAE, and the VAE floor."""

from __future__ import annotations

import json
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metricgold.config import ProfileConfig, TrainVaeConfig
from metricgold.depth_codec import DepthCodec
from metricgold.evaluation.floor import vae_floor
from metricgold.files import write_json
from metricgold.model import vae_factor
from metricgold.training import checkpoint
from metricgold.training.accelerator import default_device, is_main, use_all_cores, written_by_main
from metricgold.training.autoencoder import (
    FrameBatches,
    crop_share,
    random_crop,
    reconstruction_loss,
    set_scaling_factor,
)
from metricgold.training.banks import depth_norm_of, first_frames, open_banks
from metricgold.training.base_model import BaseModel
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train
from metricgold.workspace import Workspace

FLOOR_FRAMES = 64
"""Frames a dataset that the floor is measured on."""

Batches = dict[str, dict[str, Tensor]]


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Fine-tune the depth VAE into ``workspace.depth_vae``; floor to ``metrics/train_vae.json``.

    The new weights are kept only if the floor on training frames improves; the floor
    that is published is measured on held-out frames.
    """
    section = config.train_vae
    use_all_cores()
    torch.manual_seed(config.seed)
    codec = DepthCodec(config.codec.depth_min_m, config.codec.depth_max_m)
    vae = BaseModel.load(workspace.base_model).image_vae.to(default_device())
    banks = open_banks(config, workspace, "train")
    known = first_frames(banks, FLOOR_FRAMES)
    held_out = first_frames(open_banks(config, workspace, "holdout"), FLOOR_FRAMES)
    before, known_before = _floor(vae, codec, held_out), _floor(vae, codec, known)
    original = {k: v.clone() for k, v in vae.state_dict().items()}

    _train(config, workspace, vae, codec, banks)
    known_after = _floor(vae, codec, known)
    accepted = known_after["abs_rel"] < known_before["abs_rel"]
    if not accepted:
        print(f"train_vae: floor {known_after['abs_rel']:.4f} is no better; image VAE kept")
        vae.load_state_dict(original)
    norms = [depth_norm_of(codec, b["depth"], b["valid_mask"])[0] for b in known.values()]
    factor = set_scaling_factor(vae, [n.expand(-1, 3, -1, -1) for n in norms])
    after = _floor(vae, codec, held_out)
    with written_by_main(workspace.depth_vae) as folder:
        if folder is not None:
            vae.cpu().save_pretrained(folder)
    if is_main():
        metrics = {
            "floor_before": before,
            "floor_after": after,
            "accepted": int(accepted),
            "decoder_only": int(not section.train_encoder),
            "scaling_factor": factor,
        }
        write_json(workspace.metrics / "train_vae.json", metrics)
        checkpoint.discard(workspace.scratch("train_vae"))
        told = f"AbsRel {before['abs_rel']:.4f} -> {after['abs_rel']:.4f}"
        print(f"VAE floor on held-out frames: {told}")


class DepthObjective(Objective):
    """Reconstruction of log-depth by the depth VAE, on windows of it."""

    network: AutoencoderKL

    def __init__(self, vae: AutoencoderKL, codec: DepthCodec, config: TrainVaeConfig) -> None:
        super().__init__(vae)
        self.codec, self.config = codec, config

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of the micro-batch's ``depth`` where ``valid_mask``, and of its sky, which is +1."""
        norm, valid = depth_norm_of(self.codec, batch["depth"], batch["valid_mask"])
        known = valid | batch["sky_mask"]
        share = crop_share(self.config.crop, number, self.config.optimizer)
        norm, known = random_crop((norm, known), share, vae_factor(self.network), generator)
        norm, known = norm.to(self.device), known.to(self.device)
        return reconstruction_loss(
            self.network,
            norm.expand(-1, 3, -1, -1),
            norm,
            known,
            generator,
            self.config.gradient_loss_weight,
            self.config.kl_weight,
            self.config.latent_mixup,
        )


def _train(
    config: ProfileConfig, workspace: Workspace, vae: AutoencoderKL, codec: DepthCodec, banks: Any
) -> None:
    section = config.train_vae
    vae.train().requires_grad_(True)
    if not section.train_encoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    keys = ("depth", "valid_mask", "sky_mask")

    train(
        Run(
            name="train_vae",
            objective=DepthObjective(vae, codec, section),
            optimizer=section.optimizer,
            batches=FrameBatches(config, banks, section.optimizer, salt=12, keys=keys),
            scratch=workspace.scratch("train_vae"),
            seed=config.seed + 1,
            identity=json.dumps(
                [{n: len(b) for n, b in banks.items()}, section.model_dump(mode="json")]
            ),
            curve=workspace.plots / "train_vae.csv",
            workers=config.loader.workers,
            tracking=config.tracking,
        )
    )


def _floor(vae: AutoencoderKL, codec: DepthCodec, batches: Batches) -> dict[str, float]:
    """Frame-weighted mean of the floor over datasets, and AbsRel a dataset."""
    per_dataset = {
        name: vae_floor(vae, codec, batch["depth"], batch["valid_mask"])
        for name, batch in batches.items()
    }
    frames = sum(f["frames"] for f in per_dataset.values())
    result = {
        key: round(sum(f[key] * f["frames"] for f in per_dataset.values()) / frames, 5)
        for key in ("abs_rel", "delta1", "boundary_f1", "abs_rel_edges")
    }
    result["frames"] = int(frames)
    for name, floor in per_dataset.items():
        result[f"abs_rel_{name}"] = round(floor["abs_rel"], 5)
    return result
