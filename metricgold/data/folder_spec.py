"""A user's own data: ``dataset.yaml`` in a folder of pictures and depth, how its files are read.

``rgb`` and ``depth`` are paths below the folder with ``{id}`` where a frame's name stands; a
name may hold folders, of which the last is the frame and the ones before it the scene::

    rgb: rgb/{id}.jpg
    depth: depth/{id}.png       # 16-bit PNG or TIFF, float .npy, .exr
    depth_unit_m: 0.001         # metres a stored unit (inverse: 1/m a stored unit)
    depth_kind: z               # or ray (distance along the ray), or inverse
    sky_value: 65535            # stored number that stands for sky, if there is one
    camera: {fx: 320, fy: 320, cx: 319.5, cy: 239.5}   # or {fov_x_deg: 90}, or a file a frame:
    # camera: {file: camera/{id}.txt}                  # fx fy cx cy, or the nine numbers of K
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from metricgold.data.depth_kind import DepthKind
from metricgold.errors import UserError
from metricgold.geometry import intrinsics_from_fov, make_intrinsics, pixel_rays

SPEC_FILE = "dataset.yaml"
ID = "{id}"
_EXR_CHANNELS = ("Z", "Y", "V", "R")
"""Where depth is looked for in an EXR file, in this order."""


class FolderError(UserError):
    """The folder or its ``dataset.yaml`` cannot be used; names the file or key and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PixelCamera(_Section):
    """Focal lengths and principal point in pixels of the pictures' own size."""

    fx: PositiveFloat
    fy: PositiveFloat
    cx: float
    cy: float

    def intrinsics(self, height: int, width: int) -> NDArray[np.floating]:
        """K [3, 3] in pixels, whatever the size."""
        return make_intrinsics(self.fx, self.fy, self.cx, self.cy)


class FovCamera(_Section):
    """A centred camera with square pixels and this horizontal field of view."""

    fov_x_deg: Annotated[float, Field(gt=0, lt=180)]

    def intrinsics(self, height: int, width: int) -> NDArray[np.floating]:
        """K [3, 3] in pixels for pictures of this size."""
        return intrinsics_from_fov(self.fov_x_deg, height, width)


class CameraFile(_Section):
    """A text file for each frame: ``fx fy cx cy``, or K row by row."""

    file: str


class FolderSpec(_Section):
    """``dataset.yaml``."""

    rgb: str
    depth: str
    depth_unit_m: PositiveFloat = 1.0
    depth_kind: DepthKind = "z"
    sky_value: float | None = None
    camera: PixelCamera | FovCamera | CameraFile | None = None

    @model_validator(mode="after")
    def _one_id_each(self) -> FolderSpec:
        for key, pattern in self.patterns().items():
            if pattern.count(ID) != 1:
                raise ValueError(f"{key}: needs {ID} once, where a frame's name stands")
        return self

    def patterns(self) -> dict[str, str]:
        """Path patterns of a frame's files: ``rgb``, ``depth``, and ``camera`` if it is one."""
        found = {"rgb": self.rgb, "depth": self.depth}
        if isinstance(self.camera, CameraFile):
            found["camera.file"] = self.camera.file
        return found


def parse_spec(text: str, path: str) -> FolderSpec:
    """``dataset.yaml`` from its text; ``path`` is for messages.

    Raises:
        FolderError: it is not YAML, or has a wrong, unknown or missing key.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FolderError(f"{path}: not readable as YAML ({flat(error)})") from None
    try:
        return FolderSpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        own = first["type"] == "value_error"
        raise FolderError(f"{path}: {'' if own else (key or 'the file') + ': '}{message}") from None


def match_names(paths: Iterable[str], pattern: str) -> dict[str, str]:
    """Frame name (``{id}``) to path, for every one of ``paths`` that matches."""
    before, after = (re.escape(part) for part in pattern.split(ID))
    regex = re.compile(f"{before}(.+){after}")
    return {match[1]: path for path in sorted(paths) if (match := regex.fullmatch(path))}


def decode_depth(data: bytes, name: str) -> NDArray[np.float64]:
    """A stored depth map [H, W], in stored units; ``name`` tells the format by its ending.

    Raises:
        FolderError: it cannot be read, or is not one two-dimensional map of numbers.
    """
    suffix = name.lower().rpartition(".")[2]
    try:
        if suffix == "npy":
            values = np.load(io.BytesIO(data), allow_pickle=False)
        elif suffix == "exr":
            values = _decode_exr(data)
        else:
            with Image.open(io.BytesIO(data)) as image:
                values = np.asarray(image)
    except FolderError as error:
        raise FolderError(f"{name}: {error}") from None
    except Exception as error:  # decoders raise anything on damaged data
        raise FolderError(f"{name}: depth cannot be read ({flat(error)})") from None
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "uif":
        raise FolderError(
            f"{name}: depth must be one map of numbers [H, W], found {values.dtype} {values.shape}"
        )
    return values.astype(np.float64)


def _decode_exr(data: bytes) -> NDArray[Any]:
    try:
        import OpenEXR
    except ImportError:
        raise FolderError("reading .exr needs the package OpenEXR: pip install OpenEXR") from None
    with OpenEXR.File(io.BytesIO(data), separate_channels=True) as file:
        channels = file.channels()
        for channel in _EXR_CHANNELS:
            if channel in channels:
                return np.asarray(channels[channel].pixels)
        there, wanted = ", ".join(channels), ", ".join(_EXR_CHANNELS)
        raise FolderError(f"has the channels {there}, none of {wanted}")


def parse_camera(text: str, name: str) -> NDArray[np.floating]:
    """K [3, 3] in pixels from a camera file: four numbers ``fx fy cx cy``, or the nine of K.

    Raises:
        FolderError: it holds something else.
    """
    try:
        numbers = np.array([float(word) for word in re.split(r"[\s,;]+", text.strip())])
    except ValueError:
        raise FolderError(f"{name}: must hold numbers only: fx fy cx cy, or K") from None
    if numbers.size == 4:
        matrix = make_intrinsics(*numbers.tolist())
    elif numbers.size == 9:
        matrix = numbers.reshape(3, 3)
    else:
        raise FolderError(f"{name}: holds {numbers.size} numbers, expected fx fy cx cy, or K")
    upright = np.isfinite(matrix).all() and np.allclose(matrix[2], (0, 0, 1)) and matrix[1, 0] == 0
    if not upright or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise FolderError(f"{name}: not a camera matrix with positive focal lengths in pixels")
    return matrix


def to_depth(
    stored: NDArray[np.floating], spec: FolderSpec, intrinsics: NDArray[np.floating]
) -> NDArray[np.float64]:
    """z-depth [H, W] in metres from stored numbers [H, W]; 0 where there is none."""
    usable = np.isfinite(stored) & (stored > 0)
    if spec.sky_value is not None:
        usable &= stored != spec.sky_value
    values = np.where(usable, stored, 1.0) * spec.depth_unit_m
    if spec.depth_kind == "inverse":
        values = 1.0 / values
    elif spec.depth_kind == "ray":
        values = values / np.linalg.norm(pixel_rays(intrinsics, *stored.shape), axis=-1)
    return np.where(usable, values, 0.0)


def flat(error: object) -> str:
    """A message in one line, not too long."""
    return " ".join(str(error).split())[:200] or type(error).__name__
