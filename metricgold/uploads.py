"""A picture that somebody uploaded, judged by its header before anything is decoded. No torch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold import imaging
from metricgold.errors import UserError
from metricgold.upload_limits import MAX_BYTES, MAX_MEGAPIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names of what is decoded; its other decoders are never asked."""


class UploadError(UserError):
    """A picture is refused; the message says why and names no path."""


class TooLargeError(UploadError):
    """It has too many bytes or pixels."""


def open_upload(
    source: Path | bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_megapixels: float = MAX_MEGAPIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """A picture from a file or from memory, with nothing but its header read.

    Raises:
        TooLargeError: in bytes or pixels.
        UploadError: no picture of these formats.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > max_bytes:
        raise too_many_bytes(size, max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            image = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise _too_many_pixels("more pixels than any camera", max_megapixels) from None
    except Exception:  # Pillow raises anything on a damaged header
        raise UploadError(
            f"This file is not a picture that can be read here ({', '.join(formats)})."
        ) from None
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        told = f"{image.width}x{image.height} px ({megapixels:.3g} megapixels)"
        image.close()
        raise _too_many_pixels(told, max_megapixels)
    return image


def decode_upload(image: Image.Image) -> tuple[NDArray[np.uint8], float | None]:
    """Upright pixels uint8 [H, W, 3] of an opened picture, which is closed then, and the vertical
    field of view in degrees that its file states, or None.

    Raises:
        UploadError: it is damaged.
    """
    with image:
        try:
            rgb = imaging.rgb_of_image(image)
        except imaging.ImageError as error:
            raise UploadError(f"This picture cannot be read: {error}.") from None
        return rgb, imaging.exif_fov_y_deg(image, *rgb.shape[:2])


def too_many_bytes(size: int, max_bytes: int) -> TooLargeError:
    """What a file of that size is refused with."""
    return TooLargeError(
        f"This file has {size / 2**20:.1f} MB; at most {max_bytes / 2**20:.0f} MB are taken."
    )


def _too_many_pixels(told: str, max_megapixels: float) -> TooLargeError:
    return TooLargeError(
        f"This picture has {told}; at most {max_megapixels:g} megapixels are taken: "
        "scale it down first."
    )
