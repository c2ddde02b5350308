"""GPU memory, a stream and CUDA graphs through the driver alone, so that engines need no torch.

None of this has run on a GPU yet; its tests run it against a stand-in for the driver that really
copies memory, puts work off until somebody waits, and refuses what the driver refuses.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.device_array import DeviceArray
from export.driver import load_driver
from export.manifest import BackendUnavailableError

_HANDLE = ctypes.c_void_p
_ADDRESS = ctypes.c_uint64
_SIGNATURES: dict[str, list[Any]] = {
    "cuDeviceGet": [ctypes.POINTER(ctypes.c_int), ctypes.c_int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(_HANDLE), ctypes.c_int],
    "cuDevicePrimaryCtxRelease_v2": [ctypes.c_int],
    "cuCtxSetCurrent": [_HANDLE],
    "cuStreamCreate": [ctypes.POINTER(_HANDLE), ctypes.c_uint],
    "cuStreamDestroy_v2": [_HANDLE],
    "cuStreamSynchronize": [_HANDLE],
    "cuStreamWaitEvent": [_HANDLE, _HANDLE, ctypes.c_uint],
    "cuEventCreate": [ctypes.POINTER(_HANDLE), ctypes.c_uint],
    "cuEventRecord": [_HANDLE, _HANDLE],
    "cuEventDestroy_v2": [_HANDLE],
    "cuMemAlloc_v2": [ctypes.POINTER(_ADDRESS), ctypes.c_size_t],
    "cuMemFree_v2": [_ADDRESS],
    "cuMemHostAlloc": [ctypes.POINTER(_HANDLE), ctypes.c_size_t, ctypes.c_uint],
    "cuMemFreeHost": [_HANDLE],
    "cuMemcpyHtoDAsync_v2": [_ADDRESS, _HANDLE, ctypes.c_size_t, _HANDLE],
    "cuMemcpyDtoHAsync_v2": [_HANDLE, _ADDRESS, ctypes.c_size_t, _HANDLE],
    "cuStreamBeginCapture_v2": [_HANDLE, ctypes.c_int],
    "cuStreamEndCapture": [_HANDLE, ctypes.POINTER(_HANDLE)],
    "cuGraphInstantiateWithFlags": [ctypes.POINTER(_HANDLE), _HANDLE, ctypes.c_ulonglong],
    "cuGraphLaunch": [_HANDLE, _HANDLE],
    "cuGraphExecDestroy": [_HANDLE],
    "cuGraphDestroy": [_HANDLE],
}
_NON_BLOCKING_STREAM = 1
_EVENT_WITHOUT_TIMES = 2
_CAPTURE_THIS_THREAD_ONLY = 1
KEPT_BYTES = 512 * 2**20
"""Free buffers are given back to the driver beyond this much."""
MOST_IN_FLIGHT = 64
"""Uploads nobody has waited for, whose pinned memory is therefore not free yet."""


class CudaError(BackendUnavailableError):
    """A call of the driver failed; says which and with what code."""


class CudaMemory:
    """Buffers on the first GPU, used again and again, and the one stream all work runs on.

    Uses the device's primary context, the one TensorRT and torch use. A buffer goes back for
    the next of its size when nothing refers to it any more: work on one stream runs in order,
    so what still reads it comes before whatever writes it next.
    """

    def __init__(self) -> None:
        driver = load_driver()
        if isinstance(driver, str):
            raise BackendUnavailableError(driver)
        self._driver = driver
        for name, arguments in _SIGNATURES.items():
            getattr(driver, name).argtypes = arguments
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device
        self._context = self._handle("cuDevicePrimaryCtxRetain", device)
        self._call("cuCtxSetCurrent", self._context)
        self._stream = self._handle("cuStreamCreate", flags=_NON_BLOCKING_STREAM)
        self._event = self._handle("cuEventCreate", flags=_EVENT_WITHOUT_TIMES)
        self._free: dict[int, list[int]] = {}
        self._free_pinned: dict[int, list[int]] = {}
        self._in_flight: list[tuple[int, int]] = []
        self._closed = False

    @property
    def stream(self) -> int:
        """Handle of the stream that copies and engines run on."""
        return int(self._stream.value or 0)

    def activate(self) -> None:
        """Make the context current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> DeviceArray:
        """An array with whatever was there before."""
        size = max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        kept = self._free.get(size)
        address = kept.pop() if kept else self._allocate(size)
        lease = _Lease()
        weakref.finalize(lease, self._give_back, size, address).atexit = False
        return DeviceArray(address, shape, dtype, owner=lease, stream=self.stream)

    def upload(self, array: NDArray[Any]) -> DeviceArray:
        """A copy on the GPU, by way of pinned memory; the caller may change ``array`` at once."""
        array = np.ascontiguousarray(array)
        target = self.empty(array.shape, array.dtype.name)
        if array.nbytes:
            pinned = self._pinned(array.nbytes)
            ctypes.memmove(pinned, array.ctypes.data, array.nbytes)
            self._in_flight.append((array.nbytes, pinned))
            self._call("cuMemcpyHtoDAsync_v2", target.address, pinned, array.nbytes, self._stream)
        if len(self._in_flight) > MOST_IN_FLIGHT:
            self.synchronize()
        return target

    def download(self, source: DeviceArray) -> NDArray[Any]:
        """A copy in the host's memory, once everything before it on the stream is done."""
        array = np.empty(source.shape, source.dtype)
        pinned = self._pinned(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", pinned, source.address, array.nbytes, self._stream)
        self.synchronize()
        ctypes.memmove(array.ctypes.data, pinned, array.nbytes)
        self._free_pinned.setdefault(array.nbytes, []).append(pinned)
        self._trim()
        return array

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", self._stream)
        for size, pinned in self._in_flight:
            self._free_pinned.setdefault(size, []).append(pinned)
        self._in_flight.clear()

    def order(self, first: int, then: int) -> None:
        """What is put on stream ``then`` from now on waits for all there is on ``first``."""
        if first != then:
            self._call("cuEventRecord", self._event, first)
            self._call("cuStreamWaitEvent", then, self._event, 0)

    def capture(self, enqueue: Callable[[], bool]) -> CudaGraph | None:
        """What ``enqueue`` puts on the stream, as a graph, without running it; None if it fails."""
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THIS_THREAD_ONLY)
        graph = _HANDLE()
        enqueued = False
        try:
            enqueued = enqueue()
        finally:
            code = self._driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if code == 0 and enqueued and graph.value:
            runnable = _HANDLE()
            code = self._driver.cuGraphInstantiateWithFlags(ctypes.byref(runnable), graph, 0)
            self._call("cuGraphDestroy", graph)
            return CudaGraph(self, runnable) if code == 0 else None
        if graph.value:
            self._call("cuGraphDestroy", graph)
        return None

    def close(self) -> None:
        """Give everything back to the driver; arrays that are left must not be used any more."""
        if self._closed:
            return
        self.activate()
        self.synchronize()
        self._closed = True
        self._release()
        for kept in self._free_pinned.values():
            for pinned in kept:
                self._call("cuMemFreeHost", pinned)
        self._free_pinned.clear()
        self._call("cuEventDestroy_v2", self._event)
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _pinned(self, size: int) -> int:
        kept = self._free_pinned.get(size)
        if kept:
            return kept.pop()
        pointer = _HANDLE()
        self._call("cuMemHostAlloc", ctypes.byref(pointer), size, 0)
        return int(pointer.value or 0)

    def _allocate(self, size: int) -> int:
        pointer = _ADDRESS()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), size)
        return int(pointer.value)

    def _give_back(self, size: int, address: int) -> None:
        if self._closed:
            self._driver.cuMemFree_v2(address)
        else:
            self._free.setdefault(size, []).append(address)

    def _trim(self) -> None:
        """Pictures of many sizes leave buffers of many sizes; the stream is idle here."""
        kept = sum(size * len(addresses) for size, addresses in self._free.items())
        if kept > KEPT_BYTES:
            self._release()
        pinned = sum(size * len(addresses) for size, addresses in self._free_pinned.items())
        if pinned > KEPT_BYTES:
            for addresses in self._free_pinned.values():
                while addresses:
                    self._call("cuMemFreeHost", addresses.pop())

    def _release(self) -> None:
        for addresses in self._free.values():
            while addresses:
                self._call("cuMemFree_v2", addresses.pop())

    def _handle(self, function: str, *arguments: Any, flags: int | None = None) -> ctypes.c_void_p:
        handle = _HANDLE()
        given = arguments if flags is None else (*arguments, flags)
        self._call(function, ctypes.byref(handle), *given)
        return handle

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            raise CudaError(f"CUDA driver call {function} failed with code {code}")


class CudaGraph:
    """Captured work, run again by one call; destroyed when nothing refers to it."""

    def __init__(self, memory: CudaMemory, runnable: ctypes.c_void_p) -> None:
        self._memory, self._runnable = memory, runnable
        destroy = memory._driver.cuGraphExecDestroy
        weakref.finalize(self, destroy, runnable).atexit = False

    def launch(self, stream: int) -> None:
        """Run it on a stream."""
        self._memory._call("cuGraphLaunch", self._runnable, stream)


class _Lease:
    """Lives as long as a buffer is in use."""
