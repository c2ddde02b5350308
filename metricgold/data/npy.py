"""A depth map out of an ``.npy`` file's bytes, whose header is not to be believed."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from numpy.typing import NDArray

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_depth(data: bytes) -> NDArray[np.float32]:
    """z-depth [H, W] in metres from the bytes of an ``.npy``; nothing is unpickled.

    Raises:
        ValueError: it is damaged, or not a depth map.
    """
    file = io.BytesIO(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of headers that only Python 2 wrote
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"npy version {version} is not known")
        shape, fortran_order, dtype = _HEADERS[version](file)
    if dtype.kind != "f" or dtype.itemsize not in (4, 8) or len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"expected float32 [height, width], found {dtype} {list(shape)}")
    declared, there = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if declared != there:
        raise ValueError(f"{there:,} bytes of numbers, {declared:,} declared")
    depth = np.frombuffer(data, dtype, offset=file.tell())
    with np.errstate(over="ignore"):
        return depth.reshape(shape, order="F" if fortran_order else "C").astype(np.float32)
