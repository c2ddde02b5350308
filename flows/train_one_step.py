"""Stage ``train_one_step``: one denoising step, end to end, metric loss."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.training.one_step.run`."""
    from metricgold.training import one_step

    one_step.run(config, workspace)


if __name__ == "__main__":
    stage_main("train_one_step", run, shareable=True)
