"""Whether an NVIDIA driver with a GPU is here, asked without touching a CUDA runtime.

TensorRT's and ONNX Runtime's CUDA parts log errors or crash the process when there is no
driver, so everything that needs one asks here first. Only the driver library
(``libcuda.so.1``, ``nvcuda.dll``) is loaded; it comes with the driver and with nothing else.
"""

from __future__ import annotations

import ctypes
import functools
import sys

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@functools.cache
def load_driver() -> ctypes.CDLL | str:
    """The initialised driver library, or one phrase that says why there is none."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return f"no NVIDIA driver on this machine ({LIBRARY} is missing)"
    code = library.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver does not start (cuInit gave {code})"
    count = ctypes.c_int()
    code = library.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        return "the NVIDIA driver sees no GPU"
    return library


def cuda_driver_problem() -> str | None:
    """None when a GPU can be used, else one phrase that says why not."""
    driver = load_driver()
    return driver if isinstance(driver, str) else None


def compute_capability(device: int = 0) -> tuple[int, int]:
    """(major, minor) of a GPU; call only when :func:`cuda_driver_problem` is None."""
    driver = load_driver()
    assert not isinstance(driver, str), driver
    values = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        code = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        assert code == 0, f"cuDeviceGetAttribute gave {code}"
        values.append(value.value)
    return values[0], values[1]
