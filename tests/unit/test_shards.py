"""What is written into shards is what is read from them, or the reader says what is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricgold.config import PreprocessConfig, ProfileConfig
from metricgold.data import download, preprocess, source
from metricgold.data.conversion import rejection
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import (
    ShardError,
    ShardReader,
    decode_frame,
    encode_frame,
    shard_paths,
)
from metricgold.data.statistics import LOG_DEPTH_EDGES, depth_percentiles
from metricgold.errors import UserError
from metricgold.workspace import Workspace

HEIGHT, WIDTH = 20, 30


def _frame(key: str, scene: str, seed: int = 0) -> Frame:
    rng = np.random.default_rng([seed, *key.encode()])
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = np.stack([x * 8, y * 12, (x + y) * 5], axis=-1)
    rgb = (smooth + rng.integers(0, 10)).clip(0, 255).astype(np.uint8)
    depth = np.exp(rng.uniform(np.log(0.1), np.log(80), (HEIGHT, WIDTH))).astype(np.float32)
    sky = rng.random((HEIGHT, WIDTH)) < 0.2
    valid = ~sky & (rng.random((HEIGHT, WIDTH)) < 0.9)
    k = np.array([[30 + rng.random(), rng.random(), 14.0], [0, 31.0, 9.5], [0, 0, 1]])
    return Frame(key, scene, rgb, np.where(valid, depth, 0).astype(np.float32), valid, sky, k)


def _write(folder: Path, scenes: int = 3, frames: int = 5, **options: int) -> list[Frame]:
    written = []
    with ShardWriter(folder, "train", **options) as writer:
        for s in range(scenes):
            for i in range(frames):
                written.append(_frame(f"env/Easy/P{s:03d}/{i:06d}", f"env/Easy/P{s:03d}"))
                writer.add(encode_frame(written[-1], 98))
    return written


def _assert_same(got: Frame, expected: Frame) -> None:
    assert (got.key, got.scene) == (expected.key, expected.scene)
    assert np.array_equal(got.valid_mask, expected.valid_mask)
    assert np.array_equal(got.sky_mask, expected.sky_mask)
    assert np.array_equal(got.intrinsics, expected.intrinsics)
    assert got.depth.dtype == np.float32
    np.testing.assert_allclose(got.depth, expected.depth, rtol=2.0**-11, atol=0)
    difference = np.abs(got.rgb.astype(int) - expected.rgb.astype(int))
    assert difference.mean() < 1.5


def test_round_trip_in_order(tmp_path: Path) -> None:
    written = _write(tmp_path)
    reader = ShardReader(shard_paths(tmp_path, "train"))
    assert reader.keys == [frame.key for frame in written]
    assert len(reader) == 15
    for i in np.random.default_rng(0).permutation(15).tolist():
        _assert_same(reader[i], written[i])
        assert reader.scene_of(i) == written[i].scene
    _assert_same(reader[-1], written[-1])
    assert [frame.key for frame in reader[2:4]] == reader.keys[2:4]
    with pytest.raises(IndexError, match="frame 15 of 15"):
        reader[15]
    assert len(list(reader)) == 15  # iteration ends


@settings(max_examples=25, deadline=None)
@given(
    depth=st.lists(st.floats(2.0**-9, 512, width=32), min_size=6, max_size=6),
    valid=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_depth_keeps_eleven_bits(depth: list[float], valid: list[bool]) -> None:
    mask = np.array(valid).reshape(2, 3)
    metres = np.where(mask, np.array(depth, np.float32).reshape(2, 3), 0).astype(np.float32)
    rgb = np.zeros((2, 3, 3), np.uint8)
    frame = Frame("s/0", "s", rgb, metres, mask, ~mask, np.eye(3))
    got = decode_frame(encode_frame(frame, 98))
    np.testing.assert_allclose(got.depth, metres, rtol=2.0**-11, atol=0)
    assert np.array_equal(got.valid_mask, mask)
    assert np.array_equal(got.sky_mask, ~mask)


def test_many_frames_and_several_shards(tmp_path: Path) -> None:
    written = _write(tmp_path, scenes=4, frames=70, shard_bytes=1000)
    paths = shard_paths(tmp_path, "train")
    assert [path.name for path in paths] == [f"train-00{i}.h5" for i in range(4)]
    reader = ShardReader(paths)
    assert reader.keys == [frame.key for frame in written]
    for i in (0, 63, 64, 69, 70, 279):
        _assert_same(reader[i], written[i])


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        _write(tmp_path / folder)
    first, second = (shard_paths(tmp_path / f, "train")[0].read_bytes() for f in ("a", "b"))
    assert first == second


def _write_frames(folder: Path, names: str, fail: bool = False) -> None:
    with ShardWriter(folder, "train") as writer:
        for name in names:
            writer.add(encode_frame(_frame(f"{name}/0", name), 98))
        if fail:
            raise RuntimeError("stop")


def test_an_error_leaves_no_shard(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        _write_frames(tmp_path, "ab", fail=True)
    assert list(tmp_path.iterdir()) == []


def test_scenes_must_not_be_mixed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scene 'a' must be written"):
        _write_frames(tmp_path, "aba")


def _damage(path: Path, scene: str, name: str, row: int) -> None:
    with h5py.File(path, "r+") as file:
        data = file[scene][name][row]
        flipped = np.frombuffer(np.asarray(data).tobytes(), np.uint8).copy()
        flipped[0] ^= 1
        file[scene][name][row] = flipped.view(np.asarray(data).dtype).reshape(np.shape(data))


@pytest.mark.parametrize("name", ["depth", "sky", "intrinsics", "crc32"])
def test_a_changed_bit_is_found_and_named(tmp_path: Path, name: str) -> None:
    _write(tmp_path)
    (path,) = shard_paths(tmp_path, "train")
    _damage(path, "env/Easy/P001", name, 2)
    reader = ShardReader([path])
    _ = reader[6], reader[8]
    with pytest.raises(ShardError, match=r"train-000\.h5: frame env/Easy/P001/000002 is damaged"):
        reader[7]


def test_a_changed_byte_of_the_jpeg_is_found(tmp_path: Path) -> None:
    _write(tmp_path)
    (path,) = shard_paths(tmp_path, "train")
    with h5py.File(path, "r+") as file:
        group = file["env/Easy/P000"]
        end = int(group["rgb_end"][1])
        group["rgb"][end + 300] ^= 4
    with pytest.raises(ShardError, match="frame env/Easy/P000/000002 is damaged"):
        ShardReader([path])[2]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0.0, 0.999))
def test_a_flipped_byte_anywhere_never_gives_a_wrong_frame(tmp_path: Path, where: float) -> None:
    """Whatever byte of the file flips: an error by name, or every frame is still right."""
    folder = tmp_path / "shards"
    written = _write(folder, scenes=1, frames=3)
    (path,) = shard_paths(folder, "train")
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 0x10
    broken = tmp_path / "broken.h5"
    broken.write_bytes(data)
    try:
        for got, expected in zip(ShardReader([broken]), written, strict=False):
            if got.key == expected.key:
                _assert_same(got, expected)
    except ShardError as error:
        assert "broken.h5" in str(error)  # noqa: PT017  (either outcome is right)


def test_missing_and_foreign_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"gone\.h5: no such shard; run the stage 'preprocess'"):
        ShardReader([tmp_path / "gone.h5"])
    (tmp_path / "bad.h5").write_bytes(b"not HDF5")
    with pytest.raises(ShardError, match=r"bad\.h5: not an HDF5 file or cut short"):
        ShardReader([tmp_path / "bad.h5"])
    _write(tmp_path)
    (path,) = shard_paths(tmp_path, "train")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ShardError, match=r"cut\.h5"):
        ShardReader([tmp_path / "cut.h5"])
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(ShardError, match="version 99, this code reads 2"):
        ShardReader([path])


def _mean_depths(reader: ShardReader) -> list[float]:
    return [float(reader[i].depth.mean()) for i in range(len(reader))]


def _report(reader: ShardReader, answers: Connection) -> None:
    answers.send((_mean_depths(reader), reader._owner == os.getpid()))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_every_scene_says_what_it_was_made_from(
    project: Workspace, tiny_data_config: ProfileConfig
) -> None:
    preprocess.run(tiny_data_config, project, "tartanair")
    reader = ShardReader(shard_paths(project.shards("tartanair"), "train"))
    manifest = json.loads((project.raw("tartanair") / "manifest.json").read_text())
    hashes = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    for index in range(len(reader)):
        told = reader.provenance(index)
        assert (told["dataset"], told["rgb_quality"], told["depth_max_m"]) == ("tartanair", 95, 80)
        assert len(told["archives"]) == 2
        for line in told["archives"]:
            digest, path = line.split("  ")
            assert hashes[path] == digest
            assert reader.scene_of(index).startswith(path.rpartition("/")[0])
    reader.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_used_reader_works_in_workers(tmp_path: Path, method: str) -> None:
    """A child opens files of its own: with fork it would inherit the parent's handles."""
    _write(tmp_path)
    reader = ShardReader(shard_paths(tmp_path, "train"))
    expected = _mean_depths(reader)  # handles are open now
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    children = [context.Process(target=_report, args=(reader, there)) for _ in range(2)]
    for child in children:
        child.start()
    assert [here.recv() for _ in children] == [(expected, True)] * 2
    for child in children:
        child.join()
    assert _mean_depths(pickle.loads(pickle.dumps(reader))) == expected
    reader.close()
    assert _mean_depths(reader) == expected


