"""Rendered depth and camera survive each dataset's native archive format."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metricgold.config import DatasetConfig, ProceduralConfig
from metricgold.data import hypersim, tartanair, virtual_kitti
from metricgold.data.archive_writer import ArchiveSet
from metricgold.data.dataset import Dataset, FrameRef, Part, crop_bottom_centre
from metricgold.data.hypersim import Hypersim
from metricgold.data.native_formats import (
    CAMERA_COLUMNS,
    SPLIT_COLUMNS,
    hypersim_camera_csv,
    hypersim_camera_matrix,
    hypersim_members,
    hypersim_split_csv,
    tartanair_members,
    virtual_kitti_intrinsics,
    virtual_kitti_members,
)
from metricgold.data.procedural import Rendered, render_scene
from metricgold.data.procedural_source import HOLDOUT_SEED, plan_scenes, render_archives
from metricgold.data.registry import get_dataset
from metricgold.data.sample import Frame
from metricgold.data.tartanair import TartanAir
from metricgold.data.virtual_kitti import VirtualKitti
from metricgold.errors import UserError
from metricgold.geometry import hypersim_intrinsics, intrinsics_from_fov

SIZE = (24, 40)
SETTINGS = DatasetConfig(weight=1, mirrors=("unused",), train_size=SIZE)
HALF_STEP = 2.0**-11


def _world(intrinsics: NDArray[np.floating], seed: int = 3) -> list[Rendered]:
    """Two views whose depth spans the formats' range, with sky in a corner."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(2):
        depth = np.exp(rng.uniform(np.log(0.2), np.log(60.0), SIZE)).astype(np.float32)
        depth[:3, :5] = np.inf
        radiance = rng.uniform(0.0, 4.0, (*SIZE, 3)).astype(np.float32)
        frames.append(Rendered(radiance, depth, np.asarray(intrinsics, np.float64)))
    return frames


def _frames(dataset: Dataset, raw: Path, config: DatasetConfig = SETTINGS) -> list[Frame]:
    return [dataset.read(raw, ref, config, 80.0) for ref in dataset.index(raw, config)]


def _check(frame: Frame, truth: Rendered, relative: float = 0.0, absolute: float = 0.0) -> None:
    solid = np.isfinite(truth.depth)
    assert np.array_equal(frame.valid_mask, solid)
    np.testing.assert_allclose(frame.depth[solid], truth.depth[solid], rtol=relative, atol=absolute)
    assert (frame.depth[~solid] == 0).all()
    np.testing.assert_allclose(frame.intrinsics, truth.intrinsics, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.1, -0.2), (-0.05, 0.25)])
def test_hypersim_round_trip(tmp_path: Path, shift: tuple[float, float]) -> None:
    matrix = hypersim_camera_matrix(65.0, SIZE, shift)
    intrinsics, _ = hypersim_intrinsics(matrix, *SIZE)
    truth = _world(intrinsics)
    scene = "ai_001_001"
    with ArchiveSet(tmp_path) as archives:
        for member in hypersim_members(scene, "cam_00", truth):
            archives.add(member)
    (tmp_path / hypersim.CAMERA_CSV).write_text(hypersim_camera_csv({scene: matrix}, SIZE))
    rows = [(scene, "cam_00", 0, "train"), (scene, "cam_00", 1, "test")]
    (tmp_path / hypersim.SPLIT_CSV).write_text(hypersim_split_csv(rows))
    refs = Hypersim().index(tmp_path, SETTINGS)
    assert [ref.split for ref in refs] == ["train", "holdout"]
    for frame, expected in zip(_frames(Hypersim(), tmp_path), truth, strict=True):
        _check(frame, expected, relative=1.001 * HALF_STEP)
        assert not frame.sky_mask.any()
    if any(shift):
        assert abs(intrinsics[1, 2] - (SIZE[0] - 1) / 2) > 2  # off-centre indeed


def test_virtual_kitti_round_trip(tmp_path: Path) -> None:
    truth = _world(intrinsics_from_fov(71.3, *SIZE))
    k = truth[0].intrinsics
    with ArchiveSet(tmp_path) as archives:
        for member in virtual_kitti_members("Scene02/clone", "Camera_1", 7, truth):
            archives.add(member)
        text = virtual_kitti_intrinsics([(8, 1, k), (7, 1, k)]).encode()
        members = virtual_kitti_members("Scene01/fog", "Camera_0", 0, truth)
        for member in members:
            archives.add(member)  # a variation that is not used
        archives.add(type(members[0])(virtual_kitti.TEXT_TAR, "Scene02/clone/intrinsic.txt", text))
    refs = VirtualKitti().index(tmp_path, SETTINGS)
    assert [ref.key for ref in refs] == [f"Scene02/clone/Camera_1/0000{i}" for i in (7, 8)]
    for frame, expected in zip(_frames(VirtualKitti(), tmp_path), truth, strict=True):
        _check(frame, expected, absolute=0.005001)
        assert np.array_equal(frame.sky_mask, ~np.isfinite(expected.depth))


