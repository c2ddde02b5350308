"""Stand-ins for NVIDIA's driver and for TensorRT that do on the CPU what those do on a GPU.

The driver's functions are real ctypes functions with the types of ``cuda.h``, so that addresses,
sizes and pointers go through the same conversions. Work is put off until somebody waits for it,
as a GPU may: a host buffer that is changed too early, or read too early, holds the wrong thing.
Every address is looked up; memory that was freed or never written gives an error or NaN.
While a stream is captured nothing runs, and what the driver forbids meanwhile is refused.

Engines run their ONNX graph by ONNX Runtime. Contexts insist on what TensorRT insists on: shapes
inside a profile that was chosen, memory for activations, addresses, a run before a capture.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

OK, INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 0, 1, 2, 700
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901
POISON = 0xFF  # as float32: NaN

_POINTER, _ADDRESS, _SIZE = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
_INT, _UINT, _ULL = ctypes.c_int, ctypes.c_uint, ctypes.c_ulonglong
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuDeviceGet": (_POINTER, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_POINTER,),
    "cuStreamCreate": (_POINTER, _UINT),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamWaitEvent": (_POINTER, _POINTER, _UINT),
    "cuEventCreate": (_POINTER, _UINT),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventDestroy_v2": (_POINTER,),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_POINTER, _SIZE, _UINT),
    "cuMemFreeHost": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _POINTER),
    "cuStreamBeginCapture_v2": (_POINTER, _INT),
    "cuStreamEndCapture": (_POINTER, _POINTER),
    "cuGraphInstantiateWithFlags": (_POINTER, _POINTER, _ULL),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGraphDestroy": (_POINTER,),
}
"""Of cuda.h: output pointers and handles, device addresses, sizes and flags."""


class FakeError(AssertionError):
    """The program under test did what no GPU would forgive."""


@dataclass
class Work:
    """One thing on a stream: what it is, and what happens when it is its turn."""

    name: str
    run: Callable[[], None]


@dataclass
class Stream:
    """Work that waits, in order. ``captured`` is a list while the stream is captured."""

    waiting: list[Work] = field(default_factory=list)
    done: int = 0
    captured: list[Work] | None = None
    invalid: bool = False


class FakeDriver:
    """``libcuda`` on the host's memory.

    Attributes:
        trace: names of all work that has been done, in its order.
        calls: how often each function was called.
        memory, pinned: blocks by address.
    """

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.calls: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {0: Stream()}
        self.events: dict[int, tuple[int, int]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.runnable: dict[int, list[Work]] = {}
        self.problems: list[str] = []
        self._next = 1000
        for name, types in FUNCTIONS.items():
            setattr(self, name, ctypes.CFUNCTYPE(_INT, *types)(self._guarded(name)))

    def _guarded(self, name: str) -> Callable[..., int]:
        function = getattr(self, "_" + name)

        def call(*arguments: Any) -> int:
            self.calls[name] = self.calls.get(name, 0) + 1
            try:
                return int(function(*(0 if a is None else a for a in arguments)) or OK)
            except FakeError as error:  # ctypes would swallow it
                self.problems.append(f"{name}: {error}")
                return ILLEGAL_ADDRESS

        return call

    # what the stand-in for TensorRT needs

    def submit(self, stream: int, work: Work) -> bool:
        """Put work on a stream, or into its graph."""
        target = self.streams[stream]
        if target.captured is not None:
            target.captured.append(work)
        else:
            target.waiting.append(work)
        return True

    def capturing(self, stream: int) -> bool:
        return self.streams[stream].captured is not None

    def spoil_capture(self, stream: int) -> None:
        self.streams[stream].invalid = True

    def read(self, address: int, dtype: str, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._hold(self.memory, address, size)
        return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)

    def write(self, address: int, array: Any) -> None:
        content = np.ascontiguousarray(array)
        self._hold(self.memory, address, content.nbytes)
        ctypes.memmove(address, content.ctypes.data, content.nbytes)

    def finish(self, stream: int, upto: int | None = None) -> None:
        """Do what waits on a stream."""
        target = self.streams[stream]
        while target.waiting and (upto is None or target.done < upto):
            work = target.waiting.pop(0)
            target.done += 1
            work.run()
            self.trace.append(work.name)

    def device_bytes(self) -> int:
        return sum(len(block) for block in self.memory.values())

    def _hold(self, blocks: Mapping[int, Any], address: int, size: int) -> None:
        for start, block in blocks.items():
            if start <= address and address + size <= start + len(block):
                return
        raise FakeError(f"{size} bytes at {address:#x} are no memory that is there")

    def _any_capture(self) -> bool:
        return any(s.captured is not None for s in self.streams.values())

    def _handle(self, out: int) -> int:
        self._next += 1
        ctypes.c_uint64.from_address(out).value = self._next
        return self._next

    # the driver's own functions

    def _cuDeviceGet(self, out: int, ordinal: int) -> None:
        ctypes.c_int.from_address(out).value = ordinal

    def _cuDevicePrimaryCtxRetain(self, out: int, device: int) -> None:
        self._handle(out)

    def _cuDevicePrimaryCtxRelease_v2(self, device: int) -> None: ...

    def _cuCtxSetCurrent(self, context: int) -> None: ...

    def _cuStreamCreate(self, out: int, flags: int) -> None:
        self.streams[self._handle(out)] = Stream()

    def _cuStreamDestroy_v2(self, stream: int) -> None:
        self.finish(stream)
        del self.streams[stream]

    def _cuStreamSynchronize(self, stream: int) -> int:
        if self._any_capture():
            self.streams[stream].invalid = True
            return CAPTURE_UNSUPPORTED
        self.finish(stream)
        return OK

    def _cuEventCreate(self, out: int, flags: int) -> None:
        self.events[self._handle(out)] = (0, 0)

    def _cuEventDestroy_v2(self, event: int) -> None:
        del self.events[event]

    def _cuEventRecord(self, event: int, stream: int) -> None:
        target = self.streams[stream]
        self.events[event] = (stream, target.done + len(target.waiting))

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        other, upto = self.events[event]
        self.submit(stream, Work("wait", lambda: self.finish(other, upto)))

    def _cuMemAlloc_v2(self, out: int, size: int) -> int:
        if self._any_capture():
            return CAPTURE_UNSUPPORTED
        self._new_block(self.memory, out, size)
        return OK

    def _cuMemHostAlloc(self, out: int, size: int, flags: int) -> int:
        if self._any_capture():
            return CAPTURE_UNSUPPORTED
        self._new_block(self.pinned, out, size)
        return OK

    def _new_block(self, blocks: dict[int, Any], out: int, size: int) -> None:
        assert size > 0
        block = (ctypes.c_ubyte * size)()
        ctypes.memset(block, POISON, size)
        blocks[ctypes.addressof(block)] = block
        ctypes.c_uint64.from_address(out).value = ctypes.addressof(block)

    def _cuMemFree_v2(self, address: int) -> int:
        return self._free(self.memory, address)

    def _cuMemFreeHost(self, address: int) -> int:
        return self._free(self.pinned, address)

    def _free(self, blocks: dict[int, Any], address: int) -> int:
        if self._any_capture():
            return CAPTURE_UNSUPPORTED
        for stream in self.streams:  # freeing waits for the device
            self.finish(stream)
        return OK if blocks.pop(address, None) is not None else INVALID_VALUE

    def _cuMemcpyHtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:
        self._hold(self.pinned, source, size)  # pageable memory would make the host wait

        def copy() -> None:
            self._hold(self.memory, target, size)
            self._hold(self.pinned, source, size)
            ctypes.memmove(target, source, size)

        self.submit(stream, Work(f"upload {size}", copy))

    def _cuMemcpyDtoHAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:
        self._hold(self.pinned, target, size)

        def copy() -> None:
            self._hold(self.memory, source, size)
            self._hold(self.pinned, target, size)
            ctypes.memmove(target, source, size)

        self.submit(stream, Work(f"download {size}", copy))

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        if stream == 0 or self.streams[stream].captured is not None:
            return CAPTURE_UNSUPPORTED
        self.streams[stream].captured, self.streams[stream].invalid = [], False
        return OK

    def _cuStreamEndCapture(self, stream: int, out: int) -> int:
        target = self.streams[stream]
        work, target.captured = target.captured, None
        if work is None:
            return INVALID_VALUE
        if target.invalid:
            ctypes.c_uint64.from_address(out).value = 0
            return CAPTURE_INVALIDATED
        self.graphs[self._handle(out)] = work
        return OK

    def _cuGraphInstantiateWithFlags(self, out: int, graph: int, flags: int) -> None:
        self.runnable[self._handle(out)] = list(self.graphs[graph])

    def _cuGraphLaunch(self, runnable: int, stream: int) -> None:
        for work in self.runnable[runnable]:
            self.submit(stream, Work(f"replayed {work.name}", work.run))

    def _cuGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def _cuGraphExecDestroy(self, runnable: int) -> None:
        del self.runnable[runnable]


class ForeignArray:
    """An array of another library on the GPU, such as torch's, written on the default stream."""

    def __init__(self, driver: FakeDriver, array: Any) -> None:
        out = ctypes.c_uint64()
        assert driver.cuMemAlloc_v2(ctypes.byref(out), max(1, array.nbytes)) == OK
        self.driver, self.address = driver, out.value
        self.shape, self.dtype = array.shape, array.dtype
        content = array.copy()
        driver.submit(0, Work("foreign write", lambda: driver.write(self.address, content)))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "data": (self.address, False),
            "shape": self.shape,
            "typestr": self.dtype.str,
            "version": 2,
        }

    def numpy(self) -> Any:
        """What is there once the default stream has got so far."""
        self.driver.finish(0)
        return self.driver.read(self.address, self.dtype.name, self.shape)


