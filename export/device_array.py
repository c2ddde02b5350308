"""Arrays in a GPU's memory, whoever owns them: torch, CuPy, an engine, or a bare address.

Nothing is copied and no other library is imported: an object says where its memory is by
``__cuda_array_interface__`` (version 2 or 3) or by DLPack.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.manifest import ExportError

_CUDA_DEVICES = (2, 13)
"""DLPack's ``kDLCUDA`` and ``kDLCUDAManaged``."""
_CODES = {0: "i", 1: "u", 2: "f"}
"""DLPack's type codes to numpy's kinds."""


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in the first GPU's memory.

    Attributes:
        address: of its first byte.
        shape: its lengths.
        dtype: numpy's name, such as ``float32``.
        owner: kept so that the memory stays while this object lives.
        stream: handle of the stream on which it is written; 0 when whoever made it has waited.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    owner: Any = field(default=None, repr=False, compare=False)
    stream: int = field(default=0, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Lets torch (``torch.as_tensor``) and CuPy use the memory as it is."""
        return {
            "data": (self.address, False),
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "strides": None,
            "stream": self.stream or None,
            "version": 3,
        }


def is_device_array(value: Any) -> bool:
    """Whether a value says where on a GPU it is; False for numpy's arrays."""
    if isinstance(value, np.ndarray):
        return False
    return isinstance(value, DeviceArray) or (
        hasattr(value, "__cuda_array_interface__") or hasattr(value, "__dlpack__")
    )


def device_array(value: Any, name: str = "array") -> DeviceArray:
    """The memory of an object on the GPU; the object is kept as its owner.

    Raises:
        ExportError: it is not on a GPU, or not contiguous; ``name`` says which.
    """
    if isinstance(value, DeviceArray):
        return value
    try:
        interface = getattr(value, "__cuda_array_interface__", None)
    except Exception as error:  # torch: a tensor that is on the CPU or wants a gradient
        raise ExportError(f"{name}: not usable on a GPU ({' '.join(str(error).split())})") from None
    if interface is not None:
        return _from_interface(value, interface, name)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value, name)
    raise ExportError(f"{name}: neither __cuda_array_interface__ nor DLPack on {type(value)}")


def _from_interface(value: Any, interface: dict[str, Any], name: str) -> DeviceArray:
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    _require_contiguous(name, shape, interface.get("strides"), dtype.itemsize)
    return DeviceArray(
        address=int(interface["data"][0]),
        shape=shape,
        dtype=dtype.name,
        owner=value,
        stream=int(interface.get("stream") or 0),
    )


class _DLTensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h; the head of a ``DLManagedTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(value: Any, name: str) -> DeviceArray:
    device, _ = value.__dlpack_device__()
    if int(device) not in _CUDA_DEVICES:
        raise ExportError(f"{name}: lies in no GPU's memory (DLPack device {int(device)})")
    capsule = value.__dlpack__()
    tensor = dl_tensor(capsule)
    itemsize = tensor.bits // 8
    if tensor.code not in _CODES or tensor.lanes != 1:
        raise ExportError(f"{name}: has an element type that engines do not take")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[i] * itemsize for i in range(tensor.ndim))
    _require_contiguous(name, shape, strides, itemsize)
    return DeviceArray(
        address=int(tensor.data or 0) + int(tensor.byte_offset),
        shape=shape,
        dtype=np.dtype(f"{_CODES[tensor.code]}{itemsize}").name,
        owner=capsule,  # unused, it gives the tensor back when it goes
    )


def dl_tensor(capsule: Any) -> _DLTensor:
    """What a DLPack capsule describes; valid while the capsule lives."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer(capsule, b"dltensor")
    return ctypes.cast(address, ctypes.POINTER(_DLTensor)).contents


def _require_contiguous(
    name: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int
) -> None:
    expected, found = itemsize, []
    for length in reversed(shape):
        found.append(expected)
        expected *= length
    contiguous = tuple(reversed(found))
    relevant = zip(shape, strides or contiguous, contiguous, strict=True)
    if any(length > 1 and stride != wanted for length, stride, wanted in relevant):
        raise ExportError(f"{name}: must be contiguous, has shape {shape} and strides {strides}")
