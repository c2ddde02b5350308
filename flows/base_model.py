"""Stage ``base_model``: the image VAE and U-Net that everything starts from."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.training.base_model.run`."""
    from metricgold.training import base_model

    base_model.run(config, workspace)


if __name__ == "__main__":
    stage_main("base_model", run, shareable=True)