@dataclass(frozen=True)
class Flavour:
    """In what the libraries' runtimes differ.

    Attributes:
        old_names: ``device_memory_size`` and ``device_memory`` (TensorRT up to 10.0) in place of
            ``device_memory_size_v2`` and ``set_device_memory``.
        runtime_config: contexts are created from a runtime configuration.
        rtx: ``is_stream_capturable``, ``get_engine_validity`` and kernels' specialization.
    """

    old_names: bool = False
    runtime_config: bool = False
    rtx: bool = False


TENSORRT_10 = Flavour(old_names=True)
TENSORRT_11 = Flavour(runtime_config=True)
RTX = Flavour(runtime_config=True, rtx=True)
SCRATCH_BYTES = 4096


def engine_bytes(path: str, tensors: dict[str, str], **more: Any) -> bytes:
    """What stands for a serialized engine.

    Args:
        path: of the ONNX graph; empty for the sampler's update.
        tensors: names and element types, the output last.
        more: ``profiles``, ``capturable``, ``streamable``, ``valid``, ``fails``.
    """
    return json.dumps({"path": path, "tensors": tensors, **more}).encode()


class FakeEngine:
    """What ``deserialize_cuda_engine`` gives."""

    def __init__(self, driver: FakeDriver, flavour: Flavour, content: dict[str, Any]) -> None:
        self.driver, self.flavour, self.content = driver, flavour, content
        self.tensors: dict[str, str] = content["tensors"]
        self.num_io_tensors = len(self.tensors)
        self.streamable_weights_size = content.get("streamable", 0)
        self.contexts = 0
        if flavour.old_names:
            self.device_memory_size = SCRATCH_BYTES
            self.weight_streaming_budget = 0
        else:
            self.device_memory_size_v2 = SCRATCH_BYTES
            self.weight_streaming_budget_v2 = 0
        if flavour.runtime_config:
            self.create_runtime_config = self._runtime_config
        self.compute = self._update
        if content["path"]:
            import onnxruntime

            session = onnxruntime.InferenceSession(
                content["path"], providers=["CPUExecutionProvider"]
            )
            self.compute = lambda arrays: session.run(None, arrays)[0]

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.streamable_weights_size // 2

    def create_execution_context(self, how: Any) -> FakeContext:
        strategy = how.strategy if self.flavour.runtime_config else how
        assert strategy == "USER_MANAGED"
        if self.flavour.rtx:
            assert how.dynamic_shapes_kernel_specialization_strategy == "EAGER"
        self.contexts += 1
        return FakeContext(self)

    def _runtime_config(self) -> Any:
        config = SimpleNamespace()
        config.set_execution_context_allocation_strategy = lambda s: setattr(config, "strategy", s)
        return config

    @staticmethod
    def _update(arrays: dict[str, Any]) -> Any:
        keep, add = arrays["coefficients"].reshape(2)
        return keep * arrays["noisy_depth_latent"] + add * arrays["velocity"]


