"""Stage ``export_onnx``: ONNX graphs and their manifest."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`export.onnx_export.run`."""
    from export import onnx_export

    onnx_export.run(config, workspace)


if __name__ == "__main__":
    stage_main("export_onnx", run)
