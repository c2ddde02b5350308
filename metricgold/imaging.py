"""Reading pictures and resizing them: numpy and Pillow only, so that the runtime needs no torch."""

from __future__ import annotations

import io
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from metricgold.errors import UserError

MAX_PIXELS = 178_956_970
"""Largest picture (width x height) that is decoded; larger ones may be decompression bombs."""

FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
"""Of the frame that focal lengths are compared at."""

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
"""Ways to resize by diffusers' names; all but the nearest with antialias."""


class ImageError(UserError):
    """A picture cannot be used; the message names the file and says why."""


def load_rgb(path: Path | str) -> NDArray[np.uint8]:
    """Any picture as upright sRGB, uint8 [H, W, 3].

    EXIF rotation is applied; grey, palette, CMYK and 16-bit pictures are converted;
    transparency is laid over white.

    Raises:
        ImageError: the file is missing, empty, cut short, not an image, or a
            decompression bomb.
    """
    path = Path(path)
    _require_file(path)
    with _damage_told(f"{path}: "):
        return _upright_rgb(path)


def rgb_from_bytes(data: bytes) -> NDArray[np.uint8]:
    """As :func:`load_rgb`, of a file in memory; the message of an error names no file."""
    if not data:
        raise ImageError("the file is empty")
    with _damage_told():
        return _upright_rgb(io.BytesIO(data))


def rgb_of_image(image: Image.Image) -> NDArray[np.uint8]:
    """As :func:`load_rgb`, of an opened picture."""
    with _damage_told():
        _check_pixels(image, MAX_PIXELS)
        return _to_rgb(ImageOps.exif_transpose(image))


def _upright_rgb(file: Path | io.BytesIO) -> NDArray[np.uint8]:
    with Image.open(file) as opened:
        _check_pixels(opened, MAX_PIXELS)
        opened.load()
        return _to_rgb(ImageOps.exif_transpose(opened))


def decode_picture(
    data: bytes, formats: tuple[str, ...], modes: tuple[str, ...], max_pixels: int = MAX_PIXELS
) -> NDArray[Any]:
    """A picture from memory exactly as it is stored, without any conversion.

    Args:
        formats: Pillow's names of the file formats that are expected.
        modes: Pillow's names of the pixel formats that are expected.
        max_pixels: width x height from which on nothing is decoded.

    Raises:
        ImageError: it is damaged, of another format, or of other pixels; the message says which.
    """
    if not data:
        raise ImageError("the file is empty")
    with _damage_told(), Image.open(io.BytesIO(data), formats=formats) as opened:
        _check_pixels(opened, max_pixels)
        if opened.mode not in modes:
            raise ImageError(f"pixels are of mode {opened.mode}, expected {' or '.join(modes)}")
        if opened.format == "PNG":
            _check_png(data)
        return np.asarray(opened)


def _check_png(data: bytes) -> None:
    """Check every chunk's CRC32: Pillow believes those of the pixels."""
    start = 8
    while start + 12 <= len(data):
        stop = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if (
            zlib.crc32(memoryview(data)[start + 4 : stop]).to_bytes(4, "big")
            != data[stop : stop + 4]
        ):
            raise ValueError(f"the chunk at byte {start} fails its CRC32")
        if data[start + 4 : start + 8] == b"IEND":
            return
        start = stop + 4
    raise ValueError("the end is missing")


