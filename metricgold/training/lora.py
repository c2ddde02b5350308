"""Low-rank updates of the U-Net by peft; what is saved in the end is a plain U-Net."""

from __future__ import annotations

from diffusers import UNet2DConditionModel

from metricgold.config import LoraConfig
from metricgold.errors import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention's projections."""

WHOLE = ("conv_in", "class_embedding")
"""What a pretrained U-Net does not have yet."""


def add_lora(unet: UNet2DConditionModel, config: LoraConfig) -> None:
    """Freeze all but low-rank updates and :data:`WHOLE`. The updates start at zero.

    Raises:
        UserError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"'lora' needs the extra of that name (pip install 'metricgold[lora]'): {error}"
        ) from None
    unet.requires_grad_(False)
    unet.add_adapter(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(TARGETS))
    )
    for name in WHOLE:
        getattr(unet, name).requires_grad_(True)


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Add the updates to the weights they update, in place; nothing without any."""
    if getattr(unet, "peft_config", None):
        unet.fuse_lora()
        unet.unload_lora()
