"""Schedule, noise, v-target and sampling loop of the depth diffusion, side by side.

v-prediction with zero terminal SNR: ``z_t = sqrt(a) z + sqrt(1-a) e`` and
``v = sqrt(a) e - sqrt(1-a) z``; at t = 999, a = 0, hence ``z = -v`` in one step.
Sources: Salimans & Ho 2022 (v), Lin et al. 2023 (zero terminal SNR), Marigold
(annealed multi-resolution noise).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional as F

LAST_TIMESTEP = 999


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas, rescaled to zero terminal SNR, trailing spacing, v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def _alpha_sigma(alphas_cumprod: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()


def add_noise(latent: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """``z_t`` [B, C, h, w] from clean latent and noise at integer timesteps [B]."""
    alpha, sigma = _alpha_sigma(alphas_cumprod, timesteps)
    return alpha * latent + sigma * noise


def velocity_target(
    latent: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """``v`` [B, C, h, w], what the U-Net predicts."""
    alpha, sigma = _alpha_sigma(alphas_cumprod, timesteps)
    return alpha * noise - sigma * latent


def annealed_multires_noise(
    shape: tuple[int, ...],
    timesteps: Tensor,
    strength: float,
    generator: torch.Generator | None = None,
    levels: int = 6,
) -> Tensor:
    """Unit-variance noise [B, C, h, w] with coarser octaves weighted by ``(strength t/T)^i``.

    The coarse part vanishes as t falls, so late steps see white noise. Source: Marigold.
    """
    batch, channels, height, width = shape
    noise = torch.randn(shape, generator=generator)
    weight = (strength * timesteps.float().cpu() / 1000.0).view(-1, 1, 1, 1)
    variance = torch.ones(batch, 1, 1, 1)
    for level in range(1, levels):
        h, w = height // 2**level, width // 2**level
        if min(h, w) < 1:
            break
        coarse = torch.randn((batch, channels, h, w), generator=generator)
        coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        rms = coarse.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()  # std is biased at 1x1
        coarse = coarse / rms.clamp_min(1e-6)
        noise = noise + weight**level * coarse
        variance = variance + weight ** (2 * level)
    return (noise / variance.sqrt()).to(timesteps.device)


def sample(
    predict_velocity: Callable[[Tensor, Tensor], Tensor],
    initial: Tensor,
    scheduler: DDIMScheduler,
    num_inference_steps: int,
) -> Tensor:
    """Deterministic DDIM from ``initial`` [B, C, h, w] to the clean depth latent.

    Args:
        predict_velocity: (noisy latent, timestep [scalar tensor]) to velocity.
        initial: Gaussian noise, or the camera's rays for the one-step model.
    """
    scheduler.set_timesteps(num_inference_steps)
    latent = initial
    for timestep in scheduler.timesteps:
        velocity = predict_velocity(latent, timestep)
        latent = scheduler.step(velocity, timestep, latent).prev_sample
    return latent