class FakeContext:
    """An execution context; ``engine.content`` says what it can."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.driver = engine, engine.driver
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: int | None = None
        self.scratch: tuple[int, int] | None = None
        self.settled = False
        self._state = 0
        if engine.flavour.old_names:
            self.device_memory = 0
        else:
            self.set_device_memory = self._set_device_memory
        if engine.flavour.rtx:
            self.is_stream_capturable = lambda stream: engine.content.get("capturable", True)

    def _set_device_memory(self, address: int, size: int) -> None:
        assert size >= SCRATCH_BYTES
        self.scratch = address, size

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert not self.driver.capturing(stream)
        self.profile = index
        return index < max(1, len(self.engine.content.get("profiles", [])))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "no profile was chosen"
        profiles = self.engine.content.get("profiles", [])
        if profiles:
            limits = profiles[self.profile][name]
            low, high = limits["min"], limits["max"]
            if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                return False
        self.shapes[name] = tuple(shape)
        self._state += 1  # graphs captured before are void
        self.settled = False
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and address != 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        zeros = {
            n: np.zeros(self.shapes[n], dtype)
            for n, dtype in list(self.engine.tensors.items())[:-1]
        }
        return self.engine.compute(zeros).shape

    def execute_async_v3(self, stream: int) -> bool:
        name = self.engine.content.get("name", "engine")
        if self.engine.content.get("fails"):
            return False
        if self.driver.capturing(stream):
            if not self.settled:
                raise FakeError("captured before TensorRT has run once with these shapes")
            if not self.engine.content.get("capturable", True):
                self.driver.spoil_capture(stream)
                return False
        self.settled = True
        addresses, shapes, state = dict(self.addresses), dict(self.shapes), self._state
        scratch = self._scratch()

        def run() -> None:
            if state != self._state:
                raise FakeError(f"{name}: replayed after its context got other shapes")
            self.driver.write(scratch[0], np.full(scratch[1], POISON, np.uint8))
            *inputs, output = self.engine.tensors
            arrays = {
                n: self.driver.read(addresses[n], self.engine.tensors[n], shapes[n]) for n in inputs
            }
            self.driver.write(addresses[output], self.engine.compute(arrays))

        return self.driver.submit(stream, Work(name, run))

    def _scratch(self) -> tuple[int, int]:
        if self.engine.flavour.old_names:
            self.scratch = self.device_memory, SCRATCH_BYTES
        assert self.scratch is not None, "no memory for activations"
        self.driver._hold(self.driver.memory, *self.scratch)
        return self.scratch


def fake_library(driver: FakeDriver, flavour: Flavour, version: str = "1.0") -> SimpleNamespace:
    """A module that passes for ``tensorrt`` or ``tensorrt_rtx`` when engines are run."""

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if flavour.rtx:
                self.get_engine_validity = self._validity

        def _validity(self, content: bytes) -> tuple[str, list[str]]:
            if json.loads(content).get("valid", True):
                return "VALID", []
            return "INVALID", ["UNSUPPORTED_CC"]

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            try:
                engine = FakeEngine(driver, flavour, json.loads(content))
            except (ValueError, KeyError):
                self.logger.log(1, "the plan is damaged")
                return None
            module.engines.append(engine)
            return engine

    module = SimpleNamespace(
        ILogger=ILogger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        __version__=version,
        engines=[],
    )
    if flavour.rtx:
        module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")
        module.EngineValidity = SimpleNamespace(INVALID="INVALID")
    return module
