"""Schedule, noise and velocity against diffusers and against the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metricgold.diffusion import (
    LAST_TIMESTEP,
    add_noise,
    annealed_multires_noise,
    make_scheduler,
    sample,
    velocity_target,
)

SHAPE = (3, 4, 8, 12)
TIMESTEPS = torch.tensor([0, 400, LAST_TIMESTEP])


def latent_and_noise() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_noise_and_velocity_equal_diffusers() -> None:
    scheduler, (latent, noise) = make_scheduler(), latent_and_noise()
    alphas = scheduler.alphas_cumprod
    torch.testing.assert_close(
        add_noise(latent, noise, TIMESTEPS, alphas), scheduler.add_noise(latent, noise, TIMESTEPS)
    )
    torch.testing.assert_close(
        velocity_target(latent, noise, TIMESTEPS, alphas),
        scheduler.get_velocity(latent, noise, TIMESTEPS),
    )


def test_latent_and_noise_follow_from_z_and_v() -> None:
    scheduler, (latent, noise) = make_scheduler(), latent_and_noise()
    alphas = scheduler.alphas_cumprod
    z = add_noise(latent, noise, TIMESTEPS, alphas)
    v = velocity_target(latent, noise, TIMESTEPS, alphas)
    alpha = alphas[TIMESTEPS].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alphas[TIMESTEPS]).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha * z - sigma * v, latent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sigma * z + alpha * v, noise, atol=1e-5, rtol=1e-5)


def test_zero_terminal_snr() -> None:
    scheduler, (latent, noise) = make_scheduler(), latent_and_noise()
    alphas = scheduler.alphas_cumprod
    assert alphas[LAST_TIMESTEP] == 0.0
    assert (alphas.diff() < 0).all()
    last = torch.full((3,), LAST_TIMESTEP)
    torch.testing.assert_close(add_noise(latent, noise, last, alphas), noise)
    torch.testing.assert_close(velocity_target(latent, noise, last, alphas), -latent)


def test_one_step_gives_minus_v_whatever_it_starts_from() -> None:
    latent, start = latent_and_noise()
    seen: list[int] = []

    def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
        seen.append(int(timestep))
        assert torch.equal(noisy, start)
        return -latent

    out = sample(velocity, start, make_scheduler(), 1)
    torch.testing.assert_close(out, latent)
    assert seen == [LAST_TIMESTEP]


@pytest.mark.parametrize("steps", [2, 4, 10])
def test_a_perfect_network_is_inverted_in_any_number_of_steps(steps: int) -> None:
    scheduler, (latent, noise) = make_scheduler(), latent_and_noise()

    def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
        times = timestep.expand(len(noisy))
        expected = add_noise(latent, noise, times, scheduler.alphas_cumprod)
        torch.testing.assert_close(noisy, expected, atol=1e-4, rtol=1e-4)
        return velocity_target(latent, noise, times, scheduler.alphas_cumprod)

    out = sample(velocity, noise, scheduler, steps)
    torch.testing.assert_close(out, latent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("timestep", [0, 500, LAST_TIMESTEP])
@pytest.mark.parametrize("size", [(8, 12), (12, 36), (1, 3), (64, 64)])
def test_noise_has_unit_variance(timestep: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    times = torch.full((400,), timestep)
    noise = annealed_multires_noise((400, 4, *size), times, 0.9, generator)
    assert noise.var().item() == pytest.approx(1.0, abs=0.06)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.06)


def test_coarse_noise_vanishes_with_t_and_is_reproducible() -> None:
    def neighbours(timestep: int) -> float:
        generator = torch.Generator().manual_seed(2)
        noise = annealed_multires_noise(
            (64, 4, 16, 16), torch.full((64,), timestep), 0.9, generator
        )
        return (noise[..., 1:] * noise[..., :-1]).mean().item()

    assert neighbours(0) == pytest.approx(0.0, abs=0.02)
    assert neighbours(LAST_TIMESTEP) > 0.3
    assert neighbours(300) == neighbours(300)
