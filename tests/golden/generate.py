"""Writes ``values.json``: numbers that must not change unless somebody means to change them.

``python -m tests.golden.generate`` after a change that is meant to move them; say why in the
changelog. Seeds stand in the code, versions in the file.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from metricgold.config import load_config
from metricgold.data.procedural import render_scene
from metricgold.diffusion import annealed_multires_noise
from metricgold.geometry import hypersim_intrinsics, intrinsics_from_fov
from metricgold.training.base_model import PictureObjective
from metricgold.training.loop import Objective
from metricgold.training.one_step import LatentObjective, MetricObjective
from metricgold.training.unet import VelocityObjective
from metricgold.training.vae import DepthObjective
from tests.unit.toy import toy_model

FILE = Path(__file__).with_name("values.json")


def pipeline_values() -> list[float]:
    """Depth [m] of a fixed picture by a fixed random model: one step, a slice of nine."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    depth = toy_model()(picture, fov_deg=60.0).prediction[0, ..., 0]
    return [float(v) for v in depth[::7, ::11].ravel()[:9]]


def world_values(kind: str) -> list[float]:
    """z-depth [m] and radiance of a few pixels of a rendered world."""
    camera = intrinsics_from_fov(70.0, 24, 36)
    frame = render_scene(kind, 7, camera, (24, 36), 1)[0]  # type: ignore[arg-type]
    depth = np.where(np.isfinite(frame.depth), frame.depth, 0.0)
    return [float(v) for v in (*depth[::9, ::13].ravel(), *frame.radiance[::11, ::17, 1].ravel())]


def noise_values() -> list[float]:
    """Annealed multi-resolution noise at a fixed seed."""
    generator = torch.Generator().manual_seed(3)
    noise = annealed_multires_noise((1, 4, 8, 12), torch.tensor([700]), 0.9, generator)
    return [float(v) for v in noise.flatten()[::48]]


def camera_values() -> list[float]:
    """K of a tilted, off-centre Hypersim camera."""
    matrix = np.array([[0.6, 0.02, 0.05], [0.0, 0.45, -0.03], [0.01, 0.1, -1.0]])
    return [float(v) for v in hypersim_intrinsics(matrix)[0].ravel()]


def loss_values() -> list[float]:
    """The losses of all training stages on a fixed micro-batch with fixed random weights."""
    model, config = toy_model(fov_matters=True), load_config("params.yaml", "smoke")
    generator = torch.Generator().manual_seed(9)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator)

    norm = noise(1, 24, 32).clamp(-1, 1)
    valid_mask = noise(1, 24, 32) > -1
    sky_mask = ~valid_mask & (torch.arange(24) < 6)[:, None]
    norm[sky_mask] = 1.0
    batch = {
        "rgb": noise(3, 24, 32).clamp(-1, 1),
        "depth": torch.from_numpy(model.codec.decode(norm.numpy())),
        "valid_mask": valid_mask,
        "sky_mask": sky_mask,
        "depth_norm": norm,
        "rgb_latent": noise(4, 12, 16),
        "depth_latent": noise(4, 12, 16),
        "latent_mask": noise(1, 12, 16) > -1,
        "fov_y_deg": torch.tensor([50.0, 80.0]),
    }
    torch.manual_seed(9)  # of the auxiliary head
    weights = torch.tensor([0.5, 1.0, 2.0, 0.5]).view(1, 4, 1, 1)
    objectives: list[Objective] = [
        PictureObjective(model.image_vae, config.base_model),
        DepthObjective(model.depth_vae, model.codec, config.train_vae),
        VelocityObjective(model, config.train_unet),
        LatentObjective(model, config.train_one_step, weights),
        MetricObjective(model, config.train_one_step),
    ]
    found = []
    for number, objective in enumerate(objectives):
        with torch.no_grad():
            losses = objective(0, batch, torch.Generator().manual_seed(number))
        found += [float(losses[name]) for name in sorted(losses)]
    return found


def values() -> dict[str, list[float]]:
    """All golden values by name."""
    return {
        "pipeline": pipeline_values(),
        "indoor": world_values("indoor"),
        "street": world_values("street"),
        "noise": noise_values(),
        "hypersim_camera": camera_values(),
        "losses": loss_values(),
    }


if __name__ == "__main__":
    content = {
        "generator": "python -m tests.golden.generate",
        "versions": {
            n: version(n).partition("+")[0] for n in ("torch", "diffusers", "numpy", "pillow")
        },
        "python": sys.version.split()[0],
        "values": values(),
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n")
