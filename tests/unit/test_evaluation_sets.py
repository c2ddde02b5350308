"""Evaluation sets: decoding, official masks and lists, and how they become shards."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import evaluation_files as made_files
import numpy as np
import pytest
from evaluation_files import Truth, made, write_files, write_tar_gz, write_zip
from PIL import Image
from served import logged
from typer.testing import CliRunner

from metricgold.cli import app
from metricgold.config import DownloadConfig
from metricgold.data.dataset import DatasetError
from metricgold.data.evaluation_sets import diode, kitti, middlebury2014, nyuv2, sun_rgbd
from metricgold.data.evaluation_sets.base import EvaluationRef, EvaluationSet
from metricgold.data.evaluation_sets.decoders import decode_pfm, decode_png16, decode_rgb
from metricgold.data.evaluation_sets.ibims1 import Ibims1
from metricgold.data.evaluation_sets.lidar import depth_picture
from metricgold.data.evaluation_sets.lists import listed
from metricgold.data.evaluation_sets.prepare import prepare
from metricgold.data.evaluation_sets.registry import EVALUATION_SETS, get_evaluation_set
from metricgold.data.evaluation_sets.tree import FileTree, files_below
from metricgold.data.evaluation_sets.unpacking import unpack
from metricgold.data.mirror_server import Faults
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.data.transfer import DownloadError
from metricgold.errors import UserError

DOWNLOAD = DownloadConfig(retries=2, timeout_s=10, backoff_s=0.01, parallel=2)
DRIVE = "2011_09_26_drive_0002_sync"


def only(member: EvaluationSet, raw: Path) -> Frame:
    """The one frame whose files are there."""
    (ref,) = [ref for ref in member.frames(raw) if not ref.missing]
    return member.read(raw, ref)


def assert_frame(
    frame: Frame, truth: Truth, mask: np.ndarray, step_m: float = 0.0, rtol: float = 1e-6
) -> None:
    """Mask exactly ``mask``; inside it the depth that went in, to half a quantisation step."""
    np.testing.assert_array_equal(frame.valid_mask, mask)
    expected = np.where(mask, truth.depth, 0)
    np.testing.assert_allclose(frame.depth, expected, rtol=rtol, atol=step_m / 2 * 1.001)
    assert frame.depth.dtype == np.float32
    assert not frame.depth[~mask].any()
    assert not frame.sky_mask.any()
    np.testing.assert_allclose(frame.intrinsics, truth.intrinsics, rtol=1e-9)


def within(truth: Truth, low: float, high: float) -> np.ndarray:
    """Where the depth that went in is strictly between the limits."""
    return (truth.depth > low) & (truth.depth < high)


# --- the registry and the official lists ----------------------------------------------------


def test_unknown_sets_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown evaluation set 'nyu'; known sets: nyuv2, kitti"):
        get_evaluation_set("nyu")


@pytest.mark.parametrize("name", [n for n in EVALUATION_SETS if n != "folder"])
def test_every_set_says_what_it_is(name: str) -> None:
    member = get_evaluation_set(name)
    low, high = member.depth_range_m
    assert member.name == name
    assert 0 < low < high
    assert member.expected_frames > 0
    assert member.homepage.startswith("http")
    assert len(member.licence) > 10
    assert len(member.citation) > 10
    files = member.remote_files()
    assert bool(files) != bool(member.supply)
    assert len({file.path for file in files}) == len(files)
    for file in files:
        assert all(url.startswith("http") for url in file.urls)
        assert file.checksum is None or re.fullmatch(r"(md5|sha\d+):[0-9a-f]+", file.checksum)


def test_kitti_list_is_the_official_one(real_samples: Path) -> None:
    path = real_samples / "marigold/data_split/kitti_depth/eigen_test_files_with_gt.txt"
    official = sorted(line.split()[:2] for line in path.read_text().splitlines())
    split = kitti.eigen_split()
    assert len(split) == 697
    assert sum(not line.has_depth for line in split) == 45
    ours = sorted([line.rgb, line.depth if line.has_depth else "None"] for line in split)
    assert ours == official
    folders = (real_samples / "dav2_splits/kitti/val.txt").read_text().split()[1::2]
    wanted = {path.split("data_depth_annotated/")[1] for path in folders}
    assert {f"{line.folder}/{line.depth}" for line in split if line.has_depth} == wanted
    assert len(wanted) == 652 == get_evaluation_set("kitti_garg").expected_frames


def test_eth3d_list_is_the_official_one(real_samples: Path, tmp_path: Path) -> None:
    path = real_samples / "marigold/data_split/eth3d_depth/eth3d_filename_list.txt"
    official = [line.split() for line in path.read_text().splitlines()]
    refs = get_evaluation_set("eth3d").frames(tmp_path)
    assert len(refs) == 454 == len(official)
    assert {f"rgb/{ref.missing[0]}" for ref in refs} == {line[0] for line in official}
    assert {f"depth/{ref.scene}_dslr_depth/{ref.missing[1]}" for ref in refs} == {
        line[1] for line in official
    }


def test_scannet_list_is_the_published_one(real_samples: Path, tmp_path: Path) -> None:
    path = real_samples / "marigold/data_split/scannet_depth/scannet_val_sampled_list_800_1.txt"
    official = {line.split()[1] for line in path.read_text().splitlines()}
    refs = get_evaluation_set("scannet").frames(tmp_path)
    assert len(refs) == 800
    assert {f"{ref.scene}/depth/{ref.key[-6:]}.png" for ref in refs} == official


def test_diode_recognises_every_official_name(real_samples: Path) -> None:
    path = real_samples / "marigold/data_split/diode_depth/diode_val_all_filename_list.txt"
    names = path.read_text().split()
    matches = [diode._FRAME.search(f"val/{name}") for name in names]
    assert len(names) == 3 * 771
    places = [match["place"] for match in matches if match and match["role"] == ".png"]
    assert (places.count("indoors"), places.count("outdoor")) == (325, 446)
    assert all(match and f"{match['scan']}/{match['name']}" in match.string for match in matches)
    counts = [EVALUATION_SETS[f"diode{part}"].expected_frames for part in ("", "_indoor")]
    assert counts == [771, 325]


def test_nyu_indices_count_from_one(real_samples: Path, tmp_path: Path) -> None:
    """The official 654 names from a table of all 1,449 scenes and the split's numbers."""
    folder = real_samples / "marigold/data_split/nyu_depth/labeled"
    lines = {
        part: (folder / f"filename_list_{part}.txt").read_text().splitlines()
        for part in ("train", "test")
    }
    scenes = dict.fromkeys(range(1, 1450), "")
    for line in [*lines["train"], *lines["test"]]:
        _, scene, picture = line.split()[0].split("/")
        scenes[int(picture[4:8])] = scene
    official = {tuple(line.split()[0].split("/")[1:]) for line in lines["test"]}
    test = sorted(int(picture[4:8]) for _, picture in official)
    made_files.write_nyuv2(tmp_path, list(scenes.values()), test, {})
    refs = get_evaluation_set("nyuv2").frames(tmp_path)
    assert len(refs) == 654 == len(official)
    assert {(ref.scene, f"rgb_{ref.key[-4:]}.png") for ref in refs} == official
    assert [ref.scene for ref in refs] == sorted(ref.scene for ref in refs)


