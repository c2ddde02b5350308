"""What runs a graph: one small interface and its ONNX Runtime back-ends."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.driver import cuda_driver_problem
from export.manifest import BackendUnavailableError, ExportError, GraphFile, MemoryShortError
from export.ort_options import OrtOptions
from export.specs import GRAPHS
from metricgold.errors import UserError
from metricgold.files import replaced_folder

Arrays = Mapping[str, NDArray[Any]]
_CACHED = "graph.onnx"
_NO_MEMORY = re.compile("failed to allocate memory|bad_alloc|bad allocation", re.IGNORECASE)

COMBINE_GRAPH = base64.b64decode(
    "CAk6tAIKGwoJb2ZfbGF0ZW50CgZsYXRlbnQSAWEiA011bAofCgtvZl92ZWxvY2l0eQoIdmVsb2NpdHkSAWIiA011bA"
    "oRCgFhCgFiEgRuZXh0IgNBZGQSB2NvbWJpbmVaOAoGbGF0ZW50Ei4KLAgBEigKBxIFYmF0Y2gKChIIY2hhbm5lbHMK"
    "CBIGaGVpZ2h0CgcSBXdpZHRoWjoKCHZlbG9jaXR5Ei4KLAgBEigKBxIFYmF0Y2gKChIIY2hhbm5lbHMKCBIGaGVpZ2"
    "h0CgcSBXdpZHRoWhMKCW9mX2xhdGVudBIGCgQIARIAWhUKC29mX3ZlbG9jaXR5EgYKBAgBEgBiNgoEbmV4dBIuCiwI"
    "ARIoCgcSBWJhdGNoCgoSCGNoYW5uZWxzCggSBmhlaWdodAoHEgV3aWR0aEIECgAQFA=="
)
"""``next = of_latent * latent + of_velocity * velocity`` as an ONNX model, for the sampler.

A test makes it again with onnx, which the runtime does without.
"""


class Backend(Protocol):
    """Runs graphs of one export folder by name.

    Attributes:
        max_batch: pictures that go through the graphs at once; None for any number.
    """

    name: str
    max_batch: int | None

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of a graph; inputs as its ``ComponentSpec`` says."""
        ...


