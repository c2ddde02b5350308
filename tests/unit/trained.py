"""A small training run as a program of its own: killed, started again, in several processes.

Usage: python trained.py FOLDER ACCUMULATION [muon|adamw [WORKERS [SECONDS_A_MICRO_BATCH]]]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from metricgold.config import OptimizerConfig
from metricgold.training.accelerator import is_main
from metricgold.training.loader import Batch
from metricgold.training.loop import Objective, Run, train

STEPS = 40


class Numbers:
    """Micro-batch ``n``: eight samples that are a function of ``n``."""

    def __getitem__(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(number)
        return {"x": torch.randn(8, 3, 6, 6, generator=generator)}


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


def main(folder: Path, accumulation: int, optimizer: str, workers: int, pause: float) -> None:
    """Train; the weights go to ``folder/weights.pt``, the curve to ``folder/curve.csv``."""
    config = OptimizerConfig.model_validate(
        {
            "steps": STEPS, "batch_size": 8, "accumulation": accumulation, "lr": 0.01,
            "muon": {"lr": 0.02} if optimizer == "muon" else None,
            "warmup_steps": 2, "decay": "cosine", "final_lr_ratio": 0.1,
            "weight_decay": 0.01, "grad_clip": 1.0, "ema_decay": 0.9, "precision": "fp32",
            "checkpoint_every": 5,
        }
    )  # fmt: skip
    torch.set_num_threads(1)
    objective = Denoising(pause)
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