def test_nuscenes_and_middlebury_have_their_scenes() -> None:
    assert len(set(listed("nuscenes_val.txt")["val"])) == 150
    assert len(set(middlebury2014.SCENES)) == 23


# --- one reader after the other -------------------------------------------------------------


def test_nyuv2(tmp_path: Path) -> None:
    truths = {2: made(480, 640, 0.5, 14, 1), 3: made(480, 640, 0.5, 14, 2)}
    made_files.write_nyuv2(tmp_path, ["office_1", "bath_1", "office_1", "den_1"], [3, 2], truths)
    member = get_evaluation_set("nyuv2")
    refs = member.frames(tmp_path)
    assert [ref.key for ref in refs] == ["bath_1/0002", "office_1/0003"]
    camera = np.array([[518.857901, 0, 325.582449], [0, 519.469611, 253.736166], [0, 0, 1]])
    for ref, truth in zip(refs, truths.values(), strict=True):
        eigen = np.zeros((480, 640), bool)
        eigen[45:471, 41:601] = True
        mask = within(truth, 1e-3, 10) & eigen
        frame = member.read(tmp_path, ref)
        assert_frame(frame, replace(truth, intrinsics=camera), mask)
        np.testing.assert_array_equal(frame.rgb, truth.rgb)
        assert mask.sum() < eigen.sum()


def write_kitti(folder: Path, truth: Truth, frame: int = 69) -> Path:
    for files in made_files.kitti_files(DRIVE, "val", frame, truth):
        write_files(folder, files)
    return folder


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("kitti_garg", (143, 349), (43, 1172)), ("kitti_eigen", (117, 321), (43, 1172))],
)
@pytest.mark.parametrize(("height", "width", "left"), [(375, 1242, 13), (370, 1226, 5)])
def test_kitti(tmp_path: Path, name, rows, columns, height, width, left) -> None:
    truth = made(height, width, 2, 120, 3, fx=721.5377)
    frame = only(get_evaluation_set(name), write_kitti(tmp_path, truth))
    top = height - 352
    window = np.zeros((352, 1216), bool)
    window[rows[0] : rows[1], columns[0] : columns[1]] = True
    cut = (slice(top, height), slice(left, left + 1216))
    camera = truth.intrinsics - [[0, 0, left], [0, 0, top], [0, 0, 0]]
    stored = np.rint(truth.depth[cut] * 256) / 256
    mask = window & (stored > 0) & (stored < 80)
    assert_frame(frame, Truth(truth.rgb[cut], truth.depth[cut], camera), mask, step_m=1 / 256)
    np.testing.assert_array_equal(frame.rgb, truth.rgb[cut])
    assert (frame.key, frame.scene) == (f"{DRIVE}/0000000069", DRIVE)


def test_kitti_frames_without_ground_truth_are_no_frames(tmp_path: Path) -> None:
    write_kitti(tmp_path, made(375, 1242, 2, 90, 3), frame=72)
    refs = get_evaluation_set("kitti_eigen").frames(tmp_path)
    assert len(refs) == 652
    assert f"{DRIVE}/0000000072" not in {ref.key for ref in refs}


def test_eth3d(tmp_path: Path) -> None:
    truths = [made(30, 44, 0.5, 90, 4, fx=34.0), made(30, 44, 0.5, 90, 5, fx=38.0)]
    files = made_files.eth3d_files("relief_2", ["0458", "0459"], truths)
    write_files(tmp_path, files)
    member = get_evaluation_set("eth3d")
    refs = [ref for ref in member.frames(tmp_path) if not ref.missing]
    assert [ref.key for ref in refs] == ["relief_2/DSC_0458", "relief_2/DSC_0459"]
    for ref, truth in zip(refs, truths, strict=True):
        camera = truth.intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        mask = within(truth, 0.01, 50)
        assert 0 < mask.sum() < (truth.depth > 0).sum()
        assert_frame(member.read(tmp_path, ref), replace(truth, intrinsics=camera), mask)
    write_files(tmp_path, {k: v[:-4] for k, v in files.items() if "ground_truth" in k})
    ref = next(ref for ref in member.frames(tmp_path) if not ref.missing)
    with pytest.raises(DatasetError, match=r"relief_2/DSC_0458: .*DSC_0458\.JPG.*do not make"):
        member.read(tmp_path, ref)


