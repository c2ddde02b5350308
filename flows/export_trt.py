"""Stage ``export_trt``: TensorRT engines, or why there are none."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`export.build_engine.run`."""
    from export import build_engine

    build_engine.run(config, workspace)


if __name__ == "__main__":
    stage_main("export_trt", run)
