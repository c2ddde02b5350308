"""A disk that gets full while HDF5 writes: one error, no crash, nothing half-written."""

from __future__ import annotations

import errno
from pathlib import Path

import h5py
import numpy as np
import pytest

from metricgold.data.hdf5_writing import new_hdf5
from tests.unit.made_frames import make_frame, write_shards
from tests.unit.small_disk import room_for


def fill(file: h5py.File) -> None:
    """Datasets of several kinds, groups, attributes: 200 kB and more."""
    noise = np.random.default_rng(0)
    for scene in range(5):
        group = file.create_group(f"scene{scene}", track_order=False)
        for name in ("depth", "rgb"):
            rows = group.create_dataset(
                name, (0, 64, 64), np.uint8, maxshape=(None, 64, 64), chunks=(1, 64, 64),
                track_times=False, compression="gzip",
            )  # fmt: skip
            for _ in range(5):
                rows.resize(len(rows) + 1, axis=0)
                rows[-1] = noise.integers(0, 256, (64, 64))
        group.create_dataset("keys", data=["a", "b"] * scene, track_times=False)
        group.attrs["made of"] = "x" * 1000


def test_what_is_written_is_read_again_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one.h5", "two.h5"):
        with new_hdf5(tmp_path / name) as file:
            fill(file)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    with h5py.File(tmp_path / "theirs.h5", "w") as file, h5py.File(tmp_path / "one.h5") as ours:
        fill(file)
        for scene in file.values():
            for name, rows in scene.items():
                found = ours[rows.name]
                assert np.array_equal(found[()], rows[()]), name
            assert ours[scene.name].attrs["made of"] == scene.attrs["made of"]


@pytest.mark.parametrize("limit", [0, 100, 1000, *range(2048, 220_000, 8111)])
def test_a_full_disk_is_one_error(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "new.h5"
    with pytest.raises(OSError, match=r"new\.h5") as raised, room_for(limit), new_hdf5(path) as f:
        fill(f)
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_block_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with new_hdf5(tmp_path / "new.h5") as file:
            fill(file)
            file["absent"]

    with pytest.raises(KeyError, match="absent"):
        work()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", range(0, 100_000, 9973))
def test_a_shard_is_whole_or_absent(tmp_path: Path, limit: int) -> None:
    frames = [make_frame(scene, index, (48, 64)) for scene in range(3) for index in range(5)]
    with pytest.raises(OSError, match=r"train-000\.h5\.part"), room_for(limit):
        write_shards(tmp_path, "train", frames)
    assert not list(tmp_path.iterdir())