@pytest.mark.parametrize(
    ("name", "places", "high"),
    [
        ("diode", ["indoors", "outdoor"], 350),
        ("diode_indoor", ["indoors"], 25),
        ("diode_outdoor", ["outdoor"], 350),
    ],
)
def test_diode(tmp_path: Path, name: str, places: list[str], high: float) -> None:
    camera = np.array([[886.81, 0, 512], [0, 927.06, 384], [0, 0, 1.0]])
    truths, masks = {}, {}
    for i, place in enumerate(("indoors", "outdoor")):
        truths[place] = made(18, 24, 0.3, 500, 6 + i)
        masks[place] = np.random.default_rng(i).random((18, 24)) < 0.7
        write_files(tmp_path, made_files.diode_files(place, i, truths[place], masks[place]))
    member = get_evaluation_set(name)
    refs = member.frames(tmp_path)
    assert [ref.scene.split("/")[0] for ref in refs] == places
    for ref, place in zip(refs, places, strict=True):
        truth = replace(truths[place], intrinsics=camera)
        frame = member.read(tmp_path, ref)
        assert_frame(frame, truth, within(truth, 0.6, high) & masks[place])
        np.testing.assert_array_equal(frame.rgb, truth.rgb)


@pytest.mark.parametrize("inside", ["", "ibims1_core_raw", "ibims1_core_mat"])
@pytest.mark.parametrize("matlab", [False, True])
def test_ibims1(tmp_path: Path, matlab: bool, inside: str) -> None:
    truth = made(24, 32, 0.5, 45, 8)
    invalid, transparent = np.random.default_rng(1).random((2, 24, 32)) < 0.3
    if matlab:
        data = made_files.ibims1_mat(truth, invalid, transparent)
        write_files(tmp_path, {"ibims1_core_mat/storage_02.mat": data})
    else:
        write_files(tmp_path, made_files.ibims1_files("storage_02", truth, invalid, transparent))
    folder = tmp_path / inside
    frame = only(get_evaluation_set("ibims1"), folder if folder.is_dir() else tmp_path)
    mask = within(truth, 5e-3, 25) & ~invalid & ~transparent
    assert_frame(frame, truth, mask, step_m=0 if matlab else 50 / 65535)
    np.testing.assert_array_equal(frame.rgb, truth.rgb)


def test_sun_rgbd(tmp_path: Path) -> None:
    folder, shared = "kv2/kinect2data/000002_2014-resize", "kv1/NYUdata/NYU0001"
    truth = made(20, 28, 0.5, 12, 9)
    files = made_files.sun_rgbd_files(folder, truth)
    write_files(tmp_path, files | made_files.sun_rgbd_files(shared, made(20, 28, 1, 5, 1)))
    gone = "xtion/sun3ddata/home/scan1/0001"
    write_files(tmp_path, made_files.sun_rgbd_split([f"{folder}//", shared, gone]))
    member = get_evaluation_set("sun_rgbd")
    refs = member.frames(tmp_path)
    assert [(ref.scene, bool(ref.missing)) for ref in refs] == [(folder, False), (gone, True)]
    frame = only(member, tmp_path)
    stored = np.rint(truth.depth * 1000) / 1000
    assert_frame(frame, truth, (stored > 5e-3) & (stored < 8), step_m=1e-3)
    np.testing.assert_array_equal(
        frame.rgb, made_files.opened(files[f"SUNRGBD/{folder}/image/0000103.jpg"])
    )


def test_sun_rgbd_values_are_rotated_by_three_bits() -> None:
    stored = np.array([0b1010_0000_0000_1001, 8, 1], np.uint16)
    assert sun_rgbd.unrotate(stored).tolist() == [0b0011_0100_0000_0001, 1, 8192]


def test_sintel(tmp_path: Path) -> None:
    truth = made(11, 26, 0.5, 4000, 10)
    for files in made_files.sintel_files("alley_1", 7, truth):
        write_files(tmp_path, files)
    frame = only(get_evaluation_set("sintel"), tmp_path)
    assert_frame(frame, truth, within(truth, 1e-3, 1000))
    np.testing.assert_array_equal(frame.rgb, truth.rgb)
    assert (frame.key, frame.scene) == ("alley_1/frame_0007", "alley_1")


def test_middlebury(tmp_path: Path) -> None:
    truth = made(20, 30, 1.5, 6, 11, fx=3997.684)
    write_files(tmp_path, made_files.middlebury_files("Piano", truth, 193.001, 131.111))
    frame = only(get_evaluation_set("middlebury2014"), tmp_path)
    assert_frame(frame, truth, truth.depth > 0, rtol=1e-5)
    np.testing.assert_array_equal(frame.rgb, truth.rgb)


def test_pfm_of_both_byte_orders() -> None:
    rows = np.array([[1.0, 2, 3], [4, 5, np.inf]], np.float32)
    for order, scale in (("<", b"-1"), (">", b"1")):
        values = rows[::-1].astype(f"{order}f4").tobytes()
        np.testing.assert_array_equal(decode_pfm(b"Pf\n3 2\n" + scale + b"\n" + values), rows)
    with pytest.raises(ValueError, match="bytes of pixels instead of 24"):
        decode_pfm(b"Pf\n3 2\n-1\n" + values[:-1])


@pytest.mark.parametrize("number", ["1200", "001200"])
def test_scannet(tmp_path: Path, number: str) -> None:
    truth = made(20, 28, 0.5, 14, 12)
    picture = np.full((41, 57, 3), 90, np.uint8)
    picture[:, 28:] = 200
    write_files(tmp_path, made_files.scannet_files("scene0011_00", number, truth, picture))
    frame = only(get_evaluation_set("scannet"), tmp_path)
    assert_frame(frame, truth, within(truth, 1e-3, 10), step_m=1e-3)
    assert abs(int(frame.rgb[10, 5, 0]) - 90) < 8
    assert abs(int(frame.rgb[10, 22, 0]) - 200) < 8
    assert frame.key == "scene0011_00/001200"