def _check_pixels(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise ImageError(
            f"{image.width}x{image.height}: more than {most:,} pixels; scale it down first"
        )


@contextmanager
def _damage_told(prefix: str = "") -> Iterator[None]:
    """Turn whatever Pillow raises on damaged data into :class:`ImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError as error:
        raise ImageError(f"{prefix}{error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{prefix}not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{prefix}more than {MAX_PIXELS:,} pixels; scale it down first") from None
    except Exception as error:  # decoders raise anything on damaged data
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{prefix}damaged or cut short ({reason})") from None


def _require_file(path: Path) -> None:
    """Raise :class:`ImageError` unless ``path`` is a file with something in it."""
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder, not an image")
        size = path.stat().st_size
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})") from None
    if size == 0:
        raise ImageError(f"{path}: the file is empty")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _grey_to_8_bit(np.asarray(image), is_16_bit=image.mode.startswith("I;16"))
        return np.repeat(grey[..., None], 3, axis=-1)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _grey_to_8_bit(grey: NDArray[Any], *, is_16_bit: bool) -> NDArray[np.uint8]:
    """Deep grey to uint8. Files don't say their range: 1 for floats up to 1, else 8 or 16 bit."""
    values = np.nan_to_num(grey.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(values.max(initial=0.0))
    if is_16_bit or peak > 255:
        values /= 257.0
    elif grey.dtype.kind == "f" and peak <= 1:
        values *= 255.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def exif_fov_y_deg(picture: Path | str | Image.Image, height: int, width: int) -> float | None:
    """Vertical field of view from EXIF, or None.

    From ``FocalLengthIn35mmFilm``, which refers to the 43.27 mm diagonal of a 36 x 24 mm frame;
    where a camera leaves it out, from the focal length and the pixels of its sensor a millimetre.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(picture, Image.Image):
                focal_mm = _focal_mm(picture)
            else:
                with Image.open(picture) as image:
                    focal_mm = _focal_mm(image)
    except Exception:
        return None
    if not 1 <= focal_mm < math.inf:
        return None
    diagonal_px = math.hypot(height, width)
    focal_px = focal_mm / FILM_DIAGONAL_MM * diagonal_px
    return math.degrees(2.0 * math.atan(height / (2.0 * focal_px)))


def _focal_mm(image: Image.Image) -> float:
    """For a 36 x 24 mm frame; 0 if the file does not say it."""
    tags = image.getexif().get_ifd(0x8769)
    return float(tags.get(0xA405) or 0) or _focal_mm_by_sensor(tags)


def _focal_mm_by_sensor(tags: Mapping[int, Any]) -> float:
    """From ``FocalLength``, ``FocalPlaneXResolution`` and ``PixelXDimension``, ``..YDimension``;
    0 where one is missing or the sensor were of no camera's size.

    The picture may have been scaled since, but not cut.
    """
    wanted = [float(tags.get(tag) or 0) for tag in (0x920A, 0xA20E, 0xA002, 0xA003)]
    unit_mm = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(tags.get(0xA210, 2), 0.0)
    if not all(wanted) or not unit_mm:
        return 0.0
    focal_mm, pixels_a_unit, width, height = wanted
    sensor_mm = math.hypot(width, height) * unit_mm / pixels_a_unit  # diagonal
    return focal_mm / sensor_mm * FILM_DIAGONAL_MM if 3 <= sensor_mm <= 80 else 0.0


def processing_size(height: int, width: int, long_side: int, multiple: int) -> tuple[int, int]:
    """Size the network works at: long side ``long_side``, both sides multiples of ``multiple``.

    Each side is rounded to the nearest multiple (at least one), so nothing is padded;
    the vertical field of view does not change under such a resize.
    """
    scale = long_side / max(height, width) if long_side else 1.0

    def snap(side: int) -> int:
        return max(1, round(side * scale / multiple)) * multiple

    return snap(height), snap(width)


def resize_rgb(
    rgb: NDArray[np.uint8], size: tuple[int, int], resampling: str = "bilinear"
) -> NDArray[np.float32]:
    """uint8 [H, W, 3] to float32 [h, w, 3] in [0, 1], with antialias; see :data:`RESAMPLING`."""
    if rgb.shape[:2] != tuple(size):
        image = Image.fromarray(rgb).resize((size[1], size[0]), RESAMPLING[resampling])
        rgb = np.asarray(image)
    return rgb.astype(np.float32) / 255.0


def resize_plain(
    values: NDArray[np.float32], size: tuple[int, int], resampling: str = "bilinear"
) -> NDArray[np.float32]:
    """float32 [h, w] to [H, W], with antialias; see :data:`RESAMPLING`."""
    if values.shape == tuple(size):
        return values.astype(np.float32)
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    resized = image.resize((size[1], size[0]), RESAMPLING[resampling])
    return np.asarray(resized, dtype=np.float32)


def resize_depth_log(
    depth: NDArray[np.float32], size: tuple[int, int], resampling: str = "bilinear"
) -> NDArray[np.float32]:
    """Metric depth [h, w] to [H, W], resampled in log-depth; positive input required."""
    if depth.shape == tuple(size):
        return depth.astype(np.float32)
    return np.exp(resize_plain(np.log(depth), size, resampling))
