"""Arrays on a GPU by their own account: addresses, shapes, types, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.device_array import DeviceArray, device_array, dl_tensor, is_device_array
from export.manifest import ExportError


def interface(**changed: Any) -> SimpleNamespace:
    told = {"data": (4096, False), "shape": (2, 3), "typestr": "<f4", "version": 3} | changed
    return SimpleNamespace(__cuda_array_interface__=told)


def test_an_interface_is_taken_at_its_word() -> None:
    value = interface(stream=7)
    found = device_array(value)
    assert found == DeviceArray(4096, (2, 3), "float32")
    assert (found.stream, found.nbytes) == (7, 24)
    assert found.owner is value
    assert device_array(found) is found
    assert device_array(interface(typestr="<i8")).dtype == "int64"


def test_it_tells_others_the_same_way() -> None:
    told = DeviceArray(4096, (2, 3), "int64", stream=5).__cuda_array_interface__
    assert told == {
        "data": (4096, False),
        "shape": (2, 3),
        "typestr": "<i8",
        "strides": None,
        "stream": 5,
        "version": 3,
    }
    assert device_array(SimpleNamespace(__cuda_array_interface__=told)).address == 4096


@pytest.mark.parametrize("strides", [None, (12, 4)])
def test_contiguous_strides_are_fine(strides: tuple[int, int] | None) -> None:
    assert device_array(interface(strides=strides)).shape == (2, 3)


def test_strides_of_single_elements_do_not_matter() -> None:
    assert device_array(interface(shape=(1, 3), strides=(999, 4))).shape == (1, 3)


@pytest.mark.parametrize("strides", [(4, 8), (24, 4), (12, 8)])
def test_anything_else_is_refused(strides: tuple[int, int]) -> None:
    with pytest.raises(ExportError, match=r"rgb: must be contiguous, has shape \(2, 3\)"):
        device_array(interface(strides=strides), "rgb")


def test_torchs_refusal_is_passed_on() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ExportError, match=r"rgb: (not usable on a GPU|lies in no GPU's memory)"):
        device_array(torch.zeros(2), "rgb")


def test_numpys_arrays_are_the_hosts() -> None:
    assert not is_device_array(np.zeros(2))
    assert is_device_array(interface())
    assert is_device_array(DeviceArray(1, (1,)))
    assert not is_device_array([1.0])
    with pytest.raises(ExportError, match=r"lies in no GPU's memory \(DLPack device 1\)"):
        device_array(np.zeros(2))
    with pytest.raises(ExportError, match="neither __cuda_array_interface__ nor DLPack"):
        device_array([1.0])


class OnGpu:
    """An array that says by DLPack that it is on a GPU; its memory is the host's."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_dlpack_tells_address_shape_and_type(dtype: str) -> None:
    array = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    found = device_array(OnGpu(array))
    assert found == DeviceArray(array.ctypes.data, (2, 3, 4), dtype)
    part = array[1:]
    assert device_array(OnGpu(part)).address == part.ctypes.data


def test_a_capsule_keeps_its_array_alive() -> None:
    import sys

    array = np.arange(4, dtype=np.float32)
    before = sys.getrefcount(array)
    found = device_array(OnGpu(array))
    assert sys.getrefcount(array) > before
    del found
    assert sys.getrefcount(array) == before


def test_dlpack_arrays_with_gaps_are_refused() -> None:
    with pytest.raises(ExportError, match="must be contiguous"):
        device_array(OnGpu(np.zeros((4, 4), np.float32)[:, ::2]))
    with pytest.raises(ExportError, match="element type that engines do not take"):
        device_array(OnGpu(np.zeros(3, np.complex64)))


def test_the_struct_is_dlpacks() -> None:
    array = np.zeros((2, 5), np.int64)
    capsule = array.__dlpack__()
    tensor = dl_tensor(capsule)
    assert (tensor.ndim, tensor.code, tensor.bits, tensor.lanes) == (2, 0, 64, 1)
    assert [tensor.shape[i] for i in range(2)] == [2, 5]
    assert (tensor.device_type, tensor.device_id) == (1, 0)