def test_ddad(tmp_path: Path) -> None:
    truths = [made(15, 22, 2, 200, seed, fx=20.0) for seed in (13, 14)]
    truths[1] = replace(truths[1], intrinsics=truths[0].intrinsics)
    points = [made_files.seen_points(truth, (0.6, 0.3)) for truth in truths]
    points[0] = np.vstack([points[0], 1.5 * points[0], -points[0], points[0] + [500, 0, 0]])
    write_files(tmp_path, made_files.ddad_index(["000007"], ["000151"]))
    write_files(tmp_path, made_files.ddad_files("000151", truths, points, 1))
    write_files(tmp_path, made_files.ddad_files("000007", truths, points, 2))
    member = get_evaluation_set("ddad")
    refs = member.frames(tmp_path)
    assert [ref.key for ref in refs] == ["000151/000000", "000151/000001"]
    for ref, truth in zip(refs, truths, strict=True):
        assert_frame(member.read(tmp_path, ref), truth, within(truth, 0.05, 120), rtol=1e-5)
    (tmp_path / "ddad.json").unlink()
    with pytest.raises(DatasetError, match=r"ddad\.json is missing; download and unpack"):
        member.frames(tmp_path)


def test_ddad_points_with_named_fields(tmp_path: Path) -> None:
    from metricgold.data.evaluation_sets.ddad import decode_points

    values = np.zeros((4, 1), [("X", "f8"), ("Y", "f8"), ("Z", "f8"), ("INTENSITY", "f4")])
    values["Y"] = 2.5
    np.savez(tmp_path / "points.npz", data=values)
    assert decode_points((tmp_path / "points.npz").read_bytes()).tolist() == [[0, 2.5, 0]] * 4


def test_nuscenes(tmp_path: Path) -> None:
    truth = made(18, 32, 0.5, 140, 15, fx=30.0)
    points = made_files.seen_points(truth, (0.3, -0.4))
    scenes = ["scene-0003", "scene-0001", "scene-0103"]
    files = made_files.nuscenes_files(scenes, truth, np.vstack([points, 2 * points]), 3)
    write_files(tmp_path, files)
    member = get_evaluation_set("nuscenes")
    refs = member.frames(tmp_path)
    assert [ref.scene for ref in refs] == ["scene-0003", "scene-0103"]
    picture = made_files.opened(files["samples/CAM_FRONT/n008__CAM_FRONT__0.jpg"])
    frame = member.read(tmp_path, refs[0])
    seen = np.where(truth.depth > 1, truth.depth, 2 * truth.depth)
    assert (seen != truth.depth).any()
    expected = replace(truth, depth=seen)
    assert_frame(frame, expected, within(expected, 1, 80), rtol=1e-4)
    np.testing.assert_array_equal(frame.rgb, picture)


def test_the_nearest_of_several_points_counts() -> None:
    camera = np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]])
    points = np.array([[0, 0, 8.0], [0, 0, 3], [0, 0, 5], [0, 0, -2], [9, 0, 3], [0.2, 0, 4]])
    depth = depth_picture(points, camera, (6, 8), "nearest")
    assert depth[3, 4] == 3
    assert np.count_nonzero(depth) == 1
    assert depth_picture(points, camera, (6, 8), "nearest", 3.5)[3, 4] == 4
    assert depth_picture(np.array([[0.2, 0, 3]]), camera, (6, 8), "nearest")[3, 5] == 3
    assert depth_picture(np.array([[0.2, 0, 3]]), camera, (6, 8), "down")[3, 4] == 3


# --- genuine files --------------------------------------------------------------------------


def test_genuine_kitti_frames(real_samples: Path) -> None:
    """A frame of 2011_09_28 or alike (707.0493 px): crop, windows and metres."""
    notes = json.loads((real_samples / "kitti/test_annotations.json").read_text())["files"]
    fx, fy, cx, cy = notes[0]["cam_in"]
    camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    counts = {}
    for name, rows in (("kitti_garg", (143, 349)), ("kitti_eigen", (117, 321))):
        member = get_evaluation_set(name)
        assert isinstance(member, kitti.Kitti)
        path = real_samples / "kitti/depth/0000000050.png"
        values = decode_png16(path.read_bytes())
        rgb = decode_rgb((real_samples / "kitti/rgb/0000000050.png").read_bytes())
        frame = member.frame(EvaluationRef("d/50", "d"), rgb, values, camera)
        stored = np.asarray(Image.open(path))[23:, 13:1229] / 256.0
        mask = (stored > 0) & (stored < 80)
        mask[: rows[0]] = mask[rows[1] :] = mask[:, :43] = mask[:, 1172:] = False
        truth = Truth(rgb, stored, camera - [[0, 0, 13], [0, 0, 23], [0, 0, 0]])
        assert_frame(frame, truth, mask)
        np.testing.assert_array_equal(frame.rgb, rgb[23:, 13:1229])
        assert 2 < np.median(frame.depth[mask]) < 40
        counts[name] = mask.mean()
    assert 0.05 < counts["kitti_garg"] < 0.3
    assert counts["kitti_garg"] != counts["kitti_eigen"]


