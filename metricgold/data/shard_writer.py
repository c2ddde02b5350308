"""Writing the HDF5 shards that :mod:`metricgold.data.shards` describes and reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from metricgold.data.dataset import Split
from metricgold.data.hdf5_writing import NewHdf5, new_hdf5
from metricgold.data.shards import SCHEMA_VERSION, SUFFIX, EncodedFrame, scenes_of

SHARD_BYTES = 2 * 10**9
"""A shard is closed after the scene that makes it larger than this."""
_BATCH, _BATCH_BYTES = 64, 64 * 10**6
"""Frames are written together, at most so many and not many more bytes."""


_TABLES = {
    "rgb_end": np.int64,
    "intrinsics": np.float64,
    "key": h5py.string_dtype(),
    "valid_ratio": np.float32,
    "crc32": np.uint32,
}
"""What a scene holds besides pictures, depth and sky, and its types."""


class ShardWriter:
    """Writes ``{split}-000.h5``, ``-001``, …; frames of a scene must come one after another.

    A shard is flushed to disk and takes its name only when it is complete; a new one is
    begun between scenes once ``shard_bytes`` have been written. ``provenance`` says of a scene
    what it was made from; it is kept with the scene, as JSON.

    Raises:
        OSError: a shard cannot be written; names its file.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        shard_bytes: int = SHARD_BYTES,
        provenance: Callable[[str], Mapping[str, Any]] = lambda scene: {},
    ) -> None:
        self._folder, self._split, self._limit = folder, split, shard_bytes
        self._provenance = provenance
        self._new: NewHdf5 | None = None
        self._written = 0
        self._count = 0
        self._batch: list[EncodedFrame] = []
        self._waiting = 0
        self._scene = ""
        self._tables: dict[str, list[Any]] = {}

    def __enter__(self) -> ShardWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._finish()
        finally:
            if self._new is not None:
                self._new.abandon()
                self._new.check()  # the cause, where HDF5 stumbled over it later

    @property
    def _file(self) -> h5py.File:
        assert self._new is not None
        return self._new.file

    @property
    def _part(self) -> Path:
        return self._folder / f".{self._split}-{self._count:03d}{SUFFIX}.part"

    def add(self, frame: EncodedFrame) -> None:
        """Append one frame."""
        if self._batch and self._batch[-1].scene != frame.scene:
            self._flush()
            if self._written > self._limit:
                self._finish()
        self._batch.append(frame)
        self._waiting += frame.depth.nbytes + len(frame.rgb)
        if len(self._batch) == _BATCH or self._waiting > _BATCH_BYTES:
            self._flush()

    def _finish(self) -> None:
        if self._new is None:
            return
        self._end_scene()
        self._new.close()
        os.replace(self._part, self._folder / self._part.name[1:].removesuffix(".part"))
        self._new, self._written, self._count = None, 0, self._count + 1

    def _flush(self) -> None:
        if not self._batch:
            return
        if self._new is None:
            self._new = NewHdf5(self._part)
            self._file.attrs["schema_version"] = SCHEMA_VERSION
        scene = self._batch[0].scene
        if scene in self._file and scene != self._scene:
            raise ValueError(f"frames of scene '{scene}' must be written one after another")
        if scene not in self._file:
            self._end_scene()
            self._new_scene(scene)
        self._append(self._file[scene])
        self._new.check()
        self._batch, self._waiting, self._scene = [], 0, scene

    def _new_scene(self, scene: str) -> None:
        group = self._file.create_group(scene)
        first = self._batch[0]
        depth_codec = hdf5plugin.Blosc2(cname="zstd", clevel=3, filters=hdf5plugin.Blosc2.SHUFFLE)
        bits_codec = hdf5plugin.Blosc2(cname="zstd", clevel=3, filters=hdf5plugin.Blosc2.NOFILTER)
        _create(group, "depth", first.depth.shape, first.depth.dtype, 1, depth_codec)
        _create(group, "sky", first.sky.shape, np.uint8, 1, bits_codec)
        _create(group, "rgb", (), np.uint8, min(1 << 16, max(1 << 12, len(first.rgb) // 4)))
        group.attrs["provenance"] = json.dumps(self._provenance(scene))
        self._tables = {name: [] for name in _TABLES}

    def _end_scene(self) -> None:
        """Write what is small in one piece: it is opened several times as fast as chunks are."""
        if self._tables:
            group = self._file[self._scene]
            for name, dtype in _TABLES.items():
                group.create_dataset(name, data=self._tables[name], dtype=dtype, track_times=False)
            self._tables = {}

    def _append(self, group: h5py.Group) -> None:
        batch = self._batch
        lengths = np.cumsum([len(frame.rgb) for frame in batch])
        self._tables["rgb_end"] += (lengths + group["rgb"].shape[0]).tolist()
        for frame in batch:
            self._tables["intrinsics"].append(frame.intrinsics)
            self._tables["key"].append(frame.key)
            self._tables["valid_ratio"].append(float(np.mean(frame.depth > 0)))
            self._tables["crc32"].append(frame.crc32)
        rows: dict[str, Any] = {
            "depth": [frame.depth for frame in batch],
            "sky": [frame.sky for frame in batch],
            "rgb": np.frombuffer(b"".join(frame.rgb for frame in batch), np.uint8),
        }
        for name, values in rows.items():
            dataset, count = group[name], len(values)
            before = dataset.shape[0]
            dataset.resize(before + count, axis=0)
            if name in ("depth", "sky"):  # a chunk a frame: no need to put them together first
                for row, value in enumerate(values):
                    dataset[before + row] = value
            else:
                dataset[before:] = values
        self._written += int(lengths[-1]) + sum(frame.depth.nbytes // 4 for frame in batch)


def merge_shards(paths: Sequence[Path], target: Path) -> None:
    """One shard with the scenes of several, copied as they are stored.

    Raises:
        ShardError: one of them cannot be read.
    """
    part = target.with_name(f".{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with new_hdf5(part) as merged:
        merged.attrs["schema_version"] = SCHEMA_VERSION
        for path in paths:
            scenes = [scene for scene, _ in scenes_of(path)]
            with h5py.File(path, "r") as source:
                for scene in scenes:
                    parent, _, name = scene.rpartition("/")
                    source.copy(scene, merged.require_group(parent or "/"), name)
    os.replace(part, target)


def _create(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    rows_a_chunk: int,
    codec: Any = None,
) -> None:
    group.create_dataset(
        name,
        shape=(0, *shape),
        maxshape=(None, *shape),
        chunks=(rows_a_chunk, *shape),
        dtype=dtype,
        **(codec or {}),
    )
