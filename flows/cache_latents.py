"""Stage ``cache_latents``: latents of every frame and augmentation."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.training.latents.run`."""
    from metricgold.training import latents

    latents.run(config, workspace)


if __name__ == "__main__":
    stage_main("cache_latents", run)
