"""TartanAir V2 as a second source beside V1."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data import download, preprocess, source
from metricgold.data import tartanair_v2 as v2
from metricgold.data.archive_writer import ArchiveSet
from metricgold.data.native_formats import tartanair_members, tartanair_v2_members
from metricgold.data.procedural import render_scene
from metricgold.data.registry import get_dataset
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.data.tartanair import native_intrinsics
from metricgold.imaging import ImageError
from metricgold.workspace import Workspace

SIZE = (40, 40)


@pytest.fixture(scope="module")
def rendered():
    return render_scene("indoor", 5, native_intrinsics(*SIZE), SIZE, 3)


@pytest.fixture
def mirror(tmp_path: Path, rendered) -> Path:
    members = tartanair_members("office/Easy/P000", rendered)
    for scene in ("House/easy/P001", "RetroOffice/hard/P000"):
        members += tartanair_v2_members(scene, rendered)
    with ArchiveSet(tmp_path / "mirror") as archives:
        for member in members:
            archives.add(member)
    return tmp_path / "mirror"


def test_the_four_channels_are_one_little_endian_float_as_opencv_sees_them() -> None:
    low, high, third, top = struct.pack("<f", 12.3456)
    buffer = io.BytesIO()
    Image.fromarray(np.array([[[third, high, low, top]]], np.uint8), "RGBA").save(buffer, "PNG")
    assert v2.read_depth(buffer.getvalue()) == np.float32(12.3456)


def test_a_depth_picture_of_another_kind_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with pytest.raises(ImageError, match="mode RGB"):
        v2.read_depth(buffer.getvalue())


def test_the_files_of_both_releases_are_listed() -> None:
    reader = get_dataset("tartanair")
    include = ("office/Easy", "v2/House", "v2/RetroOffice/hard")
    for releases, expected in (
        (("v1",), ["office/Easy/image_left.zip", "office/Easy/depth_left.zip"]),
        (("v2",), [f"v2/{e}/Data_{d}/{k}_lcam_front.zip"
                   for e, d in (("House", "easy"), ("House", "hard"), ("RetroOffice", "hard"))
                   for k in ("image", "depth")]),
    ):  # fmt: skip
        settings = DatasetConfig(
            weight=1, mirrors=("x",), train_size=(8, 8), include=include, releases=releases
        )
        files = reader.remote_files(settings, lambda path: b"")
        assert [file.path for file in files] == expected
    assert files[0].urls[0].endswith("/tartanair_v2/House/Data_easy/image_lcam_front.zip")


def test_both_releases_become_shards_that_hold_the_rendered_depth(
    tmp_path: Path, mirror: Path, rendered, tiny_data_config: ProfileConfig
) -> None:
    settings = DatasetConfig(
        weight=1, mirrors=(str(mirror),), train_size=(16, 16), releases=("v1", "v2"),
        include=("office/Easy", "v2/House/easy", "v2/RetroOffice/hard"),
    )  # fmt: skip
    datasets = {**tiny_data_config.datasets, "tartanair": settings}
    config = tiny_data_config.model_copy(update={"datasets": datasets})
    workspace = Workspace(tmp_path / "project")
    source.run(config, workspace, "tartanair")
    download.run(config, workspace, "tartanair")
    report = preprocess.run(config, workspace, "tartanair")
    assert (report["train"]["frames"], report["holdout"]["frames"]) == (6, 3)
    train = ShardReader(shard_paths(workspace.shards("tartanair"), "train"))
    holdout = ShardReader(shard_paths(workspace.shards("tartanair"), "holdout"))
    assert [train.scene_of(0), train.scene_of(3)] == ["office/Easy/P000", "v2/House/easy/P001"]
    assert holdout.scene_of(0) == "v2/RetroOffice/hard/P000"
    for reader, first in ((train, 0), (train, 3), (holdout, 0)):
        for index, truth in enumerate(rendered):
            frame = reader[first + index]
            expected = np.where(np.isfinite(truth.depth), truth.depth, 0)
            near = expected < 80
            np.testing.assert_allclose(frame.depth[near], expected[near], rtol=1e-3)
            np.testing.assert_array_equal(frame.intrinsics, truth.intrinsics)
