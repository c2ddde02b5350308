"""Executes TensorRT and TensorRT-RTX engines: one class, since their runtime interface is one.

No engine has run on a GPU yet. The logic is tested with stand-ins for driver and library.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.backends import Arrays
from export.bound_engine import BoundEngine, Shapes, scratch_bytes
from export.cuda_memory import CudaMemory
from export.device_array import DeviceArray, device_array, is_device_array
from export.engine_checks import check_profile, check_tensors, find_engines, largest_batch
from export.engine_manifest import EngineSidecar
from export.manifest import BackendUnavailableError, ExportError, GraphFile
from export.specs import DDIM_UPDATE, GRAPHS, ComponentSpec
from export.trt_library import TrtLibrary, gpu_capability, make_logger

MOST_SHAPES = 4
"""Sets of shapes an engine is kept ready for; the least used goes first."""
SMALL_BYTES = 1024
MOST_SMALL = 256
"""Inputs up to this size (timesteps, camera, coefficients) stay on the GPU, this many of them."""
_SPECS = {**GRAPHS, DDIM_UPDATE.name: DDIM_UPDATE}


class EngineBackend:
    """All engines of one library on the first GPU; threads take turns.

    Engines, contexts, buffers and captured CUDA graphs stay for as long as the object: a second
    picture of a size allocates nothing. What :meth:`run_resident` gives stays on the GPU.
    """

    def __init__(
        self,
        library: TrtLibrary,
        engines: Path,
        graphs: Mapping[str, GraphFile],
        *,
        cuda_graphs: bool = True,
        weight_streaming_mib: float | None = None,
    ) -> None:
        """Load the engines that were built from ``graphs``.

        Args:
            cuda_graphs: capture what runs a second time at the same place; replay from then on.
            weight_streaming_mib: of each engine built for weight streaming, how much of its
                weights stays on the GPU; None: what the library holds for best.

        Raises:
            BackendUnavailableError: no driver, library or engines here, or the engines were
                built for another GPU or library version.
            ExportError: an engine is stale: built from another graph, or altered.
        """
        self.name = library.name
        self._trt = library.load_for_running()
        version, capability = self._trt.__version__, gpu_capability()
        self._sidecars = find_engines(library, engines, graphs, version, capability)
        self.max_batch: int | None = largest_batch(self._sidecars.values())
        self._messages: list[str] = []
        self._graphs, self._lock = cuda_graphs, threading.RLock()
        self._memory = CudaMemory()
        self._runtime = self._trt.Runtime(make_logger(self._trt, self._messages))
        self._engines: dict[str, Any] = {}
        self._bound: dict[str, OrderedDict[Any, BoundEngine]] = {}
        self._small: OrderedDict[Any, DeviceArray] = OrderedDict()
        try:
            for component, sidecar in self._sidecars.items():
                engine = self._load(component, engines / sidecar.file, sidecar)
                stream_weights(engine, weight_streaming_mib)
                self._engines[component] = engine
            size = max(scratch_bytes(engine) for engine in self._engines.values())
            self._scratch: DeviceArray | None = self._memory.empty((size,), "uint8")
        except BaseException:
            self.close()
            raise

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of one engine, float32; sizes outside its profiles are refused."""
        with self._lock:
            return self.to_host(self.run_resident(component, inputs))

    def run_resident(
        self,
        component: str,
        inputs: Mapping[str, Any],
        *,
        output: Any = None,
        stream: int = 0,
    ) -> DeviceArray:
        """Output of one engine, left on the GPU.

        Args:
            inputs: each a numpy array, or anything on the GPU (torch, CuPy, a
                :class:`DeviceArray`), which is read where it is, without a copy.
            output: where to write, on the GPU, float32 and of the right shape; None: new.
            stream: the caller's, on which arrays of other libraries are written and read. The
                engine starts after what is on it, what comes on it later starts after the engine.
                0 is the default stream, which is also torch's.

        Raises:
            ExportError: a size outside the engine's profiles, or an unfit array.
        """
        spec = _SPECS[component]
        with self._lock:
            self._memory.activate()
            given = {n: _at_home(inputs[n], f"{component}: {n}") for n in spec.inputs}
            target = None if output is None else device_array(output, f"{component}: output")
            foreign = {
                array.stream or stream
                for array in (*given.values(), target)
                if isinstance(array, DeviceArray) and array.stream != self._memory.stream
            }
            for theirs in foreign:
                self._memory.order(theirs, self._memory.stream)
            arrays = {name: self._on_device(spec, name, value) for name, value in given.items()}
            bound = self._ready(component, {name: a.shape for name, a in arrays.items()})
            if target is None:
                target = self._memory.empty(bound.output_shape)
            _check_array(component, "output", target, "float32", bound.output_shape)
            if not bound.run(arrays, target):
                raise self._failure(component, "failed to execute")
            for theirs in foreign:
                self._memory.order(self._memory.stream, theirs)
            return target

    def combine(
        self, latent: Any, velocity: Any, of_latent: float, of_velocity: float
    ) -> DeviceArray:
        """The sampler's arithmetic on the GPU, see :func:`export.numpy_sampler.combine`."""
        coefficients = np.array([of_latent, of_velocity], np.float32).reshape(2, 1, 1, 1)
        inputs = {"noisy_depth_latent": latent, "velocity": velocity, "coefficients": coefficients}
        return self.run_resident(DDIM_UPDATE.name, inputs)

    def to_host(self, value: Any) -> NDArray[np.float32]:
        """A value as an array, once all before it is done."""
        with self._lock:
            self._memory.activate()
            return self._memory.download(device_array(value))

    def close(self) -> None:
        """Hand back engines and memory; the object must not be used any more."""
        with self._lock:
            self._bound.clear()
            self._small.clear()
            self._engines.clear()
            self._scratch = None
            self._memory.close()

    def _load(self, component: str, path: Path, sidecar: EngineSidecar) -> Any:
        content = path.read_bytes()
        if "version_compatible" in sidecar.options:
            self._runtime.engine_host_code_allowed = True  # it carries a runtime of its own
        if hasattr(self._runtime, "get_engine_validity"):
            validity, reasons = self._runtime.get_engine_validity(content)
            if validity == self._trt.EngineValidity.INVALID:
                raise BackendUnavailableError(
                    f"{self.name}: engine {component} is not valid on this machine ({reasons})"
                )
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._failure(component, "cannot be loaded")
        check_tensors(component, engine, _SPECS[component])
        return engine

    def _ready(self, component: str, shapes: Shapes) -> BoundEngine:
        """The engine with a context for these shapes."""
        known = self._bound.setdefault(component, OrderedDict())
        assert self._scratch is not None, "closed"
        key = tuple(shapes.items())
        if key not in known:
            profile = check_profile(component, self._sidecars[component], shapes)
            if len(known) >= MOST_SHAPES:
                self._memory.synchronize()  # its context may still be at work
                known.popitem(last=False)
            known[key] = BoundEngine(
                self._trt,
                self._engines[component],
                _SPECS[component],
                self._memory,
                shapes,
                profile,
                self._scratch,
                self._graphs,
            )
        known.move_to_end(key)
        return known[key]

    def _on_device(
        self, spec: ComponentSpec, name: str, value: DeviceArray | NDArray[Any]
    ) -> DeviceArray:
        wanted = spec.inputs[name]
        if isinstance(value, DeviceArray):
            _check_array(spec.name, name, value, wanted.dtype, (None,) * len(wanted.axes))
            return value
        given = np.ascontiguousarray(value, wanted.dtype)
        if given.nbytes > SMALL_BYTES:
            return self._memory.upload(given)
        key = (given.shape, given.dtype.name, given.tobytes())
        if key not in self._small:
            self._small[key] = self._memory.upload(given)
        self._small.move_to_end(key)
        while len(self._small) > MOST_SMALL:
            self._small.popitem(last=False)
        return self._small[key]

    def _failure(self, component: str, what: str) -> ExportError:
        reason = self._messages[-1][:300] if self._messages else "no reason given"
        return BackendUnavailableError(f"{self.name}: engine {component} {what}: {reason}")


def stream_weights(engine: Any, mib: float | None) -> None:
    """How much of an engine's weights stays on the GPU; nothing to say of most engines."""
    most = int(getattr(engine, "streamable_weights_size", 0))
    if not most:
        return
    if mib is None:
        budget = int(engine.get_weight_streaming_automatic_budget())
    else:
        budget = min(most, int(mib * 2**20))
    newer = hasattr(engine, "weight_streaming_budget_v2")
    setattr(engine, "weight_streaming_budget_v2" if newer else "weight_streaming_budget", budget)


def _at_home(value: Any, name: str) -> DeviceArray | NDArray[Any]:
    """What lies on a GPU as such, all else as numpy's array."""
    return device_array(value, name) if is_device_array(value) else np.asarray(value)


def _check_array(
    component: str,
    name: str,
    array: DeviceArray,
    dtype: str,
    shape: tuple[int | None, ...],
) -> None:
    fits = len(shape) == len(array.shape) and all(
        n in (None, m) for n, m in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        asked = " x ".join("any" if n is None else str(n) for n in shape)
        raise ExportError(
            f"{component}: {name} must be {dtype} of {asked}, "
            f"got {array.dtype} of {' x '.join(map(str, array.shape))}"
        )
