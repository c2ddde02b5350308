"""Bytes of one file, in the formats that evaluation sets use, to arrays; nothing here is lossy.

Everything raises ``ValueError`` or what the decoder underneath raises when bytes are damaged.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

SINTEL_TAG = 202021.25
"""First float of Sintel's depth and camera files."""


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """A picture as uint8 [H, W, 3]; EXIF rotation is ignored, as depth maps ignore it."""
    return np.asarray(_picture(data).convert("RGB"))


def decode_png16(data: bytes) -> NDArray[np.uint16]:
    """A 16-bit single-channel PNG as uint16 [H, W]."""
    picture = _picture(data)
    if not picture.mode.startswith("I"):
        raise ValueError(f"a 16-bit picture is expected, this one is of mode {picture.mode}")
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ValueError("values beyond 16 bits")
    return values.astype(np.uint16)


def decode_mask(data: bytes) -> NDArray[np.bool_]:
    """A single-channel picture as bool [H, W]: everything but 0 is true."""
    values = np.asarray(_picture(data))
    if values.ndim != 2:
        raise ValueError(f"a single channel is expected, got {values.shape}")
    return values != 0


def _picture(data: bytes) -> Image.Image:
    """A picture whose checksums, where its format has them, are right."""
    Image.open(io.BytesIO(data)).verify()
    return Image.open(io.BytesIO(data))


def decode_npy(data: bytes) -> NDArray[Any]:
    """An ``.npy`` array; pickled objects are refused."""
    return np.load(io.BytesIO(data), allow_pickle=False)


def decode_npz(data: bytes) -> NDArray[Any]:
    """The array called ``data`` of an ``.npz``."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return arrays["data"]


def decode_mat(data: bytes) -> dict[str, Any]:
    """A MATLAB file up to version 7 (not HDF5) as scipy reads it."""
    return scipy.io.loadmat(io.BytesIO(data))


def decode_numbers(data: bytes) -> list[float]:
    """All numbers of a text, separated by blanks, commas or line ends."""
    return [float(word) for word in data.decode("ascii").replace(",", " ").split()]


def decode_matrix3(data: bytes) -> NDArray[np.float64]:
    """K [3, 3] from a text of nine numbers, or of sixteen (a 4 x 4 matrix)."""
    numbers = np.array(decode_numbers(data), np.float64)
    if numbers.size not in (9, 16):
        raise ValueError(f"9 or 16 numbers are expected, got {numbers.size}")
    side = 3 if numbers.size == 9 else 4
    return numbers.reshape(side, side)[:3, :3]


def decode_pfm(data: bytes) -> NDArray[np.float32]:
    """A single-channel portable float map as float32 [H, W], first row on top.

    The file holds its rows from the bottom up; the sign of the scale tells the byte order.
    """
    kind, size, scale, values = data.split(b"\n", 3)
    if kind.strip() != b"Pf":
        raise ValueError("not a single-channel PFM")
    width, height = (int(word) for word in size.split())
    order = "<" if float(scale) < 0 else ">"
    if len(values) != 4 * width * height:
        raise ValueError(f"{len(values)} bytes of pixels instead of {4 * width * height}")
    rows = np.frombuffer(values, order + "f4").reshape(height, width)
    return rows[::-1].astype(np.float32)


def decode_raw_float(data: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Bare little-endian float32 values, row by row, as [H, W]."""
    if len(data) != 4 * shape[0] * shape[1]:
        raise ValueError(f"{len(data)} bytes do not make {shape[0]}x{shape[1]} floats")
    return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)


def decode_dpt(data: bytes) -> NDArray[np.float32]:
    """Sintel's ``.dpt``: tag, width, height, then float32 depth, as [H, W]."""
    tag, width, height = struct.unpack_from("<fii", data)
    if tag != SINTEL_TAG or width <= 0 or height <= 0:
        raise ValueError("not a Sintel depth file")
    return decode_raw_float(data[12:], (height, width))


def decode_cam(data: bytes) -> NDArray[np.float64]:
    """Sintel's ``.cam``: tag, K [3, 3], then the extrinsics [3, 4], float64; gives K."""
    (tag,) = struct.unpack_from("<f", data)
    if tag != SINTEL_TAG or len(data) != 4 + 8 * (9 + 12):
        raise ValueError("not a Sintel camera file")
    return np.frombuffer(data, "<f8", 9, 4).reshape(3, 3).astype(np.float64)
