"""What a visitor of the page gives: a picture within limits, or a sentence that says why not."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold import imaging
from metricgold.upload_limits import MAX_BYTES, MAX_MEGAPIXELS
from metricgold.uploads import decode_upload, open_upload

LONG_SIDE = 1600
"""Pixels; larger pictures are scaled down to it, so that every visitor costs about the same."""


@dataclass(frozen=True)
class Upload:
    """A picture as the page works with it.

    Attributes:
        rgb: uint8 [H, W, 3], upright, its long side :data:`LONG_SIDE` at most.
        full_size: height and width in pixels of the upright picture in the file.
        exif_fov_deg: vertical field of view the file states, or None.
        name: what its results are called.
        digest: of the pixels, to tell whether two uploads show the same.
    """

    rgb: NDArray[np.uint8]
    full_size: tuple[int, int]
    exif_fov_deg: float | None
    name: str
    digest: str


def read_upload(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Upload:
    """Read a picture; its size is judged by its header, before anything is decoded.

    Raises:
        UploadError: too large in bytes or pixels, no picture, or damaged.
    """
    image = open_upload(path, max_bytes=MAX_BYTES, max_megapixels=max_megapixels)
    rgb, fov_deg = decode_upload(image)
    full_size = rgb.shape[0], rgb.shape[1]
    scale = LONG_SIDE / max(full_size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in (full_size[1], full_size[0]))
        rgb = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX))
    return Upload(rgb, full_size, fov_deg, result_name(path.stem), _digest(rgb))


def check_upload(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> float | None:
    """Vertical field of view in degrees that the file states, or None; reads the header only.

    Raises:
        UploadError: as :func:`read_upload`, but for damage after the header.
    """
    with open_upload(path, max_bytes=MAX_BYTES, max_megapixels=max_megapixels) as image:
        if image.format == "PNG" and "exif" not in image.info:
            return None  # Pillow would decode all pixels to look behind them
        upright = image.size if image.getexif().get(0x0112, 1) < 5 else image.size[::-1]
        return imaging.exif_fov_y_deg(image, upright[1], upright[0])


def result_name(stem: str) -> str:
    """A file name's stem as letters, digits, dots, dashes and underscores, 60 at most."""
    return re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII).strip("._")[:60] or "picture"


def _digest(rgb: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest()[:16]