def test_virtual_kitti_far_depth_saturates_and_is_not_valid(tmp_path: Path) -> None:
    truth = _world(intrinsics_from_fov(71.3, *SIZE))[:1]
    truth[0].depth[10, 10:13] = (79.9, 90.0, 700.0)
    with ArchiveSet(tmp_path) as archives:
        for member in virtual_kitti_members("Scene02/clone", "Camera_0", 0, truth):
            archives.add(member)
        text = virtual_kitti_intrinsics([(0, 0, truth[0].intrinsics)]).encode()
        archives.add(type(member)(virtual_kitti.TEXT_TAR, "Scene02/clone/intrinsic.txt", text))
    (frame,) = _frames(VirtualKitti(), tmp_path)
    assert frame.valid_mask[10, 10:13].tolist() == [True, False, False]
    assert frame.depth[10, 11:13].tolist() == [0.0, 0.0]


def test_tartanair_round_trip_is_exact(tmp_path: Path) -> None:
    truth = _world(tartanair.native_intrinsics(*SIZE))
    with ArchiveSet(tmp_path) as archives:
        for member in tartanair_members("office/Easy/P003", truth):
            archives.add(member)
    for frame, expected in zip(_frames(TartanAir(), tmp_path), truth, strict=True):
        _check(frame, expected)
        assert np.array_equal(frame.sky_mask, ~np.isfinite(expected.depth))
        assert frame.scene == "office/Easy/P003"


def test_native_tartanair_camera_is_the_published_one() -> None:
    expected = [[320, 0, 320], [0, 320, 240], [0, 0, 1]]
    assert tartanair.native_intrinsics(480, 640).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(
    fov=st.floats(40, 95),
    tilt_x=st.floats(-0.1, 0.1),
    tilt_y=st.floats(-0.3, 0.3),
    seed=st.integers(0, 10**6),
)
def test_hypersim_ray_distance_of_any_camera(
    fov: float, tilt_x: float, tilt_y: float, seed: int
) -> None:
    """The parser's z-depth equals the rendered one whatever the camera is."""
    matrix = hypersim_camera_matrix(fov, SIZE, (tilt_x, tilt_y))
    intrinsics, rotation = hypersim_intrinsics(matrix, *SIZE)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    truth = _world(intrinsics, seed)[0]
    colour, distance, _ = hypersim_members("ai_001_001", "cam_00", [truth])
    ref = FrameRef(
        "ai_001_001/cam_00/0000", "ai_001_001/cam_00", "train",
        Part("", ""), Part("", ""), tuple(matrix.ravel().tolist()),
    )  # fmt: skip
    _check(Hypersim().decode(ref, colour.data, distance.data, 80.0), truth, 1.001 * HALF_STEP)


def test_hypersim_tables_have_the_genuine_columns(real_samples: Path) -> None:
    for path, columns in (
        (real_samples / "hypersim/metadata_camera_parameters.csv", CAMERA_COLUMNS),
        (real_samples / "hypersim/analysis/metadata_images_split_scene_v1.csv", SPLIT_COLUMNS),
    ):
        with path.open(newline="") as file:
            assert tuple(next(csv.reader(file))) == columns


def test_upright_camera_table_equals_the_genuine_one(real_samples: Path) -> None:
    """ai_001_001: 60 degrees across, upright; every number we write is the published one."""
    with (real_samples / "hypersim/metadata_camera_parameters.csv").open(newline="") as file:
        genuine = next(csv.DictReader(file))
    matrix = hypersim_camera_matrix(60.0, (768, 1024))
    text = hypersim_camera_csv({"ai_001_001": matrix}, (768, 1024))
    (ours,) = csv.DictReader(io.StringIO(text))
    for column, value in genuine.items():
        if value and value[0] in "-0123456789":
            assert math.isclose(float(ours[column]), float(value), abs_tol=2e-6, rel_tol=2e-6)
        else:
            assert ours[column] == value


def test_crop_moves_the_principal_point() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (375, 1242)).astype(np.float32)
    rgb = rng.integers(0, 256, (375, 1242, 3), dtype=np.uint8)
    everywhere, nowhere = np.ones(depth.shape, bool), np.zeros(depth.shape, bool)
    k = np.array([[725.0087, 0, 620.5], [0, 725.0087, 187], [0, 0, 1]])
    cropped = crop_bottom_centre(Frame("k", "s", rgb, depth, everywhere, nowhere, k), (352, 1216))
    assert cropped.depth.shape == (352, 1216)
    assert (cropped.intrinsics[0, 2], cropped.intrinsics[1, 2]) == (620.5 - 13, 187 - 23)
    assert np.array_equal(cropped.depth, depth[23:, 13:1229])
    assert np.array_equal(cropped.rgb, rgb[23:, 13:1229])