class OnnxRuntimeBackend:
    """ONNX Runtime on one execution provider, which must really be the one in use.

    Threads may call :meth:`run` at the same time.
    """

    concurrent = True
    provider = "CPUExecutionProvider"
    name = "onnxruntime-cpu"

    def __init__(
        self, folder: Path, graphs: Mapping[str, GraphFile], options: OrtOptions | None = None
    ) -> None:
        """Open the graphs.

        Raises:
            BackendUnavailableError: no ONNX Runtime, or not with this provider.
            ExportError: it refuses a graph.
        """
        ort = _import_onnxruntime()
        if self.provider not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"{self.name}: this onnxruntime has no {self.provider}; install 'onnxruntime-gpu'"
            )
        options = options or OrtOptions()
        batches = (next(iter(graph.inputs.values()))[0] for graph in graphs.values())
        self.max_batch = min((b for b in batches if isinstance(b, int)), default=None)
        self._sessions = {
            component: self._open(ort, folder / graph.onnx_file, component, graph, options)
            for component, graph in graphs.items()
        }

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of one graph, float32.

        Raises:
            ExportError: ONNX Runtime fails, for want of memory for instance.
        """
        output = GRAPHS[component].output_name
        with _failure_told(f"{self.name}: {component}"):
            (result,) = self._sessions[component].run([output], dict(inputs))
        return result

    def end_profiling(self) -> dict[str, str]:
        """The files with the times of every operator, by graph; see ``OrtOptions.profile``."""
        return {name: session.end_profiling() for name, session in self._sessions.items()}

    def close(self) -> None:
        """Hand back graphs and their memory."""
        self._sessions.clear()

    def _open(
        self, ort: Any, path: Path, component: str, graph: GraphFile, options: OrtOptions
    ) -> Any:
        """A session, of the cached graph if there is one; one is made if there is a cache."""
        settings = options.session_options(ort, component)
        cached = options.cache_folder(ort, component, graph.onnx_sha256)
        if cached is None:
            return self._session(ort, path, settings)
        if (cached / _CACHED).is_file():
            again = options.session_options(ort, component)
            again.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                return self._session(ort, cached / _CACHED, again)
            except BackendUnavailableError:
                raise
            except ExportError:  # damaged: made again below
                pass
        with _cache_written(cached), replaced_folder(cached) as part:
            settings.optimized_model_filepath = str(part / _CACHED)
            settings.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "graph.data"
            )
            return self._session(ort, path, settings)

    def _session(self, ort: Any, path: Path, settings: Any) -> Any:
        try:
            session = ort.InferenceSession(str(path), settings, providers=[self.provider])
        except Exception as error:
            raise ExportError(f"{path}: ONNX Runtime refuses the graph: {_flat(error)}") from error
        active = session.get_providers()[0]
        if active != self.provider:
            raise BackendUnavailableError(f"{self.name}: ONNX Runtime fell back to {active}")
        return session


class ResidentOnnxRuntimeBackend(OnnxRuntimeBackend):
    """ONNX Runtime that leaves latents on its device, see :mod:`export.resident`."""

    device = "cpu"

    def __init__(
        self, folder: Path, graphs: Mapping[str, GraphFile], options: OrtOptions | None = None
    ) -> None:
        super().__init__(folder, graphs, options)
        ort = _import_onnxruntime()
        settings = (options or OrtOptions()).session_options(ort, "combine")
        self._value = ort.OrtValue
        self._combine = ort.InferenceSession(COMBINE_GRAPH, settings, providers=[self.provider])

    def run_resident(self, component: str, inputs: Mapping[str, Any]) -> Any:
        """An ``OrtValue`` on the device, of arrays and such values.

        Raises:
            ExportError: ONNX Runtime fails, for want of memory for instance.
        """
        with _failure_told(f"{self.name}: {component}"):
            return self._bound(self._sessions[component], inputs, GRAPHS[component].output_name)

    def combine(self, latent: Any, velocity: Any, of_latent: float, of_velocity: float) -> Any:
        """The sampler's arithmetic on the device."""
        inputs = {
            "latent": latent,
            "velocity": velocity,
            "of_latent": np.array(of_latent, np.float32),
            "of_velocity": np.array(of_velocity, np.float32),
        }
        return self._bound(self._combine, inputs, "next")

    def to_host(self, value: Any) -> NDArray[np.float32]:
        """A value as an array."""
        return value.numpy()

    def _bound(self, session: Any, inputs: Mapping[str, Any], output: str) -> Any:
        binding = session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, self._value):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        binding.bind_output(output, self.device)
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]


class OnnxRuntimeCudaBackend(ResidentOnnxRuntimeBackend):
    """ONNX Runtime on an NVIDIA GPU; never falls back to the CPU unnoticed."""

    provider = "CUDAExecutionProvider"
    name = "onnxruntime-cuda"
    device = "cuda"

    def __init__(
        self, folder: Path, graphs: Mapping[str, GraphFile], options: OrtOptions | None = None
    ) -> None:
        problem = cuda_driver_problem()
        if problem:
            raise BackendUnavailableError(f"{self.name}: {problem}")
        super().__init__(folder, graphs, options)


def _import_onnxruntime() -> Any:
    """The module. Official builds tell Microsoft of their use from the first import on, unless the
    environment forbids it, as it does here if it says nothing of it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise BackendUnavailableError(
            "onnxruntime is not installed; 'pip install onnxruntime' (or onnxruntime-gpu)"
        ) from None
    return onnxruntime


@contextmanager
def _cache_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except (OSError, UserError) as error:
        raise ExportError(
            f"{folder.parent}: the optimised graph cannot be kept here ({_flat(error)}); "
            "name another folder with --cache, or none"
        ) from None


@contextmanager
def _failure_told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kind = MemoryShortError if _NO_MEMORY.search(str(error)) else ExportError
        raise kind(f"{what} failed: {_flat(error)}") from error


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
