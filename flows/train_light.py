"""Stage ``train_light``: a light autoencoder for inference, distilled from the full ones."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.training.light.run`."""
    from metricgold.training import light

    light.run(config, workspace)


if __name__ == "__main__":
    stage_main("train_light", run, shareable=True)
