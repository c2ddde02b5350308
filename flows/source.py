"""Stage ``source``: what a dataset offers; renders the procedural archives."""

from __future__ import annotations

from flows._stage import dataset_stage_main
from metricgold.config import DatasetName, ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace, dataset: DatasetName) -> None:
    """See :func:`metricgold.data.source.run`."""
    from metricgold.data import source

    source.run(config, workspace, dataset)


if __name__ == "__main__":
    dataset_stage_main("source", run)
