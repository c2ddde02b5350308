"""Large pictures in overlapping tiles: detail of the tiles, scale and layout of the whole picture.

The whole picture is predicted at the size the network was trained for. Each tile is predicted at
about that size too, and then lowered or raised, in log-depth and smoothly, until its coarse part
is that of the whole picture: c = t + blur(b - t). Neighbouring tiles so agree in all that a tile
alone cannot know, and what is left is feathered over the overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from metricgold import geometry
from metricgold.pictures_in import PictureInput, as_pictures, cameras_of
from metricgold.pipeline import MetricGoldPipeline

COARSE = 1 / 8
"""Standard deviation of the blur that splits coarse from fine, in sides of a tile."""

Depth = NDArray[np.float32]


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of tiles that cover ``length``, evenly spaced, overlapping by that share.

    Raises:
        ValueError: the overlap is not in (0, 0.9].
    """
    if not 0 < overlap <= 0.9:
        raise ValueError(f"tile_overlap must lie in (0, 0.9], got {overlap}")
    if tile >= length:
        return [0]
    stride = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / stride) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class TileGrid:
    """Where tiles lie in a picture.

    Attributes:
        rows, columns: first pixels.
        size: height and width in pixels of every tile.
    """

    rows: list[int]
    columns: list[int]
    size: tuple[int, int]

    @classmethod
    def of(cls, picture: tuple[int, int], tile_size: int, overlap: float) -> TileGrid:
        """Tiles of the shape of a picture of height and width, ``tile_size`` on the long side.

        Raises:
            ValueError: the overlap is not in (0, 0.9].
        """
        height, width = (
            min(side, max(1, round(tile_size * side / max(picture)))) for side in picture
        )
        rows = tile_starts(picture[0], height, overlap)
        return cls(rows, tile_starts(picture[1], width, overlap), (height, width))

    @property
    def parts(self) -> list[tuple[slice, slice]]:
        """Every tile, row by row."""
        height, width = self.size
        return [
            (slice(row, row + height), slice(column, column + width))
            for row in self.rows
            for column in self.columns
        ]


def feather(tile: int, starts: Sequence[int], index: int) -> NDArray[np.float64]:
    """Weights [tile] of tile ``index``: raised cosines over its overlaps, 1 elsewhere."""
    weight = np.ones(tile)

    def ramp(shared: int) -> NDArray[np.float64]:
        """Rising from just above 0 to just below 1."""
        return 0.5 - 0.5 * np.cos(np.pi * (np.arange(shared) + 0.5) / shared)

    if index > 0:
        shared = starts[index - 1] + tile - starts[index]
        weight[:shared] *= ramp(shared)
    if index + 1 < len(starts):
        shared = starts[index] + tile - starts[index + 1]
        weight[tile - shared :] *= ramp(shared)[::-1]
    return weight


def blend(whole: Depth, tiles: Sequence[Depth], grid: TileGrid) -> Depth:
    """Tiles into the whole picture's depth [H, W] in metres.

    Args:
        whole: the whole picture's prediction at full size, metres.
        tiles: predictions [h, w] of the tiles, row by row, metres.
    """
    log_whole = np.log(whole.astype(np.float64))
    total, weights = np.zeros_like(log_whole), np.zeros_like(log_whole)
    height, width = grid.size
    for number, (tile, part) in enumerate(zip(tiles, grid.parts, strict=True)):
        row, column = divmod(number, len(grid.columns))
        fine = np.log(tile.astype(np.float64))
        fine += blurred(log_whole[part] - fine, (COARSE * height, COARSE * width))
        weight = np.outer(feather(height, grid.rows, row), feather(width, grid.columns, column))
        total[part] += weight * fine
        weights[part] += weight
    return np.exp(total / weights).astype(np.float32)


def blurred(values: NDArray[np.float64], deviations: tuple[float, float]) -> NDArray[np.float64]:
    """[H, W] blurred with these standard deviations in pixels along its axes.

    By three boxes: nearly a Gaussian, at a cost that does not grow with the deviations.
    """
    width = [2 * round((math.sqrt(4 * d * d + 1) - 1) / 2) + 1 for d in deviations]
    for _ in range(3):
        values = uniform_filter(values, width, mode="nearest")
    return values


TILE_OVERLAP = 0.25
"""Share of a tile that the next one covers too."""


def predict_tiled(
    pipeline: MetricGoldPipeline,
    image: PictureInput,
    tile_size: int | None = None,
    tile_overlap: float = TILE_OVERLAP,
    intrinsics: Any = None,
    focal_length_px: float | None = None,
    fov_deg: float | None = None,
    **options: Any,
) -> Depth:
    """Depth [H, W] in metres of one picture, at its own size.

    Args:
        tile_size: long side of a tile in pixels of the picture; default is what the checkpoint
            was trained for. A picture that is no larger is predicted as it is.
        tile_overlap: share of a tile that the next one covers too.
        intrinsics, focal_length_px, fov_deg: the whole picture's camera, as for the pipeline.
        options: of the pipeline.

    Raises:
        ValueError: an impossible option, or several pictures.
    """
    if tile_size is not None and tile_size < 1:
        raise ValueError(f"tile_size must be 1 or more, got {tile_size}")
    pictures = as_pictures(image)
    if len(pictures) != 1:
        raise ValueError(f"one picture at a time is predicted in tiles, got {len(pictures)}")
    (picture,) = pictures
    (camera,) = cameras_of(pictures, intrinsics, focal_length_px, fov_deg)
    side = tile_size or pipeline.default_processing_resolution
    whole = pipeline(picture.rgb, fov_deg=[camera.fov_deg], **options).prediction[0, ..., 0]
    height, width = picture.size
    if max(height, width) <= side:
        return whole
    grid = TileGrid.of(picture.size, side, tile_overlap)
    tiles = [picture.rgb[part] for part in grid.parts]
    fov = _tile_fov_deg(camera.fov_deg, height, grid.size[0])
    found = pipeline(tiles, fov_deg=[fov] * len(tiles), **options).prediction
    return blend(whole, list(found[..., 0]), grid)


def _tile_fov_deg(fov_deg: float | None, height: int, tile_height: int) -> float | None:
    """Vertical field of view of a centred tile; that of others differs a little."""
    if fov_deg is None:
        return None
    focal = height / 2.0 / math.tan(math.radians(fov_deg) / 2.0)
    return geometry.fov_y_deg(geometry.make_intrinsics(focal, focal, 0, 0), tile_height)


def seam_error(depth: Depth, grid: TileGrid) -> float:
    """How much a picture bends where tiles begin or end, over how much it bends elsewhere.

    The mean second difference of log-depth across those rows and columns, divided by the mean
    over all others: 1 where seams cannot be told from the picture.
    """
    log_depth = np.log(depth.astype(np.float64))
    at, elsewhere = [], []
    for axis, (starts, side) in enumerate(zip((grid.rows, grid.columns), grid.size, strict=True)):
        bend = np.abs(np.diff(log_depth, 2, axis=axis)).mean(axis=1 - axis)  # centred at i + 1
        borders = {s + d for s in starts[1:] for d in (-1, 0)}
        borders |= {s + side + d for s in starts[:-1] for d in (-1, 0)}
        is_border = np.isin(np.arange(len(bend)) + 1, list(borders))
        at.append(bend[is_border])
        elsewhere.append(bend[~is_border])
    seams, rest = np.concatenate(at), np.concatenate(elsewhere)
    return float(seams.mean() / rest.mean()) if len(seams) and rest.mean() > 0 else 1.0
