"""HDF5 shards: what preprocessing writes and training reads.

A shard has one group a scene; in it ``depth`` [N, H, W] float16 or float32 metres (0: not
valid; one chunk a frame, Blosc2-zstd), ``sky`` [N, bytes] packed bits, ``rgb`` all JPEG or PNG
bytes one after the other with ``rgb_end`` [N] their ends, ``intrinsics`` [N, 3, 3], ``key``,
``valid_ratio`` and ``crc32`` [N], and the attribute ``provenance`` (JSON). float16 keeps depth
within a relative error of 2^-11.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import h5py
import hdf5plugin  # noqa: F401  (registers Blosc2 with h5py)
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold.data.dataset import Split
from metricgold.data.sample import Frame
from metricgold.errors import UserError

SCHEMA_VERSION = 2
SUFFIX = ".h5"
_T = TypeVar("_T")


class ShardError(UserError):
    """A shard is missing, damaged or of another version; the message names it and the frame."""


@dataclass(frozen=True)
class EncodedFrame:
    """A frame as a shard stores it."""

    key: str
    scene: str
    rgb: bytes  # JPEG or PNG
    depth: NDArray[np.floating]  # [H, W], float16 or float32 metres, 0 where not valid
    sky: NDArray[np.uint8]  # [ceil(H W / 8)], packed bits
    intrinsics: NDArray[np.float64]  # [3, 3]

    @cached_property
    def crc32(self) -> int:
        """Over everything that is decoded, in the order of the fields."""
        pieces = (
            self.key.encode(),
            self.rgb,
            np.ascontiguousarray(self.depth).tobytes(),
            self.sky.tobytes(),
            np.ascontiguousarray(self.intrinsics, dtype=np.float64).tobytes(),
        )
        crc = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
        return crc


def encode_frame(frame: Frame, rgb_quality: int | None) -> EncodedFrame:
    """A frame as a shard stores it, masks folded into depth and sky.

    Args:
        rgb_quality: JPEG (4:4:4) quality 1..100 beside float16 depth, for training; None
            keeps everything: PNG and float32 depth, for evaluation.
    """
    buffer = io.BytesIO()
    picture = Image.fromarray(frame.rgb)
    if rgb_quality is None:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=rgb_quality, subsampling=0)
    depth = np.where(frame.valid_mask, frame.depth, 0)
    return EncodedFrame(
        frame.key,
        frame.scene,
        buffer.getvalue(),
        depth.astype(np.float32 if rgb_quality is None else np.float16),
        np.packbits(frame.sky_mask),
        np.asarray(frame.intrinsics, dtype=np.float64),
    )


def decode_frame(encoded: EncodedFrame) -> Frame:
    """The inverse of :func:`encode_frame`, up to JPEG and float16 where these were used."""
    rgb = np.asarray(Image.open(io.BytesIO(encoded.rgb)).convert("RGB"))
    depth = encoded.depth.astype(np.float32)
    sky = np.unpackbits(encoded.sky, count=depth.size).reshape(depth.shape).astype(bool)
    return Frame(encoded.key, encoded.scene, rgb, depth, depth > 0, sky, encoded.intrinsics)


def shard_paths(folder: Path, split: Split) -> list[Path]:
    """The shards of one split in order; empty if the split has none."""
    return sorted(folder.glob(f"{split}-*{SUFFIX}"))


class ShardReader(Sequence[Frame]):
    """Random access to the frames of several shards, in the order they were written.

    Files are opened lazily and anew in each process, so that readers may be forked or sent
    to spawned workers. Every frame's CRC32 is checked.

    Raises:
        ShardError: a shard is missing, damaged or of another version.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [Path(path) for path in paths]
        self._handles: dict[Path, h5py.File] = {}
        self._owner = os.getpid()
        self.keys: list[str] = []
        self._starts: list[int] = []
        self._groups: list[tuple[Path, str]] = []
        for path in self._paths:
            for scene, keys in scenes_of(path):
                self._starts.append(len(self.keys))
                self._groups.append((path, scene))
                self.keys.extend(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}, "_owner": 0}

    def scene_of(self, index: int) -> str:
        """Scene of a frame, without reading it."""
        return self._locate(index)[1]

    def __getitem__(self, index: Any) -> Any:
        """Frame number ``index``, checked against its CRC32; a slice gives a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._read(index, decode_frame)

    def encoded(self, index: int) -> EncodedFrame:
        """Frame number ``index`` as it is stored, checked against its CRC32."""
        return self._read(index, lambda frame: frame)

    def _read(self, index: int, finish: Callable[[EncodedFrame], _T]) -> _T:
        path, scene, row = self._locate(index)
        key = self.keys[index]
        try:
            group = h5py.h5g.open(self._open(path).id, scene.encode())
            encoded = _read_row(group, scene, row)
            if encoded.crc32 != int(_rows(group, "crc32", row)[0]) or encoded.key != key:
                raise ValueError("CRC32 differs")
            return finish(encoded)
        except ShardError:
            raise
        except Exception as error:  # damaged tables of HDF5's make h5py raise whatever it meets
            reason = " ".join(str(error).split())
            raise ShardError(f"{path}: frame {key} is damaged ({reason}); {_ADVICE}") from None

    def _locate(self, index: int) -> tuple[Path, str, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        index %= len(self)
        position = bisect_right(self._starts, index) - 1
        return (*self._groups[position], index - self._starts[position])

    def _open(self, path: Path) -> h5py.File:
        if self._owner != os.getpid():
            self._handles, self._owner = {}, os.getpid()
        if path not in self._handles:
            self._handles[path] = _open_shard(path)
        return self._handles[path]

    def provenance(self, index: int) -> dict[str, Any]:
        """What the scene of a frame was made from: dataset, licence, archives and settings.

        Raises:
            ShardError: it is damaged.
        """
        path, scene, _ = self._locate(index)
        try:
            found = json.loads(self._open(path)[scene].attrs["provenance"])
        except ShardError:
            raise
        except Exception as error:  # as above
            raise ShardError(f"{path}: scene {scene} is damaged ({error}); {_ADVICE}") from None
        return dict(found)

    def close(self) -> None:
        """Close this process's handles; the next read opens them again."""
        for handle in self._handles.values():
            handle.close()
        self._handles = {}


