"""What every evaluation set shares: its facts, its files, its official frames and its mask.

A set's file adds only its layout, its index of frames, its decoder and its constants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metricgold.data.archives import read_part
from metricgold.data.dataset import DatasetError, Part, RemoteFile
from metricgold.data.evaluation_sets.tree import part_name
from metricgold.data.sample import Frame

_T = TypeVar("_T")


@dataclass(frozen=True)
class PublishedFile(RemoteFile):
    """A file as its publisher offers it.

    Attributes:
        checksum: ``algorithm:hex`` of the whole file, where one is published or known.
        unpacked_bytes: rough size unpacked, of archives that are not read as they are.
    """

    checksum: str | None = None
    unpacked_bytes: int = 0


@dataclass(frozen=True)
class EvaluationRef:
    """One official frame and where its files lie.

    Attributes:
        key: unique in the set, ``scene/index``.
        scene: what frames are grouped by; all frames of a scene have one size.
        parts: role (``rgb``, ``depth``, …) to place, of the files that are there.
        missing: paths of the files that are not; such a frame cannot be read.
        about: what the set's index says of the frame, in the set's own form.
    """

    key: str
    scene: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    about: Any = None


class FrameFiles:
    """The files of one frame, read and decoded so that an error names the file."""

    def __init__(self, raw: Path, ref: EvaluationRef) -> None:
        self._raw, self._ref = raw, ref

    def take(self, role: str, decode: Callable[[bytes], _T]) -> _T:
        """The decoded file in the role ``role``.

        Raises:
            DatasetError: it is damaged; the message names the frame and the file.
        """
        part = self._ref.parts[role]
        try:
            return decode(read_part(self._raw, part))
        except Exception as error:  # decoders raise anything on damaged data
            raise undecodable(f"frame {self._ref.key}: {part_name(part)}", error) from error


class EvaluationSet(ABC):
    """One evaluation set in its native files.

    Attributes:
        name: what it is called on the command line.
        licence: one line: the licence and what it asks for.
        homepage: where the publisher describes it.
        citation: the paper to cite.
        depth_range_m: depth strictly between these is evaluated.
        expected_frames: how many frames the official list has.
        frame_size: height and width in pixels of the largest frames, for the disk budget.
        supply: what the user must bring, where the publisher allows no direct download.
        lists_all: whether :meth:`frames` knows the official frames without their files.
    """

    name: str
    licence: str
    homepage: str
    citation: str
    depth_range_m: tuple[float, float]
    expected_frames: int
    frame_size: tuple[int, int]
    supply: str = ""
    lists_all: bool = True

    def remote_files(self) -> list[PublishedFile]:
        """What to download from the publisher; empty where :attr:`supply` says what to bring."""
        return []

    @abstractmethod
    def frames(self, raw: Path) -> list[EvaluationRef]:
        """The official frames, sorted by scene and key, whether their files are there or not.

        Nothing is decoded but indices. Without :attr:`lists_all` they are those that are
        there, and :attr:`expected_frames` says how many there should be.

        Raises:
            DatasetError: an index or a zip is missing or damaged.
        """

    @abstractmethod
    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        """Decode one frame whose files are all there."""

    def read(self, raw: Path, ref: EvaluationRef) -> Frame:
        """One frame in native resolution; its ``valid_mask`` is the official evaluation mask.

        Raises:
            DatasetError: a file is missing or damaged; the message names the frame and file.
        """
        if ref.missing:
            raise DatasetError(f"frame {ref.key}: {ref.missing[0]} is missing below {raw}")
        try:
            return self._read(raw, ref)
        except DatasetError:
            raise
        except Exception as error:  # files that do not fit together
            raise undecodable(f"frame {ref.key}", error) from error

    def masked(
        self,
        ref: EvaluationRef,
        rgb: NDArray[np.uint8],
        depth: NDArray[np.floating],
        intrinsics: NDArray[np.floating],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Frame:
        """A frame whose mask is: finite, strictly inside the depth range, and ``allowed``.

        Args:
            rgb: uint8 [H, W, 3]. depth: z-depth [H, W] in metres, anything where unknown.
            intrinsics: K [3, 3] in pixels. allowed: further mask [H, W].
        """
        depth = np.asarray(depth, np.float32)
        low, high = self.depth_range_m
        valid = np.isfinite(depth) & (depth > low) & (depth < high)
        if allowed is not None:
            valid &= allowed
        return Frame(
            ref.key,
            ref.scene,
            np.ascontiguousarray(rgb),
            np.where(valid, depth, 0).astype(np.float32),
            valid,
            np.zeros_like(valid),
            np.asarray(intrinsics, np.float64),
        )


def undecodable(what: str, error: Exception) -> DatasetError:
    """The sentence about a damaged file or index."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DatasetError(f"{what}: cannot be decoded: {reason}")


def window_mask(
    shape: tuple[int, ...], rows: tuple[int, int], columns: tuple[int, int]
) -> NDArray[np.bool_]:
    """Mask [H, W] that is true in rows and columns [first, last)."""
    mask = np.zeros(shape, np.bool_)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


def sorted_refs(refs: list[EvaluationRef]) -> list[EvaluationRef]:
    """By scene, then key: the order in which shards take them."""
    return sorted(refs, key=lambda ref: (ref.scene, ref.key))
