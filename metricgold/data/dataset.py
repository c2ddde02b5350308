"""What every training set shares: which files, which frames, which split, how a frame is cut.

A dataset file (``hypersim.py``, ``virtual_kitti.py``, ``tartanair.py``) adds only its URL
layout, its index of frames, its decoder and its constants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from metricgold.config import DatasetConfig, DatasetName
from metricgold.data.archives import read_part
from metricgold.data.sample import Frame
from metricgold.errors import UserError
from metricgold.geometry import crop_intrinsics

Split = Literal["train", "holdout"]
SPLITS: tuple[Split, ...] = ("train", "holdout")
ReadMetadata = Callable[[str], bytes]
"""Path of a small metadata file, as in the dataset's layout, to its bytes."""


class DatasetError(UserError):
    """Downloaded archives do not hold what the dataset's layout promises."""


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
    """Bytes inside an archive: a zip member, or ``size`` bytes from ``offset`` of a tar."""

    archive: str
    member: str
    offset: int = -1
    size: int = -1


@dataclass(frozen=True)
class FrameRef:
    """Where one frame lies. ``scene`` is a path such as ``hospital/Easy/P000``.

    ``camera`` holds what the dataset's metadata say of the camera, in the dataset's own form.
    """

    key: str
    scene: str
    split: Split
    rgb: Part
    depth: Part
    camera: tuple[float, ...] = ()


class Dataset(ABC):
    """One dataset in its native archive format."""

    name: DatasetName
    metadata_urls: Mapping[str, tuple[str, ...]] = {}
    """Where small metadata files lie besides the mirrors: path to absolute addresses."""

    @abstractmethod
    def remote_files(self, config: DatasetConfig, read: ReadMetadata) -> list[RemoteFile]:
        """Everything a mirror should have, after include, exclude and the known-bad list."""

    @abstractmethod
    def frames(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """Every frame in the downloaded archives, sorted by scene and index, with its
        default split; selection by configuration is done by :meth:`index`."""

    @abstractmethod
    def decode(
        self, ref: FrameRef, rgb_bytes: bytes, depth_bytes: bytes, depth_max_m: float
    ) -> Frame:
        """Native bytes of one frame to a :class:`Frame` in native resolution."""

    def index(self, raw: Path, config: DatasetConfig) -> list[FrameRef]:
        """The frames that are used, with their split, after stride and include/exclude."""
        refs = [ref for ref in self.frames(raw, config) if is_selected(ref.scene, config)]
        return _split_by_config(refs, config)

    def read(self, raw: Path, ref: FrameRef, config: DatasetConfig, depth_max_m: float) -> Frame:
        """One frame from its archives, cropped as configured.

        Raises:
            DatasetError: a member is damaged, or the two pictures do not fit together.
        """
        try:
            rgb_bytes, depth_bytes = read_part(raw, ref.rgb), read_part(raw, ref.depth)
            frame = self.decode(ref, rgb_bytes, depth_bytes, depth_max_m)
        except (OSError, ValueError, KeyError, EOFError, SyntaxError) as error:
            reason = " ".join(str(error).split())
            raise DatasetError(
                f"{self.name} frame {ref.key}: cannot be decoded: {reason}"
            ) from error
        return crop_bottom_centre(frame, config.crop) if config.crop else frame


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
    """Number of the frame in its sequence, the last piece of its key."""
    return int(ref.key.rsplit("/", 1)[-1])


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
    """A :class:`Frame` whose depth is 0 wherever it is not valid; sky is never valid."""
    valid_mask = valid_mask & ~sky_mask
    depth = np.where(valid_mask, depth, 0).astype(np.float32)
    return Frame(ref.key, ref.scene, rgb, depth, valid_mask, sky_mask, intrinsics)


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
