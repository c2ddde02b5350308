"""GPU memory and a stream through the driver library alone, so that engines need no torch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.driver import load_driver
from export.manifest import BackendUnavailableError

_POINTER = ctypes.c_uint64
_SIGNATURES: dict[str, list[Any]] = {
    "cuDeviceGet": [ctypes.POINTER(ctypes.c_int), ctypes.c_int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int],
    "cuCtxSetCurrent": [ctypes.c_void_p],
    "cuStreamCreate": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint],
    "cuStreamSynchronize": [ctypes.c_void_p],
    "cuMemAlloc_v2": [ctypes.POINTER(_POINTER), ctypes.c_size_t],
    "cuMemFree_v2": [_POINTER],
    "cuMemcpyHtoDAsync_v2": [_POINTER, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p],
    "cuMemcpyDtoHAsync_v2": [ctypes.c_void_p, _POINTER, ctypes.c_size_t, ctypes.c_void_p],
}


class CudaMemory:
    """Named buffers on the first GPU, grown when needed, and one stream.

    Uses the device's primary context, the one TensorRT itself uses.
    """

    def __init__(self) -> None:
        driver = load_driver()
        if isinstance(driver, str):
            raise BackendUnavailableError(driver)
        self._driver = driver
        for name, arguments in _SIGNATURES.items():
            getattr(driver, name).argtypes = arguments
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self._stream = stream
        self._buffers: dict[str, tuple[int, int]] = {}

    @property
    def stream(self) -> int:
        """Handle of the stream all copies run on."""
        return int(self._stream.value or 0)

    def activate(self) -> None:
        """Make the context current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def buffer(self, name: str, size: int) -> int:
        """Device address of the buffer ``name`` with at least ``size`` bytes."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity < size:
            if address:
                del self._buffers[name]
                self._call("cuMemFree_v2", address)
            pointer = _POINTER()
            self._call("cuMemAlloc_v2", ctypes.byref(pointer), size)
            address = int(pointer.value)
            self._buffers[name] = (address, size)
        return address

    def upload(self, name: str, array: NDArray[Any]) -> int:
        """Copy a contiguous array to the buffer ``name``; returns its device address."""
        address = self.buffer(name, array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self._stream)
        return address

    def download(self, address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """float32 array of ``shape`` from a device address, after the stream has finished."""
        array = np.empty(shape, np.float32)
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._stream)
        self._call("cuStreamSynchronize", self._stream)
        return array

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            raise BackendUnavailableError(f"CUDA driver call {function} failed with code {code}")
