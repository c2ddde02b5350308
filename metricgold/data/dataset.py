"""What every training set shares: which files, which frames, which split, how a frame is cut.

A dataset file (``hypersim.py``, ``virtual_kitti.py``, ``tartanair.py``) adds only its URL
layout, its index of frames, its decoder and its constants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from metricgold.config import DatasetConfig, DatasetName
from metricgold.data.archives import read_part
from metricgold.data.sample import Frame
from metricgold.errors import UserError
from metricgold.geometry import crop_intrinsics

_Value = TypeVar("_Value")
Split = Literal["train", "holdout"]
SPLITS: tuple[Split, ...] = ("train", "holdout")
ReadMetadata = Callable[[str], bytes]
"""Path of a small metadata file, as in the dataset's layout, to its bytes."""


MAX_FRAME_PIXELS = 1 << 25
"""33 million; the largest native frame has 0.8. More is damage, or an attack on the memory."""
_FOCAL_RANGE = (0.05, 50.0)
"""Focal length over picture size: fields of view of 1 to 168 degrees. Genuine: 0.6 to 1.2."""
_OFF_CENTRE = 5.0
"""Principal point's distance from the middle over picture size. Genuine: up to 0.8."""


class DatasetError(UserError):
    """Downloaded archives do not hold what the dataset's layout promises."""


class UnfitError(ValueError):
    """Part of a frame cannot be used. ``kind`` is the same for all frames with this fault."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class FrameError(DatasetError):
    """One frame cannot be used; the message names it. ``kind`` as in :class:`UnfitError`."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes an :class:`UnfitError` of this ``kind``."""
    try:
        yield
    except UnfitError:
        raise
    except Exception as error:  # decoders raise anything on damaged data
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UnfitError(kind, detail) from error


@dataclass(frozen=True)
class RemoteFile:
    """One file to download.

    Attributes:
        path: relative to the mirror's base, and to the folder it is stored in.
        urls: absolute addresses tried after every mirror has been.
        members: None to take the whole file; otherwise the members of a zip to take.
        expected_bytes: rough size for the byte budget where the server need not be asked.
    """

    path: str
    urls: tuple[str, ...] = ()
    members: tuple[str, ...] | None = None
    expected_bytes: int | None = None


@dataclass(frozen=True)
class Part:
    """Bytes inside an archive: a zip member, or ``size`` bytes from ``offset`` of a tar.

    ``missing``: the archive should hold it but does not; reading it says so.
    """

    archive: str
    member: str
    offset: int = -1
    size: int = -1
    missing: bool = False


def part_of(archive: str, member: str | None) -> Part:
    """A zip's member, or the lack of one where ``member`` is None."""
    return Part(archive, member or "", missing=member is None)


@dataclass(frozen=True)
class FrameRef:
    """Where one frame lies. ``scene`` is a path such as ``hospital/Easy/P000``.

    ``camera`` holds what the dataset's metadata say of the camera, in the dataset's own form.
    ``number`` counts the frames of a scene where keys do not end in one. ``note`` is whatever
    else the dataset's decoder needs.
    """

    key: str
    scene: str
    split: Split
    rgb: Part
    depth: Part
    camera: tuple[float, ...] = ()
    number: int | None = None
    note: str = ""


