"""Stage ``report``: one page with every figure of the run."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`metricgold.evaluation.report.run`."""
    from metricgold.evaluation import report

    report.run(config, workspace)


if __name__ == "__main__":
    stage_main("report", run)
