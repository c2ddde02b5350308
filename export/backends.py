"""What runs a graph: one small interface and its ONNX Runtime back-ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.driver import cuda_driver_problem
from export.manifest import BackendUnavailableError, ExportError, GraphFile
from export.specs import GRAPHS

Arrays = Mapping[str, NDArray[Any]]


class Backend(Protocol):
    """Runs graphs of one export folder by name."""

    name: str

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of a graph; inputs as its ``ComponentSpec`` says."""
        ...


class OnnxRuntimeBackend:
    """ONNX Runtime on one execution provider, which must really be the one in use."""

    provider = "CPUExecutionProvider"
    name = "onnxruntime-cpu"

    def __init__(self, folder: Path, graphs: Mapping[str, GraphFile]) -> None:
        ort = _import_onnxruntime()
        if self.provider not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"{self.name}: this onnxruntime has no {self.provider}; install 'onnxruntime-gpu'"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._sessions: dict[str, Any] = {}
        for component, graph in graphs.items():
            path = folder / graph.onnx_file
            try:
                session = ort.InferenceSession(str(path), options, providers=[self.provider])
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                raise ExportError(f"{path}: ONNX Runtime refuses the graph: {reason}") from error
            active = session.get_providers()[0]
            if active != self.provider:
                raise BackendUnavailableError(f"{self.name}: ONNX Runtime fell back to {active}")
            self._sessions[component] = session

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of one graph, float32."""
        output = GRAPHS[component].output_name
        (result,) = self._sessions[component].run([output], dict(inputs))
        return result


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """ONNX Runtime on an NVIDIA GPU; never falls back to the CPU unnoticed."""

    provider = "CUDAExecutionProvider"
    name = "onnxruntime-cuda"

    def __init__(self, folder: Path, graphs: Mapping[str, GraphFile]) -> None:
        problem = cuda_driver_problem()
        if problem:
            raise BackendUnavailableError(f"{self.name}: {problem}")
        super().__init__(folder, graphs)


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendUnavailableError(
            "onnxruntime is not installed; 'pip install onnxruntime' (or onnxruntime-gpu)"
        ) from None
    return onnxruntime