class Dataset(ABC):
    """One dataset in its native archive format."""

    name: DatasetName
    licence: str
    """Name of the licence and what it asks for, in one sentence."""
    shard_share: float
    """Size of the shards as a share of what is downloaded, an estimate for the byte budget."""
    metadata_urls: Mapping[str, tuple[str, ...]] = {}
    """Where small metadata files lie besides the mirrors: path to absolute addresses."""

    @abstractmethod
    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """Everything a mirror should have, after include, exclude and the known-bad list."""

    def group_of(self, path: str) -> str | None:
        """Files of one group hold whole scenes between them, and are streamed together.

        None: the file is small and needed with every group. Groups sort as their scenes do.
        """
        return ""

    @abstractmethod
    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Every frame in the downloaded archives, sorted by scene and index, with its
        default split; selection by configuration is done by :meth:`index`."""

    def findings(self, raw: Path) -> list[str]:
        """What looks wrong with the data as a whole, a sentence each; shown and reported.

        Raises:
            DatasetError: something is so wrong that nothing should be made of it.
        """
        return []

    @abstractmethod
    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Native bytes of one frame to a :class:`Frame` in native resolution."""

    def index(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """The frames that are used, with their split, after splits, stride, include/exclude.

        Raises:
            UserError: an archive or a table is damaged, or a frame is there twice.
            FileNotFoundError: one is not there at all.
        """
        try:
            refs = [ref for ref in self.frames(raw, config) if is_selected(ref.scene, config)]
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:  # parsers raise anything on damaged data
            reason = " ".join(str(error).split())
            raise DatasetError(f"{self.name}: {raw} cannot be listed: {reason}") from error
        counts = Counter(ref.key for ref in refs)
        if len(counts) < len(refs):
            key = counts.most_common(1)[0][0]
            raise DatasetError(f"{self.name}: frame {key} is {counts[key]} times in {raw}")
        return [ref for ref in _split_by_config(refs, config) if ref.split in config.splits]

    def read(self, raw: Path, ref: FrameRef, config: DatasetConfig, depth_max_m: float) -> Frame:
        """One frame from its archives, cropped as configured.

        Raises:
            FrameError: a member is missing or damaged, or picture, depth and camera do not
                fit together.
            DatasetError: the frame is smaller than the configured crop.
        """
        try:
            with reading("archive"):
                rgb_bytes, depth_bytes = read_part(raw, ref.rgb), read_part(raw, ref.depth)
            with reading("frame"):
                frame = self.decode(ref, rgb_bytes, depth_bytes, depth_max_m)
        except UnfitError as error:
            message = f"{self.name} frame {ref.key}: cannot be decoded: {error}"
            raise FrameError(message, error.kind) from error
        return crop_bottom_centre(frame, config.crop) if config.crop else frame


def unique(
    archive: Path, found: Iterable[tuple[tuple[str, ...], _Value]]
) -> dict[tuple[str, ...], _Value]:
    """A dict of what was ``found`` in an archive.

    Raises:
        DatasetError: something is there twice, below two folders say.
    """
    table: dict[tuple[str, ...], _Value] = {}
    for key, value in found:
        if key in table:
            raise DatasetError(f"{archive}: holds frame {'/'.join(key)} twice")
        table[key] = value
    return table


def names(entry: str, path: str) -> bool:
    """Whether a list entry (``hospital`` or ``ai_003_001:cam_00``) covers ``path``."""
    entry = entry.replace(":", "/").strip("/")
    return path == entry or path.startswith(entry + "/")


def named_in(entries: Iterable[str], path: str) -> bool:
    """Whether any entry covers ``path``."""
    return any(names(entry, path) for entry in entries)


def is_selected(path: str, config: DatasetConfig) -> bool:
    """Whether ``include`` (empty: everything) and ``exclude`` leave ``path`` in."""
    if named_in(config.exclude, path):
        return False
    return not config.include or named_in(config.include, path)


def may_contain_selected(folder: str, config: DatasetConfig) -> bool:
    """Whether something below ``folder`` can be selected, so that it must be downloaded."""
    if named_in(config.exclude, folder):
        return False
    return is_selected(folder, config) or any(names(folder, e) for e in config.include)


def _split_by_config(refs: list[FrameRef], config: DatasetConfig) -> list[FrameRef]:
    """Apply ``frame_stride``, ``holdout`` and ``holdout_last_frames`` sequence by sequence."""
    chosen: list[FrameRef] = []
    for scene, group in groupby(refs, key=lambda ref: ref.scene):
        sequence = [ref for ref in group if on_stride(frame_number(ref), config)]
        if config.holdout:
            split: Split = "holdout" if named_in(config.holdout, scene) else "train"
            sequence = [replace(ref, split=split) for ref in sequence]
        elif config.holdout_last_frames:
            first_held = max(0, len(sequence) - config.holdout_last_frames)
            sequence = [
                replace(ref, split="holdout" if i >= first_held else "train")
                for i, ref in enumerate(sequence)
            ]
        chosen.extend(sequence)
    return chosen


def frame_number(ref: FrameRef) -> int:
    """Number of the frame in its sequence: its own, or else the last piece of its key."""
    return int(ref.key.rsplit("/", 1)[-1]) if ref.number is None else ref.number


def on_stride(frame: int, config: DatasetConfig) -> bool:
    """Whether frame number ``frame`` is one of every ``frame_stride``."""
    return frame % config.frame_stride == 0


def masked_frame(
    ref: FrameRef,
    rgb: np.ndarray,
    depth: np.ndarray,
    valid_mask: np.ndarray,
    sky_mask: np.ndarray,
    intrinsics: np.ndarray,
) -> Frame:
    """A :class:`Frame` whose depth is 0 wherever it is not valid; sky is never valid.

    Raises:
        UnfitError: picture and depth differ in size, or K is no camera's of such a picture.
    """
    if rgb.shape != (*depth.shape, 3):
        shown, there = ("x".join(map(str, a.shape[:2])) for a in (rgb, depth))
        raise UnfitError("size", f"the picture has {shown} pixels, the depth {there}")
    _check_camera(intrinsics, *depth.shape)
    valid_mask = valid_mask & ~sky_mask
    depth = np.where(valid_mask, depth, 0).astype(np.float32)
    return Frame(ref.key, ref.scene, rgb, depth, valid_mask, sky_mask, intrinsics)


def _check_camera(intrinsics: np.ndarray, height: int, width: int) -> None:
    """Refuse a K [3, 3] that is singular, not finite, or far from any camera of that size."""
    size = np.array([width, height], float)
    low, high = _FOCAL_RANGE
    with np.errstate(all="ignore"):
        focal, centre = np.diag(intrinsics)[:2] / size, intrinsics[:2, 2] / size - 0.5
        fine = (low < focal) & (focal < high) & (np.abs(centre) < _OFF_CENTRE)  # False for NaN
    if not (fine.all() and abs(intrinsics[0, 1]) < intrinsics[0, 0]):
        shown = ", ".join(f"{n:.6g}" for n in (*np.diag(intrinsics)[:2], *intrinsics[:2, 2]))
        raise UnfitError("camera", f"fx, fy, cx, cy = {shown} cannot be of {width}x{height} pixels")


def crop_bottom_centre(frame: Frame, size: tuple[int, int]) -> Frame:
    """Cut to ``size`` (H, W), keeping the bottom rows and the centre columns; K follows.

    Raises:
        DatasetError: the frame is smaller than the crop.
    """
    height, width = frame.depth.shape
    if height < size[0] or width < size[1]:
        raise DatasetError(
            f"frame {frame.key} is {height}x{width}, smaller than the crop {size[0]}x{size[1]}; "
            "set datasets.<name>.crop to at most the frame size"
        )
    top, left = height - size[0], (width - size[1]) // 2
    window = (slice(top, top + size[0]), slice(left, left + size[1]))
    return replace(
        frame,
        rgb=frame.rgb[window],
        depth=frame.depth[window],
        valid_mask=frame.valid_mask[window],
        sky_mask=frame.sky_mask[window],
        intrinsics=np.asarray(crop_intrinsics(frame.intrinsics, top, left), np.float64),
    )
