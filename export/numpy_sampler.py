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


def sample(
    predict_velocity: Callable[[Array, int], Array],
    initial: Array,
    table: SchedulerTable,
    num_inference_steps: int,
) -> Array:
    """Deterministic DDIM for v-prediction from ``initial`` [B, C, h, w] to the clean latent.

    ``z = sqrt(a) z_t - sqrt(1-a) v`` and ``e = sqrt(a) v + sqrt(1-a) z_t``; the next latent
    is ``sqrt(a') z + sqrt(1-a') e`` (Song et al. 2021 with eta 0; Salimans & Ho 2022).
    """
    alphas = table.alphas()
    stride = table.num_train_timesteps // num_inference_steps
    latent = initial
    for timestep in trailing_timesteps(num_inference_steps, table.num_train_timesteps):
        velocity = predict_velocity(latent, timestep)
        earlier = timestep - stride
        alpha = alphas[timestep]
        alpha_next = alphas[earlier] if earlier >= 0 else np.float32(table.final_alpha_cumprod)
        signal, sigma = np.sqrt(alpha), np.sqrt(1 - alpha)
        clean = signal * latent - sigma * velocity
        noise = signal * velocity + sigma * latent
        latent = np.sqrt(alpha_next) * clean + np.sqrt(1 - alpha_next) * noise
    return latent.astype(np.float32)
