"""Executes TensorRT and TensorRT-RTX engines: one class, since their runtime interface is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.backends import Arrays
from export.cuda_memory import CudaMemory
from export.engine_manifest import ENGINE_HINT, EngineFile, LibraryBuild, read_engine_manifest
from export.manifest import BackendUnavailableError, ExportError, GraphFile, verify_files
from export.specs import GRAPHS
from export.trt_library import TrtLibrary, gpu_capability, make_logger


class EngineBackend:
    """All engines of one library on the first GPU."""

    def __init__(self, library: TrtLibrary, engines: Path, graphs: Mapping[str, GraphFile]) -> None:
        """Load the engines that were built from ``graphs``.

        Raises:
            BackendUnavailableError: no driver, library or engines here, or the engines were
                built for another GPU or library version.
            ExportError: an engine is stale: built from another graph, or altered.
        """
        self.name = library.name
        trt = library.load_for_running()
        build = find_build(library, engines, graphs, trt.__version__, gpu_capability())
        self._messages: list[str] = []
        self._memory = CudaMemory()
        self._runtime = trt.Runtime(make_logger(trt, self._messages))
        self._files = {name: build.engines[name] for name in graphs}
        self._engines: dict[str, Any] = {}
        self._contexts: dict[str, Any] = {}
        for component, file in self._files.items():
            engine = self._runtime.deserialize_cuda_engine((engines / file.file).read_bytes())
            if engine is None:
                raise self._failure(component, "cannot be loaded")
            self._engines[component] = engine
            self._contexts[component] = engine.create_execution_context()

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of one engine, float32; sizes outside its profile are refused."""
        check_profile(component, self._files[component], inputs)
        memory, context = self._memory, self._contexts[component]
        memory.activate()
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            context.set_input_shape(name, array.shape)
            address = memory.upload(f"{component}/{name}", array)
            context.set_tensor_address(name, address)
        output = GRAPHS[component].output_name
        shape = tuple(int(n) for n in context.get_tensor_shape(output))
        address = memory.buffer(f"{component}/{output}", 4 * int(np.prod(shape)))
        context.set_tensor_address(output, address)
        if not context.execute_async_v3(memory.stream):
            raise self._failure(component, "failed to execute")
        return memory.download(address, shape)

    def _failure(self, component: str, what: str) -> ExportError:
        reason = self._messages[-1][:300] if self._messages else "no reason given"
        return BackendUnavailableError(f"{self.name}: engine {component} {what}: {reason}")


def find_build(
    library: TrtLibrary,
    engines: Path,
    graphs: Mapping[str, GraphFile],
    version: str,
    capability: str,
) -> LibraryBuild:
    """The build of ``library`` in an engines folder, checked against graphs, library and GPU.

    Args:
        version: of the library that will run the engines.
        capability: compute capability of the GPU, such as ``8.9``.

    Raises:
        BackendUnavailableError: nothing was built, or for another library version or GPU.
        ExportError: an engine does not belong to ``graphs`` or its file was altered.
    """
    manifest = read_engine_manifest(engines)
    build = manifest.builds.get(library.name)
    if build is None:
        reason = manifest.not_built.get(library.name, "it was not asked for")
        raise BackendUnavailableError(
            f"{library.name}: no engines in {engines} ({reason}); {ENGINE_HINT}"
        )
    if build.library_version != version:
        raise BackendUnavailableError(
            f"{library.name}: engines in {engines} were built with version "
            f"{build.library_version}, installed is {version}; {ENGINE_HINT}"
        )
    if capability not in build.compute_capabilities:
        raise BackendUnavailableError(
            f"{library.name}: engines in {engines} are for compute capability "
            f"{', '.join(build.compute_capabilities)}, this GPU has {capability}; {ENGINE_HINT}"
        )
    for component, graph in graphs.items():
        engine = build.engines.get(component)
        if engine is None or engine.onnx_sha256 != graph.onnx_sha256:
            raise ExportError(
                f"{library.name}: the engine of {component} was built from another "
                f"{graph.onnx_file}; {ENGINE_HINT}"
            )
    files = [build.engines[component] for component in graphs]
    verify_files(engines, {file.file: file.sha256 for file in files}, ENGINE_HINT)
    return build


def check_profile(component: str, file: EngineFile, inputs: Arrays) -> None:
    """Refuse shapes the engine was not built for.

    Raises:
        ExportError: names the component, the shape and the accepted range.
    """
    for name, limits in file.profile.items():
        shape = inputs[name].shape
        low, high = limits["min"], limits["max"]
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            raise ExportError(
                f"{component}: {name} of shape {list(shape)} lies outside the engine's range "
                f"{low} to {high}; choose another --processing-resolution or --backend, or "
                "rebuild with another export.engine_size"
            )