def test_genuine_nyu_frames(real_samples: Path) -> None:
    member = get_evaluation_set("nyuv2")
    assert isinstance(member, nyuv2.NyuV2)
    notes = json.loads((real_samples / "nyuv2/test_annotations.json").read_text())["files"]
    for number in ("00000", "00050"):
        path = real_samples / f"nyuv2/depth/sync_depth_{number}.png"
        depth = decode_png16(path.read_bytes()) / 1000.0
        rgb = decode_rgb((real_samples / f"nyuv2/rgb/rgb_{number}.jpg").read_bytes())
        frame = member.frame(EvaluationRef("a/1", "a"), rgb, depth)
        eigen = np.zeros((480, 640), bool)
        eigen[45:471, 41:601] = True
        fx, fy, cx, cy = notes[0]["cam_in"]
        camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        np.testing.assert_allclose(frame.intrinsics, camera, atol=1e-4)
        mask = eigen & (depth > 0) & (depth < 10)
        assert_frame(frame, Truth(rgb, depth, frame.intrinsics), mask)
        assert frame.valid_ratio > 0.6


def test_genuine_sun_rgbd_depth(real_samples: Path) -> None:
    """Rotated back, a room's depth is smooth and within the sensor's range."""
    path = real_samples / "open3d_rgbd/other_formats/SUN_depth.png"
    stored = decode_png16(path.read_bytes())
    depth = sun_rgbd.unrotate(stored) / 1000.0
    known = depth > 0
    assert 0.5 < np.median(depth[known]) < 6
    assert depth.max() < 10
    pairs = known[:, 1:] & known[:, :-1]
    steps = np.abs(np.diff(depth, axis=1))[pairs]
    assert np.median(steps) < 0.01
    assert stored.max() > 30_000


# --- where files lie, and what is wrong with them -------------------------------------------


def test_files_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    write_files(tmp_path, {"deep/down/a/x.png": b"loose", "na/x.png": b"other"})
    write_zip(tmp_path / "deep/all.zip", {"top/a/x.png": b"zipped", "b/y.png": b"only zipped"})
    (tmp_path / "deep/round").symlink_to(tmp_path)
    tree = FileTree(tmp_path)
    parts, missing = tree.gather(x="a/x.png", y=("c/y.png", "b/y.png"), z="a/z.png")
    assert missing == ("a/z.png",)
    assert (parts["x"].archive, parts["x"].size) == ("deep/down/a/x.png", 5)
    assert (parts["y"].archive, parts["y"].member) == ("deep/all.zip", "b/y.png")
    assert tree.find("x.png/a") is None
    assert len(list(files_below(tmp_path))) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_kitti(tmp_path, made(375, 1242, 2, 90, 1))
    (tmp_path / f"val/{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png").unlink()
    member = get_evaluation_set("kitti_garg")
    ref = next(ref for ref in member.frames(tmp_path) if ref.key == f"{DRIVE}/0000000069")
    assert ref.missing == (f"{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png",)
    with pytest.raises(DatasetError, match=r"0002_sync/0000000069: .*0000000069\.png is missing"):
        member.read(tmp_path, ref)


@pytest.mark.parametrize(
    ("name", "content"),
    [("rgb", b"no picture"), ("depth", made_files.png(np.zeros((24, 32), np.uint8)))],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    nothing = np.zeros((24, 32), bool)
    write_files(tmp_path, made_files.ibims1_files("cafe", made(24, 32, 1, 9, 1), nothing, nothing))
    write_files(tmp_path, {f"ibims1_core_raw/{name}/cafe.png": content})
    with pytest.raises(DatasetError, match=rf"cafe/0: ibims1_core_raw/{name}/cafe\.png: cannot"):
        only(get_evaluation_set("ibims1"), tmp_path)


def test_pictures_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    nothing = np.zeros((24, 32), bool)
    write_files(tmp_path, made_files.ibims1_files("cafe", made(24, 32, 1, 9, 1), nothing, nothing))
    small = made_files.png(made(20, 32, 1, 9, 1).rgb)
    write_files(tmp_path, {"ibims1_core_raw/rgb/cafe.png": small})
    with pytest.raises(
        DatasetError, match=r"frame cafe/0: cannot be decoded: .*does not fit depth"
    ):
        only(get_evaluation_set("ibims1"), tmp_path)


def test_a_web_page_or_a_torso_instead_of_a_zip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "ibims1_core_raw.zip", {"a": b"x" * 999})
    member = get_evaluation_set("ibims1")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"ibims1_core_raw\.zip: damaged or cut short"):
        member.frames(tmp_path)
    path.write_bytes(b"<!DOCTYPE html><html>log in</html>")
    with pytest.raises(DatasetError, match=r"ibims1_core_raw\.zip: a web page instead of the file"):
        member.frames(tmp_path)


def test_tars_are_unpacked_once_and_safely(tmp_path: Path) -> None:
    good = write_tar_gz(tmp_path / "val.tar.gz", {"val/a/x.npy": b"12345"})
    folder = unpack(good, tmp_path / "unpacked")
    assert (folder / "val/a/x.npy").read_bytes() == b"12345"
    (folder / "val/a/x.npy").write_bytes(b"kept")
    assert unpack(good, tmp_path / "unpacked") == folder
    assert (folder / "val/a/x.npy").read_bytes() == b"kept"
    write_tar_gz(good, {"val/a/x.npy": bytes(range(200))})
    folder = unpack(good, tmp_path / "unpacked")
    assert (folder / "val/a/x.npy").read_bytes() == bytes(range(200))
    bad = write_tar_gz(tmp_path / "bad.tar.gz", {"../../evil": b"1"})
    torso = tmp_path / "torso.tar.gz"
    torso.write_bytes(good.read_bytes()[:-20])
    page = write_files(tmp_path, {"page.tar.gz": b"<html>"}) / "page.tar.gz"
    for path, message in (
        (bad, "points outside the archive"),
        (torso, r"torso\.tar\.gz: damaged or cut short"),
        (page, "a web page instead of the file"),
    ):
        with pytest.raises(UserError, match=message):
            unpack(path, tmp_path / "unpacked")
    assert [path.name for path in (tmp_path / "unpacked").iterdir()] == [folder.name]


