"""What the pipeline is given: pictures of any common kind, and what is known of the camera."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metricgold import geometry, imaging

logger = logging.getLogger(__name__)

PictureInput = str | Path | Image.Image | NDArray[Any] | Tensor


@dataclass(frozen=True)
class Picture:
    """uint8 sRGB [H, W, 3], and the vertical field of view its file states, if any."""

    rgb: NDArray[np.uint8]
    exif_fov_deg: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]


@dataclass(frozen=True)
class Camera:
    """Vertical field of view in degrees (None: unknown) and where it is from."""

    fov_deg: float | None
    source: str


def as_pictures(image: PictureInput | Sequence[PictureInput]) -> list[Picture]:
    """One picture or several, of any of these kinds, in order.

    Paths and ``PIL.Image`` (turned upright, their EXIF read); numpy [H, W, 3], [H, W] or
    [N, H, W, 3]; torch [3, H, W], [H, W] or [N, 3, H, W]. Arrays hold uint8, or floats in [0, 1].

    Raises:
        ValueError: an array of another shape, type or range.
        ImageError: a file cannot be read.
    """
    if isinstance(image, (list, tuple)):
        return [picture for part in image for picture in as_pictures(part)]
    if isinstance(image, (str, Path)):
        rgb = imaging.load_rgb(image)
        return [Picture(rgb, imaging.exif_fov_y_deg(image, *rgb.shape[:2]))]
    if isinstance(image, Image.Image):
        rgb = imaging.rgb_of_image(image)
        return [Picture(rgb, imaging.exif_fov_y_deg(image, *rgb.shape[:2]))]
    if isinstance(image, Tensor):
        image = image[None] if image.ndim == 2 else image
        if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3):
            raise ValueError(
                "a picture tensor must be [3, H, W], [H, W] or [N, 3, H, W], got "
                f"{list(image.shape)}"
            )
        image = image.float() if image.is_floating_point() else image
        image = image.detach().cpu().movedim(-3, -1).numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"a picture cannot be a {type(image).__name__}; see the pipeline's docstring"
        )
    return [Picture(rgb) for rgb in _arrays(image)]


def _arrays(array: NDArray[Any]) -> list[NDArray[np.uint8]]:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(
            f"a picture array must be [H, W, 3], [H, W] or [N, H, W, 3], got {list(array.shape)}"
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("a picture of floats must lie in [0, 1]")
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"a picture array must be uint8, or float in [0, 1], got {array.dtype}")
    array = np.broadcast_to(array, (*array.shape[:-1], 3))
    return [np.ascontiguousarray(a) for a in (array if array.ndim == 4 else [array])]


def cameras_of(
    pictures: Sequence[Picture],
    intrinsics: Any = None,
    focal_length_px: float | Sequence[float | None] | None = None,
    fov_deg: float | Sequence[float | None] | None = None,
) -> list[Camera]:
    """The camera of every picture: as given, else from its EXIF, else unknown.

    Args:
        intrinsics: K [3, 3] in pixels, [N, 3, 3], or a list with None where unknown.
        focal_length_px: vertical focal length in pixels of the picture as given.
        fov_deg: vertical field of view in degrees. Both: one number, or a list or array [N].

    Raises:
        ValueError: two of them are given, or one that no camera has.
    """
    given = {
        "intrinsics": _one_each(_split(intrinsics, 2), "intrinsics", len(pictures)),
        "focal_length_px": _one_each(_split(focal_length_px, 0), "focal_length_px", len(pictures)),
        "fov_deg": _one_each(_split(fov_deg, 0), "fov_deg", len(pictures)),
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} say the same thing; give one of them")
    cameras = []
    for index, picture in enumerate(pictures):
        value = given[named[0]][index] if named else None  # type: ignore[index]
        if value is not None:
            fov = _fov_deg(named[0], value, picture.size[0])
            cameras.append(Camera(fov, named[0]))
        elif picture.exif_fov_deg is not None:
            logger.info("field of view %.1f° from EXIF", picture.exif_fov_deg)
            cameras.append(Camera(picture.exif_fov_deg, "EXIF"))
        else:
            cameras.append(Camera(None, "unknown"))
    return cameras


def _split(value: Any, ndim: int) -> Any:
    """An array, a tensor or nested numbers of one dimension more than ``ndim``, which one picture's
    value has, as a list; what has None or arrays in it is a list already."""
    if value is None or (isinstance(value, (list, tuple)) and not _is_matrix(value)):
        return value
    array = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    return list(array) if array.ndim == ndim + 1 else array


def _is_matrix(value: Sequence[Any]) -> bool:
    """Whether it is one K as nested numbers, as JSON has it."""
    return len(value) == 3 and all(
        isinstance(row, (list, tuple)) and all(isinstance(x, (int, float)) for x in row)
        for row in value
    )


def _one_each(value: Any, name: str, count: int) -> list[Any] | None:
    """``value`` for every picture; a list must have one for each."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} pictures")
    return list(value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number for every picture, got {value!r}") from None


def _fov_deg(name: str, value: Any, height: int) -> float:
    if name == "fov_deg":
        fov = _number(name, value)
        if not 0 < fov < 180:
            raise ValueError(f"fov_deg must lie in (0, 180) degrees, got {fov}")
        return fov
    if name == "focal_length_px":
        focal = _number(name, value)
        if not (focal > 0 and np.isfinite(focal)):
            raise ValueError(f"focal_length_px must be positive, got {focal}")
        return geometry.fov_y_deg(geometry.make_intrinsics(focal, focal, 0, 0), height)
    try:
        matrix = np.asarray(value.cpu() if isinstance(value, Tensor) else value, np.float64)
    except (TypeError, ValueError):  # no numbers, or rows of different lengths
        matrix = np.zeros(0)
    if matrix.shape != (3, 3) or not (np.isfinite(matrix).all() and matrix[1, 1] > 0):
        raise ValueError(f"intrinsics must be K [3, 3] in pixels with f_y > 0, got {value!r}")
    return geometry.fov_y_deg(matrix, height)
