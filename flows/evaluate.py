"""Stage ``evaluate``: the held-out frames of one dataset."""

from __future__ import annotations

from flows._stage import dataset_stage_main
from metricgold.config import DatasetName, ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace, dataset: DatasetName) -> None:
    """See :func:`metricgold.evaluation.benchmark.run`."""
    from metricgold.evaluation import benchmark

    benchmark.run(config, workspace, dataset)


if __name__ == "__main__":
    dataset_stage_main("evaluate", run)