def test_7z_without_its_reader_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "py7zr", None)
    write_files(tmp_path, {"office_dslr_jpg.7z": b"7z\xbc\xaf\x27\x1c"})
    with pytest.raises(UserError, match=r"office_dslr_jpg\.7z: .*pip install py7zr"):
        prepare("eth3d", str(tmp_path), tmp_path / "out", DOWNLOAD)


def test_7z_archives_are_unpacked(tmp_path: Path) -> None:
    py7zr = pytest.importorskip("py7zr", reason="py7zr is not installed: ETH3D's own archives")
    truth = made(30, 44, 0.5, 90, 4, fx=34.0)
    files = made_files.eth3d_files("office", ["0219"], [truth])
    source = tmp_path / "source"
    source.mkdir()
    for kind, wanted in (("depth", True), ("jpg", False)):
        with py7zr.SevenZipFile(source / f"office_dslr_{kind}.7z", "w") as archive:
            for name, data in files.items():
                if ("ground_truth" in name) == wanted:
                    archive.writestr(data, name)
    report = prepare("eth3d", str(source), tmp_path / "out", DOWNLOAD, partial=True)
    assert (report["frames"], report["missing"]["count"]) == (1, 453)
    (frame,) = ShardReader(shard_paths(tmp_path / "out", "holdout"))
    np.testing.assert_allclose(frame.depth[frame.valid_mask], truth.depth[frame.valid_mask])
    path = source / "office_dslr_depth.7z"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"office_dslr_depth\.7z: damaged or cut short"):
        unpack(path, tmp_path / "again")


# --- from files to shards -------------------------------------------------------------------


def ibims1_set(count: int = 100, scale: float = 1.0) -> dict[str, bytes]:
    """So many tiny frames in the raw archive's layout."""
    nothing = np.zeros((6, 8), bool)
    files = {}
    for i in range(count):
        truth = made(6, 8, scale, 20 * scale, i)
        files |= made_files.ibims1_files(f"room_{i:03d}", truth, nothing, nothing)
    return files


@pytest.fixture
def unsigned(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[EvaluationSet], Path], None]:
    """Makes a set expect the checksum of a made archive in place of the published one."""

    def expect(kind: type[EvaluationSet], archive: Path) -> None:
        original = kind.remote_files
        digest = f"sha256:{sha256(archive.read_bytes()).hexdigest()}"
        monkeypatch.setattr(
            kind,
            "remote_files",
            lambda self: [
                replace(file, checksum=digest, unpacked_bytes=0) for file in original(self)
            ],
        )

    return expect