def test_split_names(tmp_path: Path) -> None:
    _write(tmp_path)
    assert shard_paths(tmp_path, "holdout") == []


# --- preprocessing --------------------------------------------------------------------------

FILTERS = PreprocessConfig(min_valid_ratio=0.3, min_depth_range_m=0.5, rgb_quality=98, workers=1)


def test_useless_frames_are_rejected_with_a_reason() -> None:
    good = _frame("s/0", "s")
    assert rejection(good, FILTERS) == ""
    parts = {**good.__dict__}
    nothing = np.zeros_like(good.valid_mask)
    assert rejection(Frame(**{**parts, "valid_mask": nothing}), FILTERS) == "too few valid pixels"
    flat = np.where(good.valid_mask, np.float32(2.0), np.float32(0))
    assert rejection(Frame(**{**parts, "depth": flat}), FILTERS) == "depth range too small"
    grey = np.full_like(good.rgb, 100)
    assert rejection(Frame(**{**parts, "rgb": grey}), FILTERS) == "picture is blank"


def test_percentiles_of_known_depths() -> None:
    edges = LOG_DEPTH_EDGES
    depths = np.concatenate([np.full(60, 2.0), np.full(40, 20.0)])
    found = depth_percentiles(np.histogram(np.log(depths), edges)[0])
    for name, expected in {"p0": 2, "p50": 2, "p75": 20, "p100": 20}.items():
        assert found[name] == pytest.approx(expected, rel=0.01)
    assert depth_percentiles(np.zeros(len(edges) - 1, np.int64)) == {}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_data_config: ProfileConfig) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("project"))
    source.run(tiny_data_config, workspace, "tartanair")
    download.run(tiny_data_config, workspace, "tartanair")
    return workspace


