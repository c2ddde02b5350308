"""Stage ``evaluate``: the held-out frames of one dataset."""

from __future__ import annotations

from flows._spread import chosen_spread
from flows._stage import dataset_stage_main
from metricgold.config import DatasetName, ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace, dataset: DatasetName) -> None:
    """See :func:`metricgold.evaluation.benchmark.run`."""
    if not config.datasets[dataset].enabled:
        from metricgold.evaluation.skipped import write_skipped

        return write_skipped(workspace, dataset)
    from metricgold.evaluation import benchmark
    from metricgold.memory import keep_freed_memory

    spread = chosen_spread(f"evaluate@{dataset}", threads=1)
    keep_freed_memory()
    benchmark.run(config, workspace, dataset, spread)


if __name__ == "__main__":
    dataset_stage_main("evaluate", run)
