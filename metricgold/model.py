"""The networks: how they are built, widened and called.

Everything is a plain diffusers class, so any diffusers user can load the parts.
The field of view enters through ``UNet2DConditionModel``'s own class embedding
(``class_embed_type="projection"``: an MLP whose output is added to the timestep
embedding and starts at zero). A vector of zeros stands for an unknown camera; the
MLP's biases are then the learned null embedding.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

from metricgold.config import LightVaeConfig, ToyModelConfig
from metricgold.errors import UserError
from metricgold.geometry import ray_latent

FOV_FEATURES = 32
FOV_OCTAVES = (-2.0, 3.0)
"""Lowest and highest octave; the sinusoids' frequencies are pi times 2 to that power."""
LOADING: dict[str, Any] = {"use_safetensors": True, "low_cpu_mem_usage": False}
"""How diffusers reads weights: safetensors only, into networks that are built first."""

Vae: TypeAlias = AutoencoderKL | AutoencoderTiny
"""A full autoencoder or a light one."""


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the folder, what is wrong, what to do."""


def build_toy_vae(config: ToyModelConfig) -> AutoencoderKL:
    """AutoencoderKL of Stable Diffusion's shape; spatial factor 2^(levels - 1)."""
    levels = len(config.vae_channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=config.vae_layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    assert vae.quant_conv is not None
    assert vae.quant_conv.bias is not None
    with torch.no_grad():  # a quiet posterior (std 0.05) from the first step on
        vae.quant_conv.bias[config.latent_channels :] = -6.0
    return vae


def build_light_vae(config: LightVaeConfig, latent_channels: int) -> AutoencoderTiny:
    """TAESD's architecture with random weights; spatial factor 2^(levels - 1)."""
    widths = (config.width,) * len(config.encoder_blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
        latent_channels=latent_channels,
    )


def build_toy_unet(config: ToyModelConfig) -> UNet2DConditionModel:
    """Text-to-image U-Net of C latent channels, FOV embedding included, before widening."""
    attends = config.attention_levels
    if len(attends) != len(config.unet_channels):
        raise ValueError(
            f"attention_levels has {len(attends)} entries, "
            f"unet_channels {len(config.unet_channels)}"
        )
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends))
    unet = UNet2DConditionModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.unet_channels,
        layers_per_block=config.unet_layers,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=tuple(c // config.attention_head_dim for c in config.unet_channels),
        norm_num_groups=config.norm_groups,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=FOV_FEATURES,
    )
    zero_fov_output(unet)
    return unet


