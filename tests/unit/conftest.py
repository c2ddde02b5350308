"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest
from toy import toy_model

from metricgold.config import ExportConfig
from metricgold.workspace import Workspace

EXPORT = ExportConfig(
    opset=23,
    precision="fp32",
    dynamic=True,
    parity_sizes=((16, 24), (14, 26)),
    engine_size=(16, 24),
    fused=True,
    parity_frames=0,
)


@pytest.fixture(scope="session")
def export_config() -> ExportConfig:
    """Export settings that fit the toy model; the second size has latents of odd sides."""
    return EXPORT


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a toy checkpoint and its graphs; read-only, copy before changing it."""
    from export.onnx_export import export_checkpoint

    ws = Workspace(tmp_path_factory.mktemp("exported"))
    toy_model(fov_matters=True).save_pretrained(ws.model)
    export_checkpoint(ws.model, ws.onnx, EXPORT)
    return ws
