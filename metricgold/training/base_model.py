"""Stage ``base_model``: the text-to-image model everything starts from.

A hub checkpoint is fetched and stripped of its text encoder; without one (``toy``),
Stable Diffusion's architecture is built at toy width and its image VAE is trained on
the pictures of the profile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from metricgold.config import BaseModelConfig, ProfileConfig
from metricgold.errors import UserError
from metricgold.files import replaced_folder, write_json
from metricgold.model import LOADING, build_toy_unet, build_toy_vae, vae_factor
from metricgold.training import checkpoint
from metricgold.training.accelerator import (
    default_device,
    is_main,
    use_all_cores,
    wait_for_everyone,
)
from metricgold.training.autoencoder import (
    FrameBatches,
    crop_share,
    random_crop,
    reconstruction_loss,
    set_scaling_factor,
)
from metricgold.training.banks import first_frames, open_banks
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train
from metricgold.workspace import Workspace

EMBED_FILE = "empty_text_embed.safetensors"
SOURCE_FILE = "source.json"


@dataclass
class BaseModel:
    """Image VAE, text-to-image U-Net and the empty prompt's embedding [1, T, C]."""

    image_vae: AutoencoderKL
    unet: UNet2DConditionModel
    empty_text_embed: Tensor
    source: dict[str, str | None] = field(default_factory=dict)
    """Where it is from: ``hub_id``, ``revision``, ``commit``; empty for one made here."""

    def save(self, folder: Path) -> None:
        """Write the parts to ``folder`` (replaced as a whole)."""
        with replaced_folder(folder) as new:
            self.image_vae.save_pretrained(new / "image_vae")
            self.unet.save_pretrained(new / "unet")
            save_file({"empty_text_embed": self.empty_text_embed.contiguous()}, new / EMBED_FILE)
            write_json(new / SOURCE_FILE, self.source)

    @classmethod
    def load(cls, folder: Path) -> BaseModel:
        """Read what :meth:`save` wrote; raises ``UserError`` when it is not there."""
        if not (folder / EMBED_FILE).is_file():
            raise UserError(f"{folder}: no base model there; run 'dvc repro base_model'")
        return cls(
            AutoencoderKL.from_pretrained(folder / "image_vae", **LOADING),
            UNet2DConditionModel.from_pretrained(folder / "unet", **LOADING),
            load_file(folder / EMBED_FILE)["empty_text_embed"],
            json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8")),
        )


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Make or fetch the base model into ``workspace.base_model``."""
    if config.base_model.hub_id is not None:
        model = fetch(config.base_model.hub_id, config.base_model.revision)
        metrics: dict[str, float] = {"pretrained": 1}
    else:
        model, metrics = _toy(config, workspace)
    if is_main():
        model.save(workspace.base_model)
        write_json(workspace.metrics / "base_model.json", metrics)
        checkpoint.discard(workspace.scratch("base_model"))
    wait_for_everyone()


def fetch(hub_id: str, revision: str | None) -> BaseModel:
    """A diffusers-format Stable Diffusion from the hub or a folder; safetensors only.

    Raises:
        UserError: offline and not in the local cache, missing, or not in that format.
    """
    try:
        vae = AutoencoderKL.from_pretrained(hub_id, subfolder="vae", revision=revision, **LOADING)
        unet = UNet2DConditionModel.from_pretrained(
            hub_id, subfolder="unet", revision=revision, **LOADING
        )
        embed = _empty_prompt(hub_id, revision)
    except ImportError as error:
        raise UserError(f"base model '{hub_id}' needs the 'sd2' extra: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        wanted = f"base model '{hub_id}' (revision {revision})"
        raise UserError(f"{wanted} cannot be had: {reason}") from error
    commit = _commit(hub_id, revision)
    if commit and commit != revision:
        print(f"base model '{hub_id}': revision {revision} is commit {commit}; pin it in params")
    source = {"hub_id": hub_id, "revision": revision, "commit": commit}
    return BaseModel(vae, unet, embed, source)


def _commit(hub_id: str, revision: str | None) -> str | None:
    """The commit that a revision of the hub stood for; None for a folder."""
    if Path(hub_id).is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "unet/config.json", revision=revision)
    return Path(found).parents[1].name if isinstance(found, str) else None


def _empty_prompt(hub_id: str, revision: str | None) -> Tensor:
    """The un-padded empty prompt (start and end token) through the text encoder: [1, 2, C]."""
    from transformers import CLIPTextModel, CLIPTokenizer

    revision = revision or "main"
    tokenizer = CLIPTokenizer.from_pretrained(hub_id, subfolder="tokenizer", revision=revision)
    encoder = CLIPTextModel.from_pretrained(
        hub_id, subfolder="text_encoder", revision=revision, use_safetensors=True
    )
    if len(tokenizer) != encoder.config.vocab_size:  # a missing one is made up by transformers
        raise ValueError(
            f"its tokenizer has {len(tokenizer)} tokens, its text encoder "
            f"{encoder.config.vocab_size}: is the folder 'tokenizer' whole?"
        )
    tokens = tokenizer("", padding="do_not_pad", return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0].float()


class PictureObjective(Objective):
    """Reconstruction of pictures by the image VAE, on windows of them."""

    network: AutoencoderKL

    def __init__(self, vae: AutoencoderKL, config: BaseModelConfig) -> None:
        super().__init__(vae)
        assert config.optimizer is not None
        self.config, self.optimizer = config, config.optimizer

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of the micro-batch's ``rgb``."""
        share = crop_share(self.config.crop, number, self.optimizer)
        (rgb,) = random_crop((batch["rgb"],), share, vae_factor(self.network), generator)
        rgb = rgb.to(self.device)
        everywhere = torch.ones_like(rgb[:, :1], dtype=torch.bool)
        return reconstruction_loss(self.network, rgb, rgb, everywhere, generator, 0.5, 1e-6)


def _toy(config: ProfileConfig, workspace: Workspace) -> tuple[BaseModel, dict[str, float]]:
    section = config.base_model
    assert section.toy is not None
    optimizer = section.optimizer
    assert optimizer is not None
    use_all_cores()
    torch.manual_seed(config.seed)
    vae = build_toy_vae(section.toy).to(default_device())
    unet = build_toy_unet(section.toy)
    embed = torch.randn(1, 2, section.toy.cross_attention_dim)
    banks = open_banks(config, workspace, "train")

    last = train(
        Run(
            name="base_model",
            objective=PictureObjective(vae, section),
            optimizer=optimizer,
            batches=FrameBatches(config, banks, optimizer, salt=11, keys=("rgb",)),
            scratch=workspace.scratch("base_model"),
            seed=config.seed,
            identity=json.dumps(
                [{n: len(b) for n, b in banks.items()}, section.model_dump(mode="json")]
            ),
            curve=workspace.plots / "base_model.csv",
            workers=config.loader.workers,
            tracking=config.tracking,
        )
    )
    images = [b["rgb"] for b in first_frames(banks, 128).values()]
    factor = set_scaling_factor(vae, images)
    metrics = {"pretrained": 0, "image_l1": last["l1"], "scaling_factor": factor}
    return BaseModel(vae.cpu(), unet, embed), metrics
