"""What training the image VAE and the depth VAE have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metricgold.config import AugmentConfig, OptimizerConfig, ProfileConfig
from metricgold.data.frames import FrameBank, collate
from metricgold.data.mixing import MixingSampler
from metricgold.losses import kl_divergence, masked_l1, multiscale_gradient_l1
from metricgold.training.banks import mixture_weights

VAE_AUGMENT = AugmentConfig(
    flip=0.5, crop=0.5, crop_min_scale=0.5, uncrop=0.0, uncrop_max_scale=1.0, colour=0.0
)


def frame_batches(
    config: ProfileConfig, banks: dict[str, FrameBank], optimizer: OptimizerConfig, salt: int
) -> Callable[[int], dict[str, Tensor]]:
    """Micro-batch number to a batch of augmented frames of one dataset; a pure function of it."""
    sampler = MixingSampler(
        {n: len(b) for n, b in banks.items()},
        mixture_weights(config),
        optimizer.batch_size,
        optimizer.steps * optimizer.accumulation,
        config.seed + salt,
    )

    def batch(micro_batch: int) -> dict[str, Tensor]:
        """Frames of micro-batch ``micro_batch``, see :func:`collate`."""
        name, indices = sampler.batch(micro_batch)
        samples = []
        for position, index in enumerate(indices):
            rng = np.random.default_rng([config.seed, salt, micro_batch, position])
            samples.append(banks[name].sample(int(index), VAE_AUGMENT, rng))
        return collate(samples)

    return batch


def reconstruction_loss(
    vae: AutoencoderKL,
    image: Tensor,
    target: Tensor,
    valid_mask: Tensor,
    generator: torch.Generator,
    gradient_weight: float,
    kl_weight: float,
) -> dict[str, Tensor]:
    """``L1 + gradient_weight * multi-scale gradient L1 + kl_weight * KL`` on valid pixels.

    Args:
        image: [B, 3, H, W] in [-1, 1], what is encoded.
        target: [B, C, H, W]; C = 1 compares the decoder's channel mean, 3 every channel.
        valid_mask: bool [B, 1, H, W].
    """
    posterior = vae.encode(image).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    if target.shape[1] == 1:
        decoded = decoded.mean(dim=1, keepdim=True)
    rows = (-1, 1, *target.shape[-2:])
    mask = valid_mask.expand_as(target).reshape(rows)
    decoded, target = decoded.reshape(rows), target.reshape(rows)
    l1 = masked_l1(decoded, target, mask)
    gradient = multiscale_gradient_l1(decoded, target, mask)
    kl = kl_divergence(posterior.mean, posterior.logvar)
    return {
        "loss": l1 + gradient_weight * gradient + kl_weight * kl,
        "l1": l1,
        "gradient": gradient,
    }


@torch.no_grad()
def set_scaling_factor(vae: AutoencoderKL, images: list[Tensor], batch_size: int = 32) -> float:
    """Store 1 / std of the latents of ``images`` ([N, 3, H, W] each) as the scaling factor."""
    vae.eval()
    means = [
        vae.encode(part.to(vae.device)).latent_dist.mean.float().flatten()
        for image in images
        for part in image.split(batch_size)
    ]
    factor = round(float(1.0 / torch.cat(means).std()), 6)
    vae.register_to_config(scaling_factor=factor)
    return factor
