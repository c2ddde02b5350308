"""Predictions to files, in the formats people want them in; none is ever half-written.

numpy and Pillow only, so that the torch-free runtime writes the same files.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold import point_cloud, visualize
from metricgold.errors import UserError
from metricgold.geometry import make_intrinsics
from metricgold.sky import sky_mask

ASSUMED_FOV_DEG = 55.0
"""Vertical field of view for geometry where nothing is known of the camera."""

PREVIEW_PX = 2048
"""Longest side of colour pictures."""

UNITS_M = (0.001, 0.002, 0.005, 0.01, 0.1, 1.0)
"""Metres a step of a 16-bit picture may stand for; the finest in which nothing saturates."""

Depth = NDArray[np.float32]
Picture = NDArray[np.uint8]


class OutputError(UserError):
    """A result cannot be written; names the file and the reason."""


@dataclass(frozen=True)
class Prediction:
    """What is known of one picture.

    Attributes:
        rgb: uint8 [H, W, 3].
        depth: float32 [H, W] in metres.
        uncertainty: as ``depth``, or None.
        fov_deg: vertical field of view, or None if unknown.
        depth_max_m: the model's farthest depth, where sky is; None where that is not known.
    """

    rgb: Picture
    depth: Depth
    uncertainty: Depth | None = None
    fov_deg: float | None = None
    depth_max_m: float | None = None

    @property
    def intrinsics(self) -> NDArray[np.floating]:
        """Centred K [3, 3] of square pixels; of :data:`ASSUMED_FOV_DEG` if nothing is known."""
        height, width = self.depth.shape
        fov = ASSUMED_FOV_DEG if self.fov_deg is None else self.fov_deg
        focal = height / (2.0 * math.tan(math.radians(fov) / 2.0))
        return make_intrinsics(focal, focal, (width - 1) / 2.0, (height - 1) / 2.0)

    @property
    def sky_mask(self) -> NDArray[np.bool_]:
        """Pixels at the far end of the model's range, see :func:`metricgold.sky.sky_mask`."""
        if self.depth_max_m is None:
            return np.zeros(self.depth.shape, bool)
        return np.asarray(sky_mask(self.depth, self.depth_max_m))

    @property
    def valid_mask(self) -> NDArray[np.bool_]:
        """Pixels with a depth that is not sky's."""
        return visualize.has_depth(self.depth) & ~self.sky_mask


@dataclass(frozen=True)
class Format:
    """How the files of a format end, and what writes them (a path for each ending)."""

    endings: tuple[str, ...]
    write: Callable[[Prediction, Sequence[Path]], None]


def depth_to_16_bit(
    depth: Depth, farthest_m: float | None = None
) -> tuple[NDArray[np.uint16], float]:
    """Depth [H, W] in metres to steps of a unit, and that unit in metres; 0 is no depth.

    ``farthest_m`` is what the unit must do for at least; default: the farthest of ``depth``.

    Raises:
        OutputError: a depth is larger than any unit allows.
    """
    usable = visualize.has_depth(depth)
    farthest = float(depth[usable].max(initial=farthest_m or 0.0))
    for unit in UNITS_M:
        if farthest / unit <= 65535:
            steps = np.rint(np.where(usable, depth, 0.0).astype(np.float64) / unit)
            steps[usable] = np.maximum(steps[usable], 1)  # 0 would say that there is none
            return steps.astype(np.uint16), unit
    raise OutputError(f"a depth of {farthest:.0f} m is too far for a 16-bit picture")


