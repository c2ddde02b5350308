"""Folders in the format of Stable Diffusion on the hub, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "norm_num_groups": 8,
}
SMALL_VAE: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
SMALL_TEXT: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 4,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""Of ``CLIPTextConfig``."""


def write_stable_diffusion(
    folder: Path,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Path:
    """``unet/ vae/ text_encoder/ tokenizer/`` as ``StableDiffusionPipeline`` saves them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(**(unet or SMALL_UNET)).save_pretrained(folder / "unet")
    AutoencoderKL(**(vae or SMALL_VAE)).save_pretrained(folder / "vae")
    for part, given in (("unet", unet or SMALL_UNET), ("vae", vae or SMALL_VAE)):
        _forget_defaults(folder / part / "config.json", given)
    config = CLIPTextConfig(**(text or SMALL_TEXT))
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(words))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "model_max_length": 77,
            }
        )
    )
    return folder


def _forget_defaults(path: Path, given: dict[str, Any]) -> None:
    """Published folders are older than many options of today, so their files don't name them."""
    config = json.loads(path.read_text())
    kept = {name: config[name] for name in ("_class_name", "_diffusers_version", *given)}
    path.write_text(json.dumps(kept))