_ADVICE = "delete the folder and run the stage 'preprocess' again"


def _rows(
    group: h5py.h5g.GroupID, name: str, start: int, stop: int | None = None
) -> NDArray[np.generic]:
    """Rows ``start`` to ``stop`` (or the one) of an array, by h5py's low-level calls.

    A scene may hold a single frame, and then the calls that people use take longer than reading.
    """
    dataset = h5py.h5d.open(group, name.encode())
    stop = start + 1 if stop is None else stop
    if not 0 <= start <= stop <= dataset.shape[0]:
        raise IndexError(f"{name} has no rows {start} to {stop}")
    rows = np.empty((stop - start, *dataset.shape[1:]), dataset.dtype)
    if rows.size:
        there = dataset.get_space()
        there.select_hyperslab((start,) + (0,) * (rows.ndim - 1), rows.shape)
        dataset.read(h5py.h5s.create_simple(rows.shape), there, rows)
    return rows


def _read_row(group: h5py.h5g.GroupID, scene: str, row: int) -> EncodedFrame:
    ends = _rows(group, "rgb_end", max(row - 1, 0), row + 1)
    start = int(ends[0]) if row else 0
    return EncodedFrame(
        key=_rows(group, "key", row)[0].decode(),
        scene=scene,
        rgb=_rows(group, "rgb", start, int(ends[-1])).tobytes(),
        depth=_rows(group, "depth", row)[0],
        sky=_rows(group, "sky", row)[0],
        intrinsics=_rows(group, "intrinsics", row)[0],
    )


def _open_shard(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such shard; run the stage 'preprocess' first") from None
    except OSError:
        raise ShardError(f"{path}: not an HDF5 file or cut short; {_ADVICE}") from None
    version = file.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ShardError(f"{path}: version {version}, this code reads {SCHEMA_VERSION}; {_ADVICE}")
    return file


def scenes_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(scene, keys) of a shard, sorted by scene path as they were written.

    Raises:
        ShardError: it cannot be read.
    """
    with _open_shard(path) as file:
        try:
            for name in sorted(_scene_groups(file.id)):
                group = h5py.h5g.open(file.id, name.encode())
                count = h5py.h5d.open(group, b"key").shape[0]
                yield name, [key.decode() for key in _rows(group, "key", 0, count)]
        except Exception as error:  # as in ShardReader
            raise ShardError(f"{path}: damaged ({error}); {_ADVICE}") from None


def _scene_groups(group: h5py.h5g.GroupID, above: str = "") -> Iterator[str]:
    """Names of the groups of frames below a group."""
    for name in group:
        below = h5py.h5g.open(group, name)
        path = above + name.decode()
        if below.links.exists(b"crc32"):
            yield path
        else:
            yield from _scene_groups(below, path + "/")
