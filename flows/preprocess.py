"""Stage ``preprocess``: archives to shards of frames with metric depth."""

from __future__ import annotations

from flows._spread import chosen_spread
from flows._stage import dataset_stage_main
from metricgold.config import DatasetName, ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace, dataset: DatasetName) -> None:
    """See :func:`metricgold.data.preprocess.run`."""
    from metricgold.data import preprocess

    spread = chosen_spread(f"preprocess@{dataset}", config.preprocess.workers)
    preprocess.run(config, workspace, dataset, spread)


if __name__ == "__main__":
    dataset_stage_main("preprocess", run)
