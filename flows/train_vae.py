"""Stage ``train_vae``: the depth VAE from the image VAE."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.training.vae.run`."""
    from metricgold.training import vae

    vae.run(config, workspace)


if __name__ == "__main__":
    stage_main("train_vae", run, shareable=True)
