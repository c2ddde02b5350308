"""What training the image VAE and the depth VAE have in common."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metricgold.config import AugmentConfig, OptimizerConfig, ProfileConfig
from metricgold.data.frames import FrameBank, collate
from metricgold.losses import kl_divergence, masked_l1, multiscale_gradient_l1
from metricgold.training.banks import mixing_sampler
from metricgold.training.loader import Batch

VAE_AUGMENT = AugmentConfig(
    flip=0.5, crop=0.5, crop_min_scale=0.5, uncrop=0.0, uncrop_max_scale=1.0, colour=0.0
)

WHOLE_FRAMES = 0.15
"""Last share of the steps of a VAE's training that sees whole frames, whatever the crop."""


class FrameBatches:
    """Micro-batches of augmented frames of one dataset each; ``keys`` of :func:`collate`."""

    def __init__(
        self,
        config: ProfileConfig,
        banks: dict[str, FrameBank],
        optimizer: OptimizerConfig,
        salt: int,
        keys: tuple[str, ...],
    ) -> None:
        self._banks, self._seed, self._keys = banks, (config.seed, salt), keys
        self._sampler = mixing_sampler(config, banks, optimizer, salt)

    def __getitem__(self, number: int) -> Batch:
        name, indices = self._sampler.batch(number)
        samples = []
        for position, index in enumerate(indices):
            rng = np.random.default_rng([*self._seed, number, position])
            samples.append(self._banks[name].sample(int(index), VAE_AUGMENT, rng))
        batch = collate(samples)
        return {key: batch[key] for key in self._keys}


def crop_share(share: float, micro_batch: int, optimizer: OptimizerConfig) -> float:
    """``share``, and 1 for the last micro-batches: norms end with the statistics of whole frames.

    Without them the demo's depth-VAE floor is a fifth higher.
    """
    total = optimizer.steps * optimizer.accumulation
    return 1.0 if micro_batch >= total * (1 - WHOLE_FRAMES) else share


def random_crop(
    tensors: tuple[Tensor, ...], share: float, multiple: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """The same random window of every tensor [..., H, W]: ``share`` of each side.

    A VAE is convolutional: steps on windows cost little and there can be more of them. Sides
    are multiples of ``multiple``, at least one; all of the frame with ``share`` 1.
    """
    if share == 1:
        return tensors
    window = []
    for side in tensors[0].shape[-2:]:
        size = max(1, round(side * share) // multiple) * multiple
        start = int(torch.randint(side - size + 1, (1,), generator=generator))
        window.append(slice(start, start + size))
    return tuple(tensor[..., window[0], window[1]] for tensor in tensors)


def mix_latents(
    latent: Tensor, target: Tensor, valid_mask: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``share`` of a batch, each mixed with its neighbour: latents and targets alike.

    What decodes a mix of latents to the mix of their images is near affine, so that a mean over
    what a U-Net finds possible is decoded to the mean depth. A pixel is valid where both are.
    Source of mixing hidden states: Verma et al. 2019, https://arxiv.org/abs/1806.05236.
    """
    count = int(len(latent) * share)
    if count == 0:
        return latent, target, valid_mask
    weight = torch.ones(len(latent), 1, 1, 1)
    weight[:count] = torch.rand(count, 1, 1, 1, generator=generator)
    weight = weight.to(latent.device)
    both = valid_mask & (valid_mask.roll(1, 0) | (weight == 1))
    mixed = [weight * x + (1 - weight) * x.roll(1, 0) for x in (latent, target)]
    return mixed[0], mixed[1], both


def reconstruction_loss(
    vae: AutoencoderKL,
    image: Tensor,
    target: Tensor,
    valid_mask: Tensor,
    generator: torch.Generator,
    gradient_weight: float,
    kl_weight: float,
    latent_mixup: float = 0.0,
) -> dict[str, Tensor]:
    """``L1 + gradient_weight * multi-scale gradient L1 + kl_weight * KL`` on valid pixels.

    Args:
        image: [B, 3, H, W] in [-1, 1], what is encoded.
        target: [B, C, H, W]; C = 1 compares the decoder's channel mean, 3 every channel.
        valid_mask: bool [B, 1, H, W].
        latent_mixup: share of the batch that is mixed, see :func:`mix_latents`.
    """
    posterior = vae.encode(image).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    latent = posterior.mean + posterior.std * noise
    latent, target, valid_mask = mix_latents(latent, target, valid_mask, latent_mixup, generator)
    decoded = vae.decode(latent).sample
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