def _with(config: ProfileConfig, **changes: object) -> ProfileConfig:
    settings = config.datasets["tartanair"].model_copy(update=changes)
    return config.model_copy(update={"datasets": {**config.datasets, "tartanair": settings}})


def test_workers_do_not_change_the_shards(
    project: Workspace, tiny_data_config: ProfileConfig
) -> None:
    contents = []
    for workers in (1, 2):
        filters = tiny_data_config.preprocess.model_copy(update={"workers": workers})
        config = tiny_data_config.model_copy(update={"preprocess": filters})
        preprocess.run(config, project, "tartanair")
        folder = project.shards("tartanair")
        contents.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"train-000.h5", "holdout-000.h5", "report.json"}


def test_the_last_frames_of_a_sequence_are_held_out(
    project: Workspace, tiny_data_config: ProfileConfig
) -> None:
    config = _with(tiny_data_config, holdout_last_frames=2, exclude=("office2", "oldtown"))
    preprocess.run(config, project, "tartanair")
    folder = project.shards("tartanair")
    held = ShardReader(shard_paths(folder, "holdout")).keys
    train = ShardReader(shard_paths(folder, "train")).keys
    assert {key[-6:] for key in held} == {"000004", "000005"}
    assert {key[-6:] for key in train} <= {f"00000{i}" for i in range(4)}


def test_stride_and_named_holdout(project: Workspace, tiny_data_config: ProfileConfig) -> None:
    config = _with(tiny_data_config, frame_stride=3, holdout=("hospital",))
    preprocess.run(config, project, "tartanair")
    folder = project.shards("tartanair")
    held = ShardReader(shard_paths(folder, "holdout")).keys
    train = ShardReader(shard_paths(folder, "train")).keys
    assert {key.split("/")[0] for key in held} == {"hospital"}
    assert "hospital" not in {key.split("/")[0] for key in train}
    assert {int(key[-6:]) % 3 for key in held + train} == {0}


def test_no_frames_left_is_told(project: Workspace, tiny_data_config: ProfileConfig) -> None:
    with pytest.raises(UserError, match=r"no frame found .*datasets\.tartanair\.include"):
        preprocess.run(_with(tiny_data_config, include=("ocean",)), project, "tartanair")
    everything = ("hospital", "office", "office2", "oldtown", "neighborhood")
    with pytest.raises(UserError, match="no training frame is left"):
        preprocess.run(_with(tiny_data_config, holdout=everything), project, "tartanair")


def test_without_a_download(tmp_path: Path, tiny_data_config: ProfileConfig) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: no such file; run the stage 'download'"):
        preprocess.run(tiny_data_config, Workspace(tmp_path), "tartanair")
