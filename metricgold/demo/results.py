"""From an upload and a visitor's settings to depth, to distances, and to files to take home."""

from __future__ import annotations

import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold import geometry
from metricgold.demo.uploads import Upload
from metricgold.errors import UserError
from metricgold.outputs import ASSUMED_FOV_DEG, FORMATS, Prediction, write_outputs
from metricgold.picture_files import CameraOptions, Loaded, Predict, Source

FROM_FILE = "From the picture's file"
FOCAL_PX = "Focal length in pixels"
FOV_DEG = "Vertical field of view in degrees"
CAMERAS = (FROM_FILE, FOCAL_PX, FOV_DEG)
STEPS = (1, 4, 10)
MOST_MEMBERS = 10
_PACK = "pack-"

Point = tuple[int, int]
"""A pixel, x and y."""


@dataclass(frozen=True)
class Backend:
    """What runs the model.

    Attributes:
        name: for people.
        predictor: a prediction in so many steps (None: what the model was trained for) with so
            many members in the ensemble.
    """

    name: str
    predictor: Callable[[int | None, int], Predict]


@dataclass(frozen=True)
class Settings:
    """What a visitor chose; ``value`` is in the unit that ``camera`` names."""

    steps: int = 1
    ensemble: int = 1
    camera: str = FROM_FILE
    value: float | None = None


@dataclass(frozen=True)
class Result:
    """A prediction, and what is said of it.

    Attributes:
        prediction: depth in metres of the picture as the page shows it.
        name: what its files are called.
        digest: of the picture's pixels.
        told: sentences on camera, range and time.
    """

    prediction: Prediction
    name: str
    digest: str
    told: tuple[str, ...]


def predict(backend: Backend, upload: Upload, settings: Settings) -> Result:
    """Depth of an upload.

    Raises:
        UserError: a setting is impossible; the message is a sentence.
    """
    fov_deg, source = camera_of(upload, settings)
    source_file = Source(Path(upload.name), upload.name)
    loaded = Loaded(source_file, upload.rgb, fov_deg, source)
    if not 1 <= settings.ensemble <= MOST_MEMBERS:
        raise UserError(f"ensemble must lie in 1 to {MOST_MEMBERS}, got {settings.ensemble}")
    if settings.steps not in STEPS:
        raise UserError(f"steps must be one of {STEPS}, got {settings.steps}")
    started = time.perf_counter()
    ((prediction, said),) = backend.predictor(settings.steps, settings.ensemble)([loaded])
    seconds = time.perf_counter() - started
    told = [camera_told(prediction, source), _range_told(prediction)]
    if upload.full_size != upload.rgb.shape[:2]:
        height, width = upload.rgb.shape[:2]
        told.append(
            f"The picture of {upload.full_size[1]}x{upload.full_size[0]} px was scaled down to "
            f"{width}x{height} px for this page; 'metricgold infer' keeps the full size."
        )
    told.append(f"By {said}; {seconds:.2f} s in all.")
    return Result(prediction, upload.name, upload.digest, tuple(told))


def camera_of(upload: Upload, settings: Settings) -> tuple[float | None, str]:
    """Vertical field of view in degrees (None: unknown), and where it is from.

    A focal length is in pixels of the picture in the file, however the page shows it.

    Raises:
        UserError: there is no such camera.
    """
    if settings.camera == FROM_FILE:
        return upload.exif_fov_deg, "the picture's file (EXIF)"
    if settings.camera not in CAMERAS:
        raise UserError(f"camera must be one of {', '.join(CAMERAS)}, got {settings.camera!r}")
    value = settings.value
    if settings.camera == FOCAL_PX:
        if value is None or not 0 < value < float("inf"):
            raise UserError("The focal length must be a positive number of pixels.")
        return CameraOptions(focal_px=value).fov_of(upload.full_size[0])[0], "the focal length set"
    if value is None or not 0 < value < 180:
        raise UserError("The vertical field of view must lie between 0 and 180 degrees.")
    return value, "the setting"


def camera_told(prediction: Prediction, source: str) -> str:
    """The camera in a sentence."""
    if prediction.fov_deg is None:
        return (
            "Focal length unknown: neither the file nor you say it, so depth is less sure, and "
            f"distances and points assume a vertical field of view of {ASSUMED_FOV_DEG:g}°."
        )
    focal_px = prediction.intrinsics[1, 1]
    return (
        f"Vertical field of view {prediction.fov_deg:.1f}° from {source}, a focal length of "
        f"{focal_px:.0f} px in the picture shown."
    )


