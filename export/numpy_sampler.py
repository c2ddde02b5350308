"""The sampler's arithmetic in numpy, driven by the manifest, for runtimes without torch.

Mirrors :func:`metricgold.model.fov_features` and :func:`metricgold.diffusion.sample`;
the tests hold each pair equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.manifest import SchedulerTable

Array = NDArray[np.float32]


def fov_features(fov_y_deg: float | None, definition: dict[str, Any]) -> Array:
    """Vertical field of view in degrees (None: unknown) to features [1, F].

    ``definition`` is the manifest's ``fov``: number of features and octave range.
    """
    count = int(definition["features"])
    if fov_y_deg is None or math.isnan(fov_y_deg):
        return np.zeros((1, count), np.float32)
    low, high = definition["octaves"]
    octaves = np.linspace(low, high, count // 2, dtype=np.float32)
    tangent = np.tan(np.deg2rad(np.float32(fov_y_deg)) / np.float32(2.0))
    phase = tangent * (np.float32(math.pi) * np.float32(2.0) ** octaves)
    return np.concatenate([np.sin(phase), np.cos(phase)])[None].astype(np.float32)


def trailing_timesteps(num_inference_steps: int, num_train_timesteps: int) -> list[int]:
    """DDIM timesteps, first to last: evenly spaced and ending the training range.

    Raises:
        ValueError: the number of steps is not in [1, num_train_timesteps].
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"number of steps must lie in [1, {num_train_timesteps}], got {num_inference_steps}"
        )
    stride = num_train_timesteps / num_inference_steps
    return [int(t) - 1 for t in np.round(np.arange(num_train_timesteps, 0, -stride))]


def sampling_steps(
    table: SchedulerTable, num_inference_steps: int
) -> list[tuple[int, float, float]]:
    """What each DDIM step does: its timestep, and what it takes of the latent and the velocity.

    With signal ``s = sqrt(a)`` and noise ``n = sqrt(1-a)``, v-prediction has ``z = s z_t - n v``
    and ``e = s v + n z_t``; the next latent ``s' z + n' e`` is therefore
    ``(s s' + n n') z_t + (s n' - n s') v`` (Song et al. 2021 with eta 0; Salimans & Ho 2022).
    """
    alphas = table.alphas().astype(np.float64)
    stride = table.num_train_timesteps // num_inference_steps
    steps = []
    for timestep in trailing_timesteps(num_inference_steps, table.num_train_timesteps):
        earlier = timestep - stride
        alpha_next = float(alphas[earlier]) if earlier >= 0 else table.final_alpha_cumprod
        signal, noise = math.sqrt(alphas[timestep]), math.sqrt(1 - alphas[timestep])
        signal_next, noise_next = math.sqrt(alpha_next), math.sqrt(1 - alpha_next)
        of_latent = signal * signal_next + noise * noise_next
        of_velocity = signal * noise_next - noise * signal_next
        steps.append((timestep, of_latent, of_velocity))
    return steps


def combine(latent: Array, velocity: Array, of_latent: float, of_velocity: float) -> Array:
    """The next latent [B, C, h, w] of a step, see :func:`sampling_steps`."""
    return np.float32(of_latent) * latent + np.float32(of_velocity) * velocity


def sample(
    predict_velocity: Callable[[Any, int], Any],
    initial: Any,
    table: SchedulerTable,
    num_inference_steps: int,
    combine: Callable[[Any, Any, float, float], Any] = combine,
) -> Any:
    """Deterministic DDIM for v-prediction from ``initial`` [B, C, h, w] to the clean latent.

    Args:
        combine: does the arithmetic, for latents that are no numpy arrays.
    """
    latent = initial
    for timestep, of_latent, of_velocity in sampling_steps(table, num_inference_steps):
        latent = combine(latent, predict_velocity(latent, timestep), of_latent, of_velocity)
    return latent