def colour_picture(
    depth: Depth, near_m: float | None = None, far_m: float | None = None
) -> Picture:
    """Depth [H, W] in metres in colours with a scale bar, at most :data:`PREVIEW_PX` long, and
    enlarged by a whole factor when it is tiny; limits as in ``visualize.colourise``."""
    small = _thinned(depth)
    near, far = visualize.depth_limits(small)
    near, far = near_m or near, far_m or far
    picture = visualize.colourise(small, near, far)
    scale = max(1, min(240 // small.shape[1], PREVIEW_PX // max(small.shape)))
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    return visualize.add_scale_bar(picture, near, far)


def side_by_side(prediction: Prediction) -> Picture:
    """The picture, its depth, and the uncertainty if there is one, with scales in metres."""
    coloured = [colour_picture(prediction.depth)]
    titles = ["image", "depth"]
    if prediction.uncertainty is not None:
        coloured.append(colour_picture(np.maximum(prediction.uncertainty, 1e-4)))
        titles.append("uncertainty")
    rgb = _thinned(prediction.rgb)
    scale = coloured[0].shape[1] // rgb.shape[1]
    rgb = rgb.repeat(scale, axis=0).repeat(scale, axis=1)
    return visualize.contact_sheet([rgb, *coloured], columns=3, titles=titles)


def normals_picture(prediction: Prediction) -> Picture:
    """Normals in the usual colours: x right in red, y up in green, towards the camera in blue."""
    towards = point_cloud.normals(prediction.depth, prediction.intrinsics) * np.array([1, -1, -1])
    return np.rint((towards + 1.0) * 127.5).astype(np.uint8)


def _thinned(values: NDArray) -> NDArray:  # type: ignore[type-arg]
    stride = max(1, -(-max(values.shape[:2]) // PREVIEW_PX))
    return values[::stride, ::stride]


def _write_npy(prediction: Prediction, paths: Sequence[Path]) -> None:
    with paths[0].open("wb") as file:
        np.save(file, prediction.depth.astype(np.float32))
    if prediction.uncertainty is not None:
        with paths[1].open("wb") as file:
            np.save(file, prediction.uncertainty.astype(np.float32))


def _write_npz(prediction: Prediction, paths: Sequence[Path]) -> None:
    arrays = {
        "depth": prediction.depth,
        "valid_mask": prediction.valid_mask,
        "sky_mask": prediction.sky_mask,
    }
    if prediction.uncertainty is not None:
        arrays["uncertainty"] = prediction.uncertainty
    if prediction.fov_deg is not None:
        arrays["intrinsics"] = prediction.intrinsics
    with paths[0].open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _write_exr(prediction: Prediction, paths: Sequence[Path]) -> None:
    try:
        import OpenEXR
    except ImportError:
        raise UserError(
            "EXR files need the extra 'formats' (pip install 'metricgold[formats]')"
        ) from None
    channels = {"Z": prediction.depth.astype(np.float32)}
    if prediction.uncertainty is not None:
        channels["uncertainty"] = prediction.uncertainty.astype(np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    encoded = io.BytesIO()  # the library itself takes no name that is not UTF-8
    with OpenEXR.File(header, channels) as file:
        file.write(encoded)
    paths[0].write_bytes(encoded.getvalue())


def _write_16_bit(prediction: Prediction, paths: Sequence[Path]) -> None:
    steps, unit = depth_to_16_bit(prediction.depth)
    Image.fromarray(steps).save(paths[0], format="PNG")
    scale = {"metres_per_step": unit, "no_depth": 0, "fov_y_deg": prediction.fov_deg}
    paths[1].write_text(json.dumps(scale) + "\n")


def _save_png(path: Path, picture: Picture) -> None:
    Image.fromarray(picture).save(path, format="PNG")


def _write_cloud(prediction: Prediction, paths: Sequence[Path], mesh: bool = False) -> None:
    p = prediction
    point_cloud.write(paths[0], p.depth, p.rgb, p.intrinsics, p.valid_mask, mesh)


FORMATS: dict[str, Format] = {
    "npy": Format(("_depth.npy", "_uncertainty.npy"), _write_npy),
    "npz": Format((".npz",), _write_npz),
    "exr": Format(("_depth.exr",), _write_exr),
    "png16": Format(("_depth_16bit.png", "_depth_16bit.json"), _write_16_bit),
    "colour": Format(
        ("_depth_colour.png",), lambda p, paths: _save_png(paths[0], colour_picture(p.depth))
    ),
    "side": Format(("_side_by_side.png",), lambda p, paths: _save_png(paths[0], side_by_side(p))),
    "normals": Format(("_normals.png",), lambda p, paths: _save_png(paths[0], normals_picture(p))),
    "ply": Format(("_points.ply",), _write_cloud),
    "glb": Format(("_points.glb",), _write_cloud),
    "mesh": Format(("_mesh.glb",), lambda p, paths: _write_cloud(p, paths, mesh=True)),
}
"""What each is: :data:`metricgold.output_formats.ABOUT`."""


def parse_formats(text: str) -> tuple[str, ...]:
    """Names of formats from a list with commas; "all" is every one.

    Raises:
        OutputError: one is not known.
    """
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    if names == ("all",):
        return tuple(FORMATS)
    unknown = [n for n in names if n not in FORMATS]
    if unknown or not names:
        raise OutputError(
            f"unknown format '{', '.join(unknown)}'; known: all, {', '.join(FORMATS)}"
        )
    return names


def encoded(prediction: Prediction, name: str) -> dict[str, bytes]:
    """The files of one format in memory, by how they end; see :data:`FORMATS`.

    Raises:
        UserError: the prediction cannot be written so, or a package is missing.
    """
    with tempfile.TemporaryDirectory(prefix="metricgold-") as folder:
        written = write_outputs(Path(folder), "out", prediction, (name,))
        return {path.name.removeprefix("out"): path.read_bytes() for path in written}


def existing(folder: Path, name: str, formats: Iterable[str]) -> list[Path]:
    """Files that writing these formats would replace."""
    paths = [folder / f"{name}{ending}" for f in formats for ending in FORMATS[f].endings]
    return [path for path in paths if path.exists()]


def write_outputs(
    folder: Path,
    name: str,
    prediction: Prediction,
    formats: Sequence[str],
    force: bool = False,
    leave_out: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write ``<folder>/<name><ending>`` in every format; the files that are there then.

    All are written under temporary names first, so either all appear or none.

    Args:
        leave_out: is told of each format that has nothing to write (a mesh of nothing but sky),
            and the others are written; without it, and where there are no others, that is an error.

    Raises:
        OutputError: one exists and ``force`` is not given, or the folder cannot be written to.
        NothingToWriteError: see ``leave_out``.
    """
    there = existing(folder, name, formats)
    if there and not force:
        raise OutputError(f"{there[0]}: exists already; name another folder or add --force")
    targets = {f: [folder / f"{name}{ending}" for ending in FORMATS[f].endings] for f in formats}
    parts = {f: [p.with_name(f"{p.name}.part{p.suffix}") for p in targets[f]] for f in formats}
    written = []
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for chosen in formats:
            try:
                FORMATS[chosen].write(prediction, parts[chosen])
            except point_cloud.NothingToWriteError as error:
                if leave_out is None or len(formats) == 1:
                    raise
                leave_out(f"{chosen} is left out: {error}")
        for chosen in formats:
            for part, target in zip(parts[chosen], targets[chosen], strict=True):
                if part.exists():
                    os.replace(part, target)
                    written.append(target)
                else:  # what an earlier prediction had and this one has not
                    target.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: results of {name} cannot be written ({error})") from None
    finally:
        for part in (p for each in parts.values() for p in each):
            _discard(part)
    return written


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder itself may be gone or a plain file
