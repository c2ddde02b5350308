"""Stage ``verify_onnx``: ONNX against torch."""

from __future__ import annotations

from flows._stage import stage_main
from metricgold.config import ProfileConfig
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """See :func:`export.parity.run`."""
    from export import parity

    parity.run(config, workspace)


if __name__ == "__main__":
    stage_main("verify_onnx", run)