def with_fov_embedding(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net with the FOV embedding: itself, or for a pretrained one a copy that has it.

    The embedding's last layer is zero, so that the copy gives what the original gave.

    Raises:
        CheckpointError: it is conditioned on something else by its class embedding.
    """
    if unet.class_embedding is None:
        config = dict(unet.config) | {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": FOV_FEATURES,
        }
        config.pop("_use_default_values", None)  # else diffusers takes its defaults for these
        new = UNet2DConditionModel.from_config(config)
        missing, unexpected = new.load_state_dict(unet.state_dict(), strict=False)
        assert not unexpected
        assert all(name.startswith("class_embedding.") for name in missing)
        unet = new.to(unet.dtype)
    inputs = unet.config.projection_class_embeddings_input_dim
    if unet.config.class_embed_type != "projection" or inputs != FOV_FEATURES:
        raise CheckpointError(
            f"U-Net has a class embedding of its own ({unet.config.class_embed_type}); one without "
            "is needed, such as Stable Diffusion 2's"
        )
    zero_fov_output(unet)
    return unet


def zero_fov_output(unet: UNet2DConditionModel) -> None:
    """Zero the FOV MLP's last layer, so that step 0 equals the base model."""
    assert unet.class_embedding is not None
    nn.init.zeros_(unet.class_embedding.linear_2.weight)
    nn.init.zeros_(unet.class_embedding.linear_2.bias)


def widen_conv_in(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """conv_in from C to 2 C channels, order [rgb_latent, depth_latent], in place.

    The weights are repeated twice and halved: fed the same latent twice, the network
    gives what it gave before. Source: Marigold.
    """
    old, channels = unet.conv_in, unet.config.out_channels
    if old.in_channels == 2 * channels:
        return unet
    if old.in_channels != channels:
        raise CheckpointError(
            f"U-Net takes {old.in_channels} channels and gives {channels}; "
            f"{channels} or {2 * channels} expected"
        )
    new = nn.Conv2d(2 * channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    new.weight = nn.Parameter(old.weight.detach().repeat(1, 2, 1, 1) * 0.5)
    assert old.bias is not None
    new.bias = nn.Parameter(old.bias.detach().clone())
    unet.conv_in = new
    unet.register_to_config(in_channels=2 * channels)
    return unet


def fov_features(fov_y_deg: Tensor) -> Tensor:
    """Vertical fields of view [B] in degrees to features [B, 32]; NaN (unknown) to zeros.

    Sinusoids of ``tan(fov_y / 2)`` at 16 octave-spaced frequencies from pi/4 up to 8 pi.
    """
    tangent = torch.tan(torch.deg2rad(fov_y_deg.float()) / 2.0)
    octaves = torch.linspace(*FOV_OCTAVES, FOV_FEATURES // 2, device=fov_y_deg.device)
    phase = tangent[:, None] * (math.pi * 2.0**octaves)  # [B, 16]
    features = torch.cat([phase.sin(), phase.cos()], dim=1)
    return torch.where(torch.isnan(fov_y_deg)[:, None], torch.zeros_like(features), features)


def one_step_start(fov_y_deg: Tensor, rgb_latent: Tensor) -> Tensor:
    """What one step starts from in place of noise, [B, C, h, w]: ``geometry.ray_latent``."""
    channels, height, width = rgb_latent.shape[-3:]
    rays = ray_latent(fov_y_deg.detach().cpu().double().numpy(), (height, width), channels)
    return torch.from_numpy(rays).to(rgb_latent)


def vae_factor(vae: Vae) -> int:
    """Pixels a latent cell spans on each axis (8 for Stable Diffusion)."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: Vae, image: Tensor) -> Tensor:
    """Picture [B, 3, H, W] in [-1, 1] to latent [B, C, h, w]: posterior mean x scaling factor.

    A light one's output stands for a full one's scaled mean; its own factor is 1.
    """
    found = vae.encode(image)
    latent = found.latents if isinstance(vae, AutoencoderTiny) else found.latent_dist.mean
    return latent * vae.config.scaling_factor


def encode_depth_norm(depth_vae: AutoencoderKL, depth_norm: Tensor) -> Tensor:
    """depth_norm [B, 1, H, W] in [-1, 1] to depth latent [B, C, h, w]."""
    return encode(depth_vae, depth_norm.expand(-1, 3, -1, -1))


def decode_depth_norm(depth_vae: Vae, depth_latent: Tensor) -> Tensor:
    """Depth latent [B, C, h, w] to depth_norm [B, 1, H, W], float32 channel mean, *not* clipped."""
    decoded = depth_vae.decode(depth_latent / depth_vae.config.scaling_factor).sample
    return decoded.float().mean(dim=1, keepdim=True)


def predict_velocity(
    unet: UNet2DConditionModel,
    rgb_latent: Tensor,
    noisy_depth_latent: Tensor,
    timesteps: Tensor,
    empty_text_embed: Tensor,
    fov: Tensor,
) -> Tensor:
    """Velocity [B, C, h, w] from the two latents, timesteps [B] or scalar, FOV features [B, 32]."""
    unet_input = torch.cat([rgb_latent, noisy_depth_latent], dim=1)  # [B, 2 C, h, w], rgb first
    text = empty_text_embed.to(unet_input.dtype).expand(unet_input.shape[0], -1, -1)
    out = unet(unet_input, timesteps, text, class_labels=fov.to(unet_input.dtype))
    return out.sample
