"""A small training run as a program of its own: killed, started again, in several processes.

Usage: python trained.py FOLDER ACCUMULATION [muon|adamw|sharded [WORKERS [SECONDS_A_MICRO_BATCH]]]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from toy import TOY

from metricgold.config import OptimizerConfig
from metricgold.model import build_toy_vae
from metricgold.training.accelerator import is_main
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train

STEPS = 40


class Numbers:
    """Micro-batch ``n``: eight samples that are a function of ``n``."""

    def __getitem__(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(number)
        return {"x": torch.randn(8, 3, 8, 8, generator=generator)}


class Denoising(Objective):
    """Two small convolutions that undo noise; ``pause`` seconds a micro-batch."""

    def __init__(self, pause: float) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(),
                nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1),
            )
        )  # fmt: skip
        self.pause = pause

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the noise found."""
        time.sleep(self.pause)
        noise = torch.randn(batch["x"].shape, generator=generator)
        error = (self.network(batch["x"] + noise) - noise).square().mean()
        return {"loss": error, "root": error.sqrt()}


class Reconstruction(Objective):
    """A small autoencoder, called by its two methods as the stages do."""

    network: AutoencoderKL

    def __init__(self, pause: float) -> None:
        torch.manual_seed(0)
        super().__init__(build_toy_vae(TOY))
        self.pause = pause

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of what is decoded."""
        time.sleep(self.pause)
        latent = self.network.encode(batch["x"]).latent_dist.mean
        error = (self.network.decode(latent).sample - batch["x"]).square().mean()
        return {"loss": error}


def main(folder: Path, accumulation: int, optimizer: str, workers: int, pause: float) -> None:
    """Train; the weights go to ``folder/weights.pt``, the curve to ``folder/curve.csv``."""
    config = OptimizerConfig.model_validate(
        {
            "steps": STEPS, "batch_size": 8, "accumulation": accumulation, "lr": 0.01,
            "muon": {"lr": 0.02} if optimizer == "muon" else None,
            "warmup_steps": 2, "decay": "cosine", "final_lr_ratio": 0.1,
            "weight_decay": 0.01, "grad_clip": 1.0, "ema_decay": 0.9, "precision": "fp32",
            "checkpoint_every": 5, "shard": optimizer == "sharded",
        }
    )  # fmt: skip
    torch.set_num_threads(1)
    objective = (Reconstruction if optimizer == "sharded" else Denoising)(pause)
    train(
        Run(
            name="toy",
            objective=objective,
            optimizer=config,
            batches=Numbers(),
            scratch=folder / "scratch",
            seed=3,
            curve=folder / "curve.csv",
            workers=workers,
        )
    )
    if is_main():
        torch.save(objective.network.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0]),
        int(given[1]),
        given[2] if len(given) > 2 else "muon",
        int(given[3]) if len(given) > 3 else 0,
        float(given[4]) if len(given) > 4 else 0.0,
    )
