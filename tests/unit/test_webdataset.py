"""Shards exported as WebDataset tars, read back by the webdataset library itself."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from webdataset.tariterators import group_by_keys, tar_file_expander

from metricgold.cli import app
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import ShardReader, encode_frame
from metricgold.data.webdataset_export import export_webdataset
from metricgold.errors import UserError


def made_frame(key: str, scene: str) -> Frame:
    rng = np.random.default_rng(list(key.encode()))
    depth = rng.uniform(0.5, 60, (12, 20)).astype(np.float32)
    sky = np.zeros(depth.shape, bool)
    sky[:2] = True
    valid = ~sky & (rng.uniform(size=depth.shape) > 0.1)
    rgb = rng.integers(0, 255, (*depth.shape, 3), dtype=np.uint8)
    return Frame(key, scene, rgb, np.where(valid, depth, 0), valid, sky, np.diag([9.0, 9.5, 1.0]))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    frames = [made_frame(f"{s}/{i:04d}", s) for s in ("a/x", "b") for i in range(5)]
    with ShardWriter(tmp_path / "shards/one", "train") as writer:
        for frame in frames:
            writer.add(encode_frame(frame, 95))
    return tmp_path / "shards/one/train-000.h5"


def test_every_frame_comes_back_through_webdataset(shard: Path, tmp_path: Path) -> None:
    tars = export_webdataset([shard], tmp_path, "train", tar_bytes=4000)
    assert len(tars) > 1
    assert not list(tmp_path.glob("*.writing"))
    reader = ShardReader([shard])
    samples = []
    for tar in tars:
        with tar.open("rb") as stream:
            members = tar_file_expander([{"url": tar.name, "stream": stream}])
            samples += list(group_by_keys(members))
    assert [sample["__key__"] for sample in samples] == reader.keys
    for index, sample in enumerate(samples):
        stored, frame = reader.encoded(index), reader[index]
        assert sample["jpg"] == stored.rgb
        np.testing.assert_array_equal(np.load(io.BytesIO(sample["depth.npy"])), stored.depth)
        sky = np.asarray(Image.open(io.BytesIO(sample["sky.png"])))
        np.testing.assert_array_equal(sky, frame.sky_mask)
        about = json.loads(sample["json"])
        assert (about["key"], about["scene"]) == (frame.key, frame.scene)
        np.testing.assert_array_equal(about["intrinsics"], frame.intrinsics)


def test_equal_shards_give_equal_tars(shard: Path, tmp_path: Path) -> None:
    one, two = (export_webdataset([shard], tmp_path / n, "train")[0] for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_damaged_shard_leaves_no_tar(shard: Path, tmp_path: Path) -> None:
    data = bytearray(shard.read_bytes())
    place = data.index(ShardReader([shard]).encoded(7).rgb[-60:-20])
    data[place] ^= 1
    shard.write_bytes(data)
    result = CliRunner().invoke(
        app, ["data", "export-webdataset", str(shard.parent), "--out", str(tmp_path / "out")]
    )
    assert isinstance(result.exception, UserError)
    assert "frame b/0002 is damaged" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_the_command_keeps_folders_apart_and_what_is_there(shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["data", "export-webdataset", str(tmp_path / "shards"), "--out", str(out)]
    assert "wrote 1 tars" in CliRunner().invoke(app, arguments).output
    assert [p.relative_to(out).as_posix() for p in out.rglob("*.tar")] == ["one/train-000000.tar"]
    assert "exists already" in str(CliRunner().invoke(app, arguments).exception)


def test_a_name_with_a_dot_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        writer.add(encode_frame(made_frame("a/1.5", "a"), 95))
    with pytest.raises(UserError, match=r"frame a/1\.5: a dot"):
        export_webdataset([tmp_path / "train-000.h5"], tmp_path / "out", "train")
