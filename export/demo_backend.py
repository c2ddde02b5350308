"""Exported graphs as a back-end of ``metricgold demo`` (entry point ``metricgold.backends``)."""

from __future__ import annotations

from pathlib import Path

from export.backends import OnnxRuntimeBackend
from export.runtime import open_session
from export.trt_infer import predictor
from metricgold.demo.results import Backend
from metricgold.picture_files import Predict


def open_backend(folder: Path) -> Backend:
    """ONNX Runtime on the CPU over an export folder.

    Raises:
        ExportError: missing, stale or foreign files, or no ONNX Runtime here.
    """
    session = open_session(folder, OnnxRuntimeBackend.name)

    def of(steps: int | None, ensemble: int) -> Predict:
        """A prediction with these options; the same noise every time."""
        return predictor(session, steps=steps, ensemble_size=ensemble)

    return Backend("ONNX Runtime", of)