def test_a_folder_becomes_lossless_shards(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", ibims1_set()), tmp_path / "sets/ibims1"
    report = prepare("ibims1", str(source), out, DOWNLOAD)
    member = get_evaluation_set("ibims1")
    refs = member.frames(source)
    reader = ShardReader(shard_paths(out, "holdout"))
    assert len(reader) == 100
    for ref, stored in zip(refs, reader, strict=True):
        frame = member.read(source, ref)
        assert stored.key == ref.key
        np.testing.assert_array_equal(stored.rgb, frame.rgb)
        np.testing.assert_array_equal(stored.depth, frame.depth)
        np.testing.assert_array_equal(stored.valid_mask, frame.valid_mask)
        np.testing.assert_array_equal(stored.intrinsics, frame.intrinsics)
    assert json.loads((out / "report.json").read_text()) == report
    assert report["complete"] is True
    assert (report["frames"], report["expected_frames"], report["scenes"]) == (100, 100, 100)
    assert report["licence"] == member.licence
    assert report["depth_range_m"] == [0.005, 25.0]
    depth = np.concatenate([frame.depth[frame.valid_mask] for frame in reader])
    median = report["depth_percentiles_m"]["p50"]
    assert median == pytest.approx(float(np.median(depth)), rel=0.02)
    assert report["inputs"]["files"] == 500
    assert {path.name for path in out.iterdir()} == {"holdout-000.h5", "report.json"}


def test_the_inputs_are_the_same_however_packed(tmp_path: Path, unsigned) -> None:
    files = ibims1_set(3)
    loose = write_files(tmp_path / "loose", files)
    packed = write_zip(tmp_path / "packed/ibims1_core_raw.zip", files)
    unsigned(Ibims1, packed)
    one = prepare("ibims1", str(loose), tmp_path / "a", DOWNLOAD, partial=True)
    other = prepare("ibims1", str(packed.parent), tmp_path / "b", DOWNLOAD, partial=True)
    assert one["inputs"]["sha256_of_sha256s"] == other["inputs"]["sha256_of_sha256s"]
    (archive,) = other["inputs"]["archives"]
    assert archive["sha256"] == sha256(packed.read_bytes()).hexdigest()
    write_files(loose, {"ibims1_core_raw/calib/room_001.txt": b"1,2,3,4"})
    changed = prepare("ibims1", str(loose), tmp_path / "a", DOWNLOAD, partial=True)
    assert changed["inputs"]["sha256_of_sha256s"] != one["inputs"]["sha256_of_sha256s"]


def test_a_set_that_lies_in_one_matlab_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truths = {2: made(480, 640, 0.5, 14, 1), 3: made(480, 640, 0.5, 14, 2)}
    source = tmp_path / "source"
    made_files.write_nyuv2(source, ["a_1", "a_1", "b_1", "b_1"], [3, 2], truths)
    with pytest.raises(DownloadError, match=r"\.mat: its MD5 is not the published one"):
        prepare("nyuv2", str(source), tmp_path / "out", DOWNLOAD)
    published = get_evaluation_set("nyuv2").remote_files()
    bare = [replace(file, checksum=None) for file in published]
    monkeypatch.setattr(nyuv2.NyuV2, "remote_files", lambda self: bare)
    report = prepare("nyuv2", str(source), tmp_path / "out", DOWNLOAD)
    assert (report["frames"], report["complete"], report["inputs"]["files"]) == (2, True, 2)
    reader = ShardReader(shard_paths(tmp_path / "out", "holdout"))
    assert reader.keys == ["a_1/0002", "b_1/0003"]
    np.testing.assert_array_equal(reader[1].rgb, truths[3].rgb)


def test_a_mirror_is_downloaded_once(tmp_path: Path, serve, unsigned, capsys) -> None:
    path = write_zip(tmp_path / "mirror/ibims1_core_raw.zip", ibims1_set(3))
    unsigned(Ibims1, path)
    report = prepare("ibims1", serve().url, tmp_path / "out", DOWNLOAD, partial=True)
    assert report["frames"] == 3
    assert "to download" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    faults = Faults()
    prepare("ibims1", serve(faults).url, tmp_path / "out", DOWNLOAD, partial=True)
    assert [entry for entry in logged(faults) if entry[0] == "GET"] == []
    assert len(ShardReader(shard_paths(tmp_path / "out", "holdout"))) == 3


def test_an_interrupted_download_goes_on(tmp_path: Path, serve, unsigned) -> None:
    path = write_zip(tmp_path / "mirror/ibims1_core_raw.zip", ibims1_set(3))
    unsigned(Ibims1, path)
    faults = Faults(drop_after=2000)
    report = prepare("ibims1", serve(faults).url, tmp_path / "out", DOWNLOAD, partial=True)
    gets = [entry for entry in logged(faults, 3) if entry[0] == "GET"]
    assert [entry[2] for entry in gets] == [None, "bytes=2000-"]
    assert report["frames"] == 3


def test_a_wrong_checksum_is_refused_and_forgotten(tmp_path: Path, serve) -> None:
    path = write_zip(tmp_path / "mirror/ibims1_core_raw.zip", ibims1_set(2))
    with pytest.raises(DownloadError, match=r"SHA512 is not the published one \(2641a83"):
        prepare("ibims1", serve().url, tmp_path / "out", DOWNLOAD)
    assert not (tmp_path / ".out.work/files/ibims1_core_raw.zip").exists()
    with pytest.raises(DownloadError, match="SHA512 is not the published one"):
        prepare("ibims1", str(path.parent), tmp_path / "out", DOWNLOAD)
    assert path.exists()
    assert not (tmp_path / "out").exists()


def test_a_web_page_for_an_archive_is_refused(tmp_path: Path, serve) -> None:
    write_zip(tmp_path / "mirror/ibims1_core_raw.zip", ibims1_set(2))
    with pytest.raises(DownloadError, match="the server sent a web page instead of the file"):
        prepare("ibims1", serve(Faults(html=True)).url, tmp_path / "out", DOWNLOAD)


def test_only_the_wanted_members_of_kitti_are_fetched(tmp_path: Path, serve, capsys) -> None:
    mirror = tmp_path / "mirror"
    pictures, depth, calibration = {}, {}, {}
    for frame in (54, 69, 72):
        truth = made(375, 1242, 2, 90, frame)
        for kind, more in zip(
            (pictures, depth, calibration),
            made_files.kitti_files(DRIVE, "val", frame, truth),
            strict=True,
        ):
            kind |= more
    unwanted = {f"2011_09_26/{DRIVE}/velodyne_points/data/0000000069.bin": bytes(10**5)}
    write_zip(mirror / f"raw_data/{DRIVE[:-5]}/{DRIVE}.zip", pictures | unwanted)
    write_zip(mirror / "data_depth_annotated.zip", depth)
    write_zip(mirror / "raw_data/2011_09_26_calib.zip", calibration)
    server = serve()
    with pytest.raises(DatasetError, match=r"650 of 652 frames are missing.*add --partial"):
        prepare("kitti_eigen", server.url, tmp_path / "out", DOWNLOAD)
    report = prepare("kitti_eigen", server.url, tmp_path / "out", DOWNLOAD, partial=True)
    assert (report["frames"], report["missing"]["count"], report["complete"]) == (2, 650, False)
    assert len(report["missing"]["frames"]) == 650
    fetched = FileTree(tmp_path / ".out.work/files")
    assert fetched.find("velodyne_points/data/0000000069.bin") is None
    assert fetched.find(f"{DRIVE}/image_02/data/0000000072.png") is None
    assert fetched.find(f"{DRIVE}/image_02/data/0000000069.png") is not None
    assert "files are not at the server" in capsys.readouterr().out


def test_a_tar_in_a_folder_is_unpacked_beside_the_result(tmp_path: Path, unsigned) -> None:
    files = {}
    for i in range(3):
        truth = made(18, 24, 1, 20, i)
        files |= made_files.diode_files("indoors", i, truth, np.ones((18, 24), bool))
    path = write_tar_gz(tmp_path / "source/val.tar.gz", files)
    unsigned(diode.Diode, path)
    report = prepare("diode_indoor", str(path.parent), tmp_path / "out", DOWNLOAD, partial=True)
    assert (report["frames"], report["expected_frames"]) == (3, 325)
    assert report["missing"] == {"count": 322, "frames": {}}
    assert [p.name for p in path.parent.iterdir()] == ["val.tar.gz"]


def damage(folder: Path, count: int) -> None:
    """Cut the depth maps of the first so many frames short."""
    for i in range(count):
        path = folder / f"ibims1_core_raw/depth/room_{i:03d}.png"
        path.write_bytes(path.read_bytes()[:-20])


def test_one_damaged_frame_in_a_hundred_is_named_and_skipped(tmp_path: Path, capsys) -> None:
    source = write_files(tmp_path / "source", ibims1_set())
    damage(source, 1)
    report = prepare("ibims1", str(source), tmp_path / "out", DOWNLOAD)
    assert (report["frames"], report["complete"]) == (99, False)
    damaged = report["rejected"]["damaged"]
    assert damaged["count"] == 1
    assert "ibims1_core_raw/depth/room_000.png" in damaged["frames"]["room_000/0"]
    assert "room_000/0" not in ShardReader(shard_paths(tmp_path / "out", "holdout")).keys
    damage(source, 2)
    with pytest.raises(DatasetError, match=r"2 of 100 frames are damaged, more than 1%; the first"):
        prepare("ibims1", str(source), tmp_path / "again", DOWNLOAD)
    assert [path.name for path in tmp_path.iterdir() if "again" in path.name] == []


def test_frames_of_two_sizes_in_a_scene_are_not_mixed(tmp_path: Path) -> None:
    for frame, size in ((7, (11, 26)), (8, (12, 26))):
        for files in made_files.sintel_files("alley_1", frame, made(*size, 1, 9, 1)):
            write_files(tmp_path / "source", files)
    with pytest.raises(DatasetError, match=r"1 of 2 frames are damaged.*frame_0008: \(12, 26\) px"):
        prepare("sintel", str(tmp_path / "source"), tmp_path / "out", DOWNLOAD, partial=True)


def test_frames_without_a_valid_pixel_are_told(tmp_path: Path) -> None:
    files = ibims1_set()
    nothing = np.zeros((6, 8), bool)
    files |= made_files.ibims1_files("room_042", made(6, 8, 30, 45, 1), nothing, nothing)
    report = prepare("ibims1", str(write_files(tmp_path / "s", files)), tmp_path / "out", DOWNLOAD)
    assert report["rejected"]["no valid pixel"] == {"count": 1, "frames": ["room_042/0"]}
    assert report["frames"] == 99


def test_missing_frames_are_reported_or_refused(tmp_path: Path, capsys) -> None:
    source = write_files(tmp_path / "source", ibims1_set())
    (source / "ibims1_core_raw/calib/room_003.txt").unlink()
    report = prepare("ibims1", str(source), tmp_path / "out", DOWNLOAD)
    assert report["missing"] == {
        "count": 1,
        "frames": {"room_003/0": "ibims1_core_raw/calib/room_003.txt"},
    }
    assert "1 of 100 frames are missing" in capsys.readouterr().out
    (source / "ibims1_core_raw/calib/room_004.txt").unlink()
    with pytest.raises(DatasetError, match=r"2 of 100 frames are missing.*--partial"):
        prepare("ibims1", str(source), tmp_path / "out2", DOWNLOAD)


def test_nothing_is_replaced_that_is_no_prepared_set(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", ibims1_set(3))
    precious = write_files(tmp_path / "home", {"thesis.tex": b"years of work"})
    with pytest.raises(UserError, match="exists and is no prepared evaluation set"):
        prepare("ibims1", str(source), precious, DOWNLOAD)
    assert (precious / "thesis.tex").read_bytes() == b"years of work"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        prepare("ibims1", str(source), tmp_path / "empty", DOWNLOAD, partial=True)
    assert len(ShardReader(shard_paths(tmp_path / "empty", "holdout"))) == 3


def test_too_small_a_disk_is_refused_before_anything_is_fetched(
    tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(tmp_path / "mirror/ibims1_core_raw.zip", ibims1_set(2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10))
    faults = Faults()
    with pytest.raises(DownloadError, match=r"ibims1: .* are needed but only 10 B are free"):
        prepare("ibims1", serve(faults).url, tmp_path / "out", DOWNLOAD)
    assert not [entry for entry in faults.log if entry[0] == "GET"]
    source = str(write_files(tmp_path / "source", ibims1_set()))
    with pytest.raises(DownloadError, match=r"ibims1: .* are needed but only 10 B are free"):
        prepare("ibims1", source, tmp_path / "out", DOWNLOAD)
    limited = DOWNLOAD.model_copy(update={"max_disk_gb": 0.001})
    with pytest.raises(DownloadError, match=r"max_disk_gb allows 0\.001 GB"):
        prepare("ibims1", serve(faults).url, tmp_path / "out", limited)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("scannet", None, "scannet cannot be downloaded: sign the ScanNet Terms of Use"),
        ("nuscenes", "http://127.0.0.1:1/x", "nuscenes cannot be downloaded: register"),
        ("sintel", "nowhere", "neither a URL nor a folder"),
        ("sintel", ".", r"none of the 1064 frames is in .* \(first missing: no frame was found\)"),
        ("nyuv2", ".", r"nyu_depth_v2_labeled\.mat is missing"),
        ("ddad", ".", r"ddad\.json is missing; download and unpack"),
        ("nuscenes", ".", r"v1\.0-trainval/scene\.json is missing; register"),
        ("sun_rgbd", ".", r"allsplit\.mat of SUNRGBDtoolbox\.zip is missing"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str | None, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=message) as caught:
        prepare(name, source, tmp_path / "out", DOWNLOAD)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- the command ----------------------------------------------------------------------------


def test_the_command_lists_and_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    shown = run(app, ["data", "evaluation-set", "--list"])
    assert shown.exit_code == 0
    assert all(f"{name}: " in shown.output for name in EVALUATION_SETS)
    source = str(write_files(tmp_path / "source", ibims1_set()))
    done = run(app, ["data", "evaluation-set", "ibims1", "--source", source])
    assert done.exit_code == 0, done.output
    assert "licence: said to be CC BY-NC-SA 4.0" in done.output
    report = json.loads((tmp_path / "artifacts/evaluation_sets/ibims1/report.json").read_text())
    assert report["frames"] == 100
    asked = run(app, ["data", "evaluation-set"])
    assert isinstance(asked.exception, UserError)
