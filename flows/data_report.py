"""Stage ``data_report``: one page on the frames that training and evaluation will see."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.evaluation.data_report.run`."""
    from metricgold.evaluation import data_report

    data_report.run(config, workspace)


if __name__ == "__main__":
    stage_main("data_report", run)
