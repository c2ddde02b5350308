"""Looking at shards: what is in them, whether every frame is whole, and a picture of some."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from metricgold.data.sample import Frame
from metricgold.data.shards import SUFFIX, ShardError, ShardReader
from metricgold.geometry import fov_y_deg
from metricgold.visualize import NO_DEPTH, Picture, add_scale_bar, colourise, contact_sheet
from metricgold.visualize import depth_limits as limits_of

VALID, SKY = (236, 236, 230), (112, 168, 214)
"""Colours of the mask picture; what is neither valid nor sky has ``NO_DEPTH``'s."""
_TILE_WIDTH = 320


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What one shard says of itself, without decoding a frame.

    Attributes:
        sizes: (height, width) in pixels of each scene's frames, without repetition.
        fov_y_deg, valid_ratio: least, mean and greatest over the frames; degrees and shares.
        rgb_bytes, depth_bytes: mean size of a stored frame.
        made_from: what the shard says of its origin, a line for each that differs.
    """

    path: Path
    bytes: int
    scenes: int
    frames: int
    sizes: tuple[tuple[int, int], ...]
    fov_y_deg: tuple[float, float, float]
    valid_ratio: tuple[float, float, float]
    rgb_bytes: float
    depth_bytes: float
    made_from: tuple[str, ...]


def find_shards(path: Path) -> list[Path]:
    """``path`` itself, or every shard below the folder ``path``.

    Raises:
        ShardError: there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(path.rglob(f"*{SUFFIX}"))
    if not found:
        what = "no shard (*.h5) below this folder" if path.is_dir() else "no such file or folder"
        raise ShardError(f"{path}: {what}; name a shard, or a folder such as artifacts/shards")
    return found


def summarise(path: Path) -> ShardSummary:
    """Summary of one shard; raises :class:`ShardError` where it cannot be read."""
    sizes: dict[tuple[int, int], None] = {}
    made_from: dict[str, None] = {}
    fovs: list[float] = []
    ratios: list[float] = []
    scenes = rgb_bytes = depth_bytes = 0
    with _groups(path) as groups:
        for group in groups.values():
            scenes += 1
            made_from[_origin(group.attrs["provenance"])] = None
            height, width = (int(n) for n in group["depth"].shape[1:])
            sizes[height, width] = None
            fovs += [fov_y_deg(k, height) for k in group["intrinsics"][()]]
            ratios += group["valid_ratio"][()].tolist()
            rgb_bytes += group["rgb"].shape[0]
            depth_bytes += int(group["depth"].id.get_storage_size())
    frames = len(ratios)
    return ShardSummary(
        path=path,
        bytes=path.stat().st_size,
        scenes=scenes,
        frames=frames,
        sizes=tuple(sizes),
        fov_y_deg=_spread(fovs),
        valid_ratio=_spread(ratios),
        rgb_bytes=rgb_bytes / max(1, frames),
        depth_bytes=depth_bytes / max(1, frames),
        made_from=tuple(made_from),
    )


def verify(path: Path) -> Iterator[str | None]:
    """Read a shard to its last frame: yields for each frame None, or what is wrong with it.

    The message names the file and the frame; a shard that cannot be opened gives one message.
    Checked are the CRC32 of every frame, that the picture decodes to the size of the depth,
    and the stored valid ratio.
    """
    try:
        ratios = _valid_ratios(path)
        reader = ShardReader([path])
    except ShardError as error:
        yield str(error)
        return
    try:
        for index, ratio in enumerate(ratios):
            problem = _problem(reader, index, ratio)
            yield f"{path}: frame {reader.keys[index]} {problem}" if problem else None
    finally:
        reader.close()


def preview(paths: Sequence[Path], frames: int) -> Picture:
    """A sheet of ``frames`` evenly spaced frames: picture, depth with its scale, mask.

    In the mask valid pixels are light, sky is blue, everything else dark.

    Raises:
        ShardError: a shard cannot be read.
        ValueError: ``frames`` is not positive.
    """
    if frames < 1:
        raise ValueError(f"frames must be 1 or more, got {frames}")
    reader = ShardReader(paths)
    if not len(reader):
        raise ShardError(f"{paths[0]}: holds no frames; run the stage 'preprocess' first")
    pictures: list[Picture] = []
    titles: list[str] = []
    chosen = np.unique(np.linspace(0, len(reader) - 1, frames).round().astype(int)).tolist()
    for index in chosen:
        frame: Frame = reader[index]
        near, far = limits_of(frame.depth, frame.valid_mask)
        depth = add_scale_bar(_fit(colourise(frame.depth, near, far)), near, far)
        pictures += [_fit(frame.rgb), depth, _fit(_mask_picture(frame))]
        fov = fov_y_deg(frame.intrinsics, frame.depth.shape[0])
        titles += [frame.key, f"depth, FOV {fov:.0f}°", f"valid {frame.valid_mask.mean():.0%}"]
    reader.close()
    return contact_sheet(pictures, columns=3, titles=titles)


def _problem(reader: ShardReader, index: int, stored_ratio: float) -> str:
    """What is wrong with a frame, or nothing."""
    try:
        frame: Frame = reader[index]
    except ShardError as error:
        return str(error).partition(f"frame {reader.keys[index]} ")[2] or str(error)
    if frame.rgb.shape[:2] != frame.depth.shape:
        return f"has a picture of {frame.rgb.shape[:2]} and depth of {frame.depth.shape} pixels"
    counted = frame.valid_mask.mean()
    if not abs(stored_ratio - counted) < 1e-6:
        return f"has a damaged valid ratio ({stored_ratio:.6g} stored, {counted:.6g} counted)"
    return ""


@contextmanager
def _groups(path: Path) -> Iterator[dict[str, h5py.Group]]:
    """Scene to its group, in the order of the frames; HDF5's errors become ours."""
    try:
        reader = ShardReader([path])
        scenes = dict.fromkeys(reader.scene_of(i) for i in range(len(reader)))
        with h5py.File(path, "r", locking=False) as file:
            yield {scene: file[scene] for scene in scenes}
    except ShardError:
        raise
    except Exception as error:  # damaged tables of HDF5's make h5py raise whatever it meets
        raise ShardError(f"{path}: damaged ({error}); run the stage 'preprocess' again") from None


def _valid_ratios(path: Path) -> list[float]:
    with _groups(path) as groups:
        return [r for group in groups.values() for r in group["valid_ratio"][()].tolist()]


def _origin(provenance: str) -> str:
    """Dataset, version that wrote it and licence in a line."""
    told = json.loads(provenance)
    licence = told.get("licence") or "none (rendered)"
    return f"{told.get('dataset')} by metricgold {told.get('metricgold')}, licence: {licence}"


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (float("nan"),) * 3
    return float(np.min(values)), float(np.mean(values)), float(np.max(values))


def _mask_picture(frame: Frame) -> Picture:
    picture = np.empty((*frame.depth.shape, 3), np.uint8)
    picture[:] = NO_DEPTH
    picture[frame.sky_mask] = SKY
    picture[frame.valid_mask] = VALID
    return picture


def _fit(picture: Picture) -> Picture:
    """Enlarged or thinned by a whole factor to about the width of a tile; pixels stay sharp."""
    width = picture.shape[1]
    if width > _TILE_WIDTH:
        step = -(-width // _TILE_WIDTH)
        return picture[::step, ::step]
    scale = max(1, round(_TILE_WIDTH / width))
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)