def point_of(prediction: Prediction, point: Point) -> NDArray[np.floating]:
    """A pixel's point [3] in metres, camera frame.

    Raises:
        UserError: it lies outside the picture.
    """
    x, y = point
    height, width = prediction.depth.shape
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"({x}, {y}) lies outside the picture of {width}x{height} px")
    intrinsics = geometry.crop_intrinsics(prediction.intrinsics, y, x)
    depth = prediction.depth[y : y + 1, x : x + 1].astype(np.float64)
    return geometry.unproject(depth, intrinsics)[0, 0]


def distance_m(prediction: Prediction, a: Point, b: Point) -> float:
    """The straight line between two pixels' points, in metres.

    Raises:
        UserError: one lies outside the picture.
    """
    return float(np.linalg.norm(point_of(prediction, a) - point_of(prediction, b)))


def points_of(data: Any) -> list[Point]:
    """The pixels of an event ``{"points": [[x, y], ...]}``.

    Raises:
        UserError: it is anything else.
    """
    given = data.get("points") if isinstance(data, dict) else None
    if not isinstance(given, list) or len(given) > 2:
        raise UserError("points must be a list of two at most")
    points = []
    for point in given:
        if not (isinstance(point, list) and [type(c) for c in point] == [int, int]):
            raise UserError("a point must be two whole numbers")
        points.append((point[0], point[1]))
    return points


def measured(prediction: Prediction, points: Sequence[Point]) -> list[str]:
    """What none, one or two clicked pixels tell, a sentence each.

    Raises:
        UserError: there are more than two, or one lies outside the picture.
    """
    if len(points) > 2:
        raise UserError(f"two points are measured, got {len(points)}")
    lines = [
        f"{letter} ({x}, {y}): {depth_told(prediction, (x, y))}"
        for letter, (x, y) in zip("AB", points, strict=False)
    ]
    if len(points) == 1:
        lines.append("Click a second point.")
    if len(points) == 2:
        assumed = "" if prediction.fov_deg is not None else ", with the assumed field of view"
        metres = distance_m(prediction, points[0], points[1])
        valid = prediction.valid_mask
        far = [f for f, (x, y) in zip("AB", points, strict=True) if not valid[y, x]]
        if far:
            assumed += f", if {' and '.join(far)} {'is' if len(far) == 1 else 'are'} no farther"
        lines.append(f"Distance from A to B: {metres:.2f} m in a straight line{assumed}")
    return lines


def depth_told(prediction: Prediction, point: Point) -> str:
    """A pixel's depth for people, with its uncertainty if there is one."""
    point_of(prediction, point)  # refuses what lies outside
    x, y = point
    told = f"{prediction.depth[y, x]:.2f} m"
    if prediction.uncertainty is not None:
        told += f" ± {prediction.uncertainty[y, x]:.2f} m"
    return told if prediction.valid_mask[y, x] else f"{told} or farther"


def pack(result: Result, folder: Path) -> tuple[Path, list[str]]:
    """One zip below ``folder`` with every format of a result, and what was left out and why."""
    left_out = []
    target = Path(tempfile.mkdtemp(prefix=_PACK, dir=folder)) / f"{result.name}_metricgold.zip"
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for name in FORMATS:
            try:
                written = write_outputs(Path(scratch), result.name, result.prediction, (name,))
            except UserError as error:
                left_out.append(f"{name} is left out: {error}")
                continue
            for path in written:
                packed.write(path, path.name)
                path.unlink()
    return target, left_out


def forget_packs(folder: Path, older_than_s: float) -> None:
    """Remove what :func:`pack` left below ``folder`` longer ago than that."""
    for old in folder.glob(f"{_PACK}*"):
        if old.stat().st_mtime < time.time() - older_than_s:
            shutil.rmtree(old, ignore_errors=True)


def _range_told(prediction: Prediction) -> str:
    depth = prediction.depth
    told = (
        f"Depth {depth.min():.2f} m to {depth.max():.2f} m, half of the picture nearer than "
        f"{np.median(depth):.2f} m."
    )
    far = prediction.depth_max_m
    if far is not None and not prediction.valid_mask.all():
        told += f" The model knows no depth beyond {far:g} m; what is there may be farther."
    return told
