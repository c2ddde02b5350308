"""Depth to files: float metres, 16-bit millimetres, a colour picture; none ever half-written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold import visualize
from metricgold.errors import UserError

MM_LIMIT_M = 65.535
"""Largest depth a 16-bit picture in millimetres can hold."""
PREVIEW_PX = 2048
"""Longest side of the colour picture."""

Array = NDArray[np.float32]


class OutputError(UserError):
    """A result cannot be written; names the folder and the reason."""


@dataclass(frozen=True)
class Written:
    """What :func:`write_depth` did: the files, whether any replaced an older one, and how many
    pixels of the millimetre picture are saturated."""

    files: list[Path]
    replaced: bool
    saturated: int


def depth_to_millimetres(depth: Array) -> tuple[NDArray[np.uint16], int]:
    """Depth [H, W] in metres to uint16 millimetres, and how many pixels saturate at 65.535 m."""
    millimetres = np.rint(depth.astype(np.float64) * 1000.0)
    saturated = int((millimetres > 65535).sum())
    return np.clip(millimetres, 0, 65535).astype(np.uint16), saturated


def colour_picture(depth: Array) -> NDArray[np.uint8]:
    """Depth [H, W] in metres in colours with a scale bar, at most ``PREVIEW_PX`` long, and
    enlarged by a whole factor when it is tiny."""
    stride = max(1, -(-max(depth.shape) // PREVIEW_PX))
    small = depth[::stride, ::stride]
    near, far = visualize.depth_limits(small)
    picture = visualize.colourise(small, near, far)
    scale = max(1, min(240 // small.shape[1], PREVIEW_PX // max(small.shape)))
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    return visualize.add_scale_bar(picture, near, far)


def write_depth(folder: Path, name: str, depth: Array, uncertainty: Array | None) -> Written:
    """``<name>_depth.npy``, ``_depth_mm.png``, ``_depth_colour.png`` (and ``_uncertainty.npy``).

    All are written under temporary names first, so either all appear or none.

    Raises:
        OutputError: the folder cannot be written to.
    """
    millimetres, saturated = depth_to_millimetres(depth)
    targets = [
        folder / f"{name}{suffix}"
        for suffix in ("_depth.npy", "_depth_mm.png", "_depth_colour.png", "_uncertainty.npy")
    ]
    if uncertainty is None:
        targets.pop()
    parts = [target.with_name(target.name + ".part") for target in targets]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replaced = any(target.exists() for target in targets)
        _save_array(parts[0], depth)
        Image.fromarray(millimetres).save(parts[1], format="PNG")
        Image.fromarray(colour_picture(depth)).save(parts[2], format="PNG")
        if uncertainty is not None:
            _save_array(parts[3], uncertainty)
        for part, target in zip(parts, targets, strict=True):
            os.replace(part, target)
        if uncertainty is None:  # that of an earlier run does not belong to this depth
            (folder / f"{name}_uncertainty.npy").unlink(missing_ok=True)
    except OSError as error:
        for part in parts:
            _discard(part)
        raise OutputError(f"{folder}: results of {name} cannot be written ({error})") from None
    return Written(targets, replaced, saturated)


def _save_array(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        np.save(file, array.astype(np.float32))


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder itself may be gone or a plain file
