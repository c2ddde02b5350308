"""Stage ``train_unet``: the U-Net by v-prediction on cached latents."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.training.unet.run`."""
    from metricgold.training import unet

    unet.run(config, workspace)


if __name__ == "__main__":
    stage_main("train_unet", run, shareable=True)
