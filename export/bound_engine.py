"""One engine made ready for one set of input shapes: enqueued, then captured, then replayed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from export.cuda_memory import CudaGraph, CudaMemory
from export.device_array import DeviceArray
from export.manifest import ExportError, ShapeError
from export.specs import ComponentSpec

MOST_GRAPHS = 8
"""Captured graphs an engine keeps for one set of shapes; the least used goes first."""

Shapes = Mapping[str, tuple[int, ...]]


class BoundEngine:
    """An execution context whose shapes never change.

    A CUDA graph holds addresses, so it is kept by the addresses it was captured with and replayed
    for exactly these. Where they come from the same pool in the same order, picture after picture,
    they are the same. The first time a set of addresses is met it is enqueued, which also lets
    TensorRT finish what it puts off until then; the second time it is captured.

    Args:
        profile: index of the optimization profile; None for an engine without profiles.
        scratch: activations' memory, shared by all contexts that run on one stream.
        graphs: whether to capture at all.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        spec: ComponentSpec,
        memory: CudaMemory,
        shapes: Shapes,
        profile: int | None,
        scratch: DeviceArray,
        graphs: bool,
    ) -> None:
        self._spec, self._memory, self._capturing = spec, memory, graphs
        self._context, self._engine, self._scratch = make_context(trt, engine), engine, scratch
        give_scratch(self._context, scratch)
        # Said even for the first: only an engine's first context has it without being told.
        if not self._context.set_optimization_profile_async(profile or 0, memory.stream):
            raise ExportError(f"{spec.name}: the engine has no profile {profile}")
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise ShapeError(
                    f"{spec.name}: {name} of shape {list(shape)} is none the engine takes; "
                    "choose another --processing-resolution or --backend"
                )
        self.output_shape = tuple(int(n) for n in self._context.get_tensor_shape(spec.output_name))
        if hasattr(self._context, "is_stream_capturable") and graphs:
            self._capturing = bool(self._context.is_stream_capturable(memory.stream))
        self._met: OrderedDict[tuple[int, ...], CudaGraph | None] = OrderedDict()

    def run(self, inputs: Mapping[str, DeviceArray], output: DeviceArray) -> bool:
        """Put the engine on the stream, reading and writing exactly there; False if it fails."""
        addresses = (*(inputs[name].address for name in self._spec.inputs), output.address)
        graph = self._met.get(addresses)
        if graph is None and self._capturing and addresses in self._met:
            graph = self._capture(addresses)
        self._met[addresses] = graph
        self._met.move_to_end(addresses)
        while len(self._met) > MOST_GRAPHS:
            self._met.popitem(last=False)
        if graph is not None:
            graph.launch(self._memory.stream)
            return True
        return self._enqueue(addresses)

    def _capture(self, addresses: Sequence[int]) -> CudaGraph | None:
        graph = self._memory.capture(lambda: self._enqueue(addresses))
        if graph is None:  # some engines cannot be captured; they run without
            self._capturing = False
        return graph

    def _enqueue(self, addresses: Sequence[int]) -> bool:
        names = (*self._spec.inputs, self._spec.output_name)
        for name, address in zip(names, addresses, strict=True):
            if not self._context.set_tensor_address(name, address):
                return False
        return bool(self._context.execute_async_v3(self._memory.stream))


def make_context(trt: Any, engine: Any) -> Any:
    """A context that works in memory it is given, and compiles for its shapes at once."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # TensorRT-RTX else compiles in the background, and a graph would keep the slow kernels.
    specialization = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if specialization is not None:
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
    return engine.create_execution_context(config)


def scratch_bytes(engine: Any) -> int:
    """What any context of an engine needs for activations, whatever its profile."""
    newer = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if newer is None else newer)


def give_scratch(context: Any, scratch: DeviceArray) -> None:
    """Tell a context where its activations go."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(scratch.address, scratch.nbytes)
    else:
        context.device_memory = scratch.address