def test_too_large_a_crop_is_told(tmp_path: Path) -> None:
    with ArchiveSet(tmp_path) as archives:
        for member in tartanair_members("office/Easy/P000", _world(np.eye(3))[:1]):
            archives.add(member)
    config = SETTINGS.model_copy(update={"crop": (25, 40)})
    (ref,) = TartanAir().index(tmp_path, config)
    with pytest.raises(UserError, match=r"office/Easy/P000/000000 is 24x40.*crop 25x40"):
        TartanAir().read(tmp_path, ref, config, 80.0)


@pytest.mark.parametrize("name", ["hypersim", "virtual_kitti", "tartanair"])
def test_plan_keeps_train_and_holdout_apart(name: str) -> None:
    config = ProceduralConfig(train_scenes=30, holdout_scenes=20, frames_per_scene=12, size=SIZE)
    plan = plan_scenes(name, config, seed=0)
    assert len(plan.scenes) == 50
    train = {w.seed for s in plan.scenes[:30] for w in s.worlds}
    held = {w.seed for s in plan.scenes[30:] for w in s.worlds}
    assert max(train) < HOLDOUT_SEED <= min(held)
    assert sum(w.frames for s in plan.scenes[:30] for w in s.worlds) == 30 * 12
    assert all(sum(w.frames for w in s.worlds) == 2 for s in plan.scenes[30:])
    other = plan_scenes(name, config, seed=1)
    assert train.isdisjoint({w.seed for s in other.scenes[:30] for w in s.worlds})
    assert held == {w.seed for s in other.scenes[30:] for w in s.worlds}
    worlds = [w.seed for s in plan.scenes for w in s.worlds]
    assert len(set(worlds)) == len(worlds)


def test_half_of_the_hypersim_scenes_are_tilted() -> None:
    config = ProceduralConfig(train_scenes=20, holdout_scenes=10, frames_per_scene=2, size=SIZE)
    scenes = plan_scenes("hypersim", config, seed=0).scenes
    centred = [abs(s.worlds[0].matrix[1, 2] - (SIZE[0] - 1) / 2) < 1e-6 for s in scenes]
    assert centred.count(True) == 15
    assert {s.name for s in scenes}.isdisjoint(hypersim.KNOWN_BAD)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("hypersim", "indoor"), ("virtual_kitti", "street"), ("tartanair", "street")],
)
def test_rendered_archives_give_back_the_rendered_worlds(
    tmp_path: Path, name: str, kind: str
) -> None:
    """Through the whole writer: seed to archive to parser equals the renderer's own answer."""
    config = ProceduralConfig(train_scenes=1, holdout_scenes=1, frames_per_scene=2, size=SIZE)
    plan = plan_scenes(name, config, seed=0)
    render_archives(plan, tmp_path / "a")
    frames = _frames(get_dataset(name), tmp_path / "a")
    assert len(frames) == 4
    by_seed = [
        rendered
        for scene in sorted(plan.scenes, key=lambda s: s.name)
        for world in scene.worlds
        for rendered in render_scene(world.kind, world.seed, world.matrix, SIZE, world.frames)
    ]
    assert plan.scenes[0].worlds[0].kind == kind
    for frame, truth in zip(sorted(frames, key=lambda f: f.key), by_seed, strict=True):
        near = frame.valid_mask & (truth.depth < 64)
        assert near.mean() > 0.2
        np.testing.assert_allclose(
            frame.depth[near], truth.depth[near], rtol=1.001 * HALF_STEP, atol=0.005001
        )
        assert not frame.valid_mask[~np.isfinite(truth.depth)].any()
        np.testing.assert_allclose(frame.intrinsics, truth.intrinsics, atol=1e-6)


def test_archives_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    for name in ("hypersim", "virtual_kitti", "tartanair"):
        config = ProceduralConfig(train_scenes=1, holdout_scenes=1, frames_per_scene=1, size=SIZE)
        plan = plan_scenes(name, config, seed=5)
        contents = []
        for attempt in ("a", "b"):
            folder = tmp_path / attempt / name
            render_archives(plan, folder)
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            contents.append({p.relative_to(folder): p.read_bytes() for p in files})
        assert contents[0] == contents[1]
        assert not list(tmp_path.rglob("*.writing"))


def test_hypersim_zip_holds_more_than_is_needed(tmp_path: Path) -> None:
    truth = _world(intrinsics_from_fov(60, *SIZE))
    with ArchiveSet(tmp_path) as archives:
        for member in hypersim_members("ai_001_001", "cam_00", truth):
            archives.add(member)
    with zipfile.ZipFile(tmp_path / "scenes/ai_001_001.zip") as archive:
        names = archive.namelist()
    assert "ai_001_001/images/scene_cam_00_final_preview/frame.0001.tonemap.jpg" in names
    assert hypersim.colour_member("ai_001_001", "cam_00", 1) in names
