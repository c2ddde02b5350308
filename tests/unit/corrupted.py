"""Clean archives of every dataset, ways to damage them, and what comes of it."""

from __future__ import annotations

import functools
import io
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data import download, preprocess, source
from metricgold.data.archive_writer import ArchiveSet, Member
from metricgold.data.archives import close_archives
from metricgold.data.dataset import Dataset, FrameRef
from metricgold.data.procedural_source import Plan, render_members
from metricgold.data.registry import get_dataset
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.workspace import Workspace

TOLERANT = 0.5
"""``max_missing_share`` of the runs in which frames are left out."""
Change = Callable[[bytes], bytes | None]
"""A member's bytes to other bytes; None takes the member out."""


def render_here(plan: Plan, folder: Path) -> None:
    """As ``render_archives``, without the start of other processes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in plan.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    with ArchiveSet(folder) as archives:
        for member in (m for scene in plan.scenes for m in render_members(scene)):
            archives.add(member)
        for member in plan.texts:
            archives.add(member)


def with_settings(config: ProfileConfig, dataset: str, **changes: Any) -> ProfileConfig:
    """``config`` with other settings of one dataset."""
    settings: DatasetConfig = config.datasets[dataset].model_copy(update=changes)  # type: ignore[index]
    return config.model_copy(update={"datasets": {**config.datasets, dataset: settings}})


@dataclass(frozen=True)
class Clean:
    """A downloaded dataset without fault, and what preprocessing made of it."""

    config: ProfileConfig
    dataset: str
    workspace: Workspace
    report: dict[str, Any]
    written: dict[str, int]
    victim: FrameRef

    @property
    def reader(self) -> Dataset:
        """The dataset's reader."""
        return get_dataset(self.dataset)

    @property
    def raw(self) -> Path:
        """The folder of its archives."""
        return self.workspace.raw(self.dataset)


def make_clean(folder: Path, config: ProfileConfig, dataset: str) -> Clean:
    """Render, download and preprocess ``dataset``; the victim is the second frame it kept."""
    workspace = Workspace(folder)
    config = with_settings(config, dataset, max_missing_share=TOLERANT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "render_archives", render_here)
        source.run(config, workspace, dataset)
    download.run(config, workspace, dataset)
    report = preprocess.run(config, workspace, dataset)
    kept = written(workspace, dataset)
    refs = get_dataset(dataset).index(workspace.raw(dataset), config.datasets[dataset])  # type: ignore[index]
    victim = [ref for ref in refs if ref.split == "train" and ref.key in kept][1]
    return Clean(config, dataset, workspace, report, kept, victim)


def written(workspace: Workspace, dataset: str) -> dict[str, int]:
    """Key to CRC32 of every frame in the shards; the reader compares each with its content."""
    found = {}
    for split in ("train", "holdout"):
        for path in shard_paths(workspace.shards(dataset), split):  # type: ignore[arg-type]
            reader = ShardReader([path])
            keys = [frame.key for frame in reader]
            reader.close()
            with h5py.File(path, "r") as file:
                groups = dict.fromkeys(key.rpartition("/")[0] for key in keys)
                crcs = [int(crc) for group in groups for crc in file[group]["crc32"][()]]
            found |= dict(zip(keys, crcs, strict=True))
    return found


def damaged_copy(clean: Clean, folder: Path, damage: Callable[[Path], None]) -> Workspace:
    """A workspace whose downloaded archives have been damaged."""
    workspace = Workspace(folder)
    shutil.copytree(clean.raw, workspace.raw(clean.dataset))
    damage(workspace.raw(clean.dataset))
    return workspace


def read_victim(clean: Clean, workspace: Workspace) -> Frame:
    """The victim as the dataset's reader gives it."""
    settings, raw = clean.config.datasets[clean.dataset], workspace.raw(clean.dataset)  # type: ignore[index]
    refs = [ref for ref in clean.reader.index(raw, settings) if ref.key == clean.victim.key]
    return clean.reader.read(raw, refs[0], settings, clean.config.codec.depth_max_m)


def members_of(path: Path) -> dict[str, bytes]:
    """Every file in a zip or tar."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def rewrite(path: Path, members: Mapping[str, bytes]) -> None:
    """An archive of ``members`` in the place of ``path``, with right checksums."""
    close_archives()
    with ArchiveSet(path.parent) as archives:
        for name, data in members.items():
            archives.add(Member(path.name, name, data))


def change_member(path: Path, member: str, change: Change) -> None:
    """Change (or take out) one member of an archive, and write it anew."""
    members = members_of(path)
    data = change(members.pop(member))
    rewrite(path, members if data is None else {**members, member: data})


def npy(values: NDArray[Any]) -> bytes:
    """An array as an ``.npy``."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def cut(size: int) -> Change:
    """Only the first ``size`` bytes; counted from the end when negative."""
    return lambda data: data[:size]


def flip(place: int, bits: int = 0xFF) -> Change:
    """Other bits in one byte."""

    def change(data: bytes) -> bytes:
        place_here = place % len(data)
        return data[:place_here] + bytes([data[place_here] ^ bits]) + data[place_here + 1 :]

    return change


def instead(data: bytes | None) -> Change:
    """Something else altogether; None takes the member out."""
    return lambda _: data


def on_npy(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """Other numbers in an ``.npy``."""
    return lambda data: npy(change(np.load(io.BytesIO(data))))


def on_picture(
    change: Callable[[Image.Image], Image.Image], kind: str = "PNG", **options: Any
) -> Change:
    """Another picture, stored as ``kind``."""

    def changed(data: bytes) -> bytes:
        buffer = io.BytesIO()
        change(Image.open(io.BytesIO(data))).save(buffer, kind, **options)
        return buffer.getvalue()

    return changed


def on_hdf5(
    change: Callable[[NDArray[Any]], Any] = lambda values: values,
    name: str = "dataset",
    **options: Any,
) -> Change:
    """Other numbers in an HDF5 file, stored in one piece unless ``options`` say otherwise."""

    def changed(data: bytes) -> bytes:
        with h5py.File(io.BytesIO(data), "r") as file:
            values = np.asarray(file["dataset"])
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.create_dataset(name, data=change(values), **options)
        return buffer.getvalue()

    return changed


def repaired_png(data: bytes) -> bytes:
    """The PNG with every chunk's CRC32 made right."""
    out, start = data[:8], 8
    while start + 12 <= len(data):
        stop = start + 8 + int.from_bytes(data[start : start + 4], "big")
        out += data[start:stop] + zlib.crc32(data[start + 4 : stop]).to_bytes(4, "big")
        start = stop + 4
    return out + data[start:]


def then(*changes: Callable[[bytes], bytes]) -> Change:
    """One change after the other."""
    return lambda data: functools.reduce(lambda value, change: change(value), changes, data)


def npy_version_2(data: bytes) -> bytes:
    """The same ``.npy`` with the header of version 2."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.load(io.BytesIO(data)), version=(2, 0))
    return buffer.getvalue()
