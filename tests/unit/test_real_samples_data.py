"""The parsers on genuine files (skipped where these are absent; they are never copied)."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metricgold.config import DatasetConfig, DownloadConfig, PreprocessConfig, ProfileConfig
from metricgold.data import download, hypersim, preprocess, source
from metricgold.data.dataset import FrameRef, Part
from metricgold.data.hypersim import (
    parse_cameras,
    parse_split,
    read_radiance,
    read_ray_distance,
)
from metricgold.data.registry import get_dataset
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.data.tone_map import exposure_scale, tone_map
from metricgold.geometry import hypersim_intrinsics, ray_distance_to_depth, unproject
from metricgold.workspace import Workspace

COLOUR = "hypersim/third_party_color/frame.0000.color.hdf5"
DEPTH = "hypersim/scenes/ai_037_002/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5"
CAMERAS = "hypersim/metadata_camera_parameters.csv"
SPLIT = "hypersim/analysis/metadata_images_split_scene_v1.csv"


@pytest.fixture
def real_profile(real_samples: Path, tiny_data_config: ProfileConfig, monkeypatch):
    """The genuine TartanAir zips, from a folder named by an environment variable."""
    monkeypatch.setenv("SAMPLE_MIRROR", str(real_samples / "tartanair"))
    settings = DatasetConfig(
        weight=1, mirrors=("$SAMPLE_MIRROR",), train_size=(96, 128),
        include=("hospital/Easy",), holdout_last_frames=8,
    )  # fmt: skip
    return tiny_data_config.model_copy(
        update={
            "datasets": {**tiny_data_config.datasets, "tartanair": settings},
            "download": DownloadConfig(retries=2, timeout_s=20, backoff_s=0.01, parallel=2),
            "preprocess": PreprocessConfig(
                min_valid_ratio=0.3, min_depth_range_m=0.5, rgb_quality=98, workers=1
            ),
        }
    )


def test_tartanair_zips_become_shards(
    tmp_path: Path, real_samples: Path, real_profile: ProfileConfig
) -> None:
    workspace = Workspace(tmp_path)
    source.run(real_profile, workspace, "tartanair")
    manifest = download.run(real_profile, workspace, "tartanair")
    sizes = {e["path"]: e["size"] for e in manifest["files"]}
    assert sizes == {
        f"hospital/Easy/{kind}_left.zip": (
            real_samples / f"tartanair/hospital/Easy/{kind}_left.zip"
        ).stat().st_size
        for kind in ("image", "depth")
    }  # fmt: skip
    report = preprocess.run(real_profile, workspace, "tartanair")
    assert (report["train"]["frames"], report["holdout"]["frames"]) == (32, 8)
    folder = workspace.shards("tartanair")
    held = ShardReader(shard_paths(folder, "holdout"))
    assert held.keys[0] == "hospital/Easy/P000/000096"
    assert held.keys[-1] == "hospital/Easy/P000/000117"
    frame = held[0]
    assert frame.rgb.shape == (480, 640, 3)
    assert frame.intrinsics.tolist() == [[320, 0, 320], [0, 320, 240], [0, 0, 1]]
    _check_against_archive(workspace, real_profile, frame.key, frame.depth)
    _check_percentiles(workspace, real_profile, report["train"]["depth_percentiles_m"])


def _check_percentiles(
    workspace: Workspace, config: ProfileConfig, percentiles: dict[str, float]
) -> None:
    settings = config.datasets["tartanair"]
    dataset, raw = get_dataset("tartanair"), workspace.raw("tartanair")
    train = [ref for ref in dataset.index(raw, settings) if ref.split == "train"]
    frames = (dataset.read(raw, ref, settings, 80.0) for ref in train)
    depth = np.concatenate([frame.depth[frame.valid_mask] for frame in frames])
    for name, told in percentiles.items():
        assert told == pytest.approx(np.percentile(depth, float(name[1:])), rel=0.01)


def _check_against_archive(
    workspace: Workspace, config: ProfileConfig, key: str, depth: np.ndarray
) -> None:
    settings = config.datasets["tartanair"]
    dataset, raw = get_dataset("tartanair"), workspace.raw("tartanair")
    (ref,) = [ref for ref in dataset.index(raw, settings) if ref.key == key]
    native = dataset.read(raw, ref, settings, 80.0)
    assert native.valid_mask.mean() > 0.9
    np.testing.assert_allclose(depth, native.depth, rtol=2.0**-11)


def test_tartanair_depth_is_planar(real_samples: Path, tmp_path: Path) -> None:
    """The floor or a wall of a frame is a plane if, and only if, depth is taken as z."""
    settings = DatasetConfig(weight=1, mirrors=("unused",), train_size=(8, 8))
    dataset, raw = get_dataset("tartanair"), real_samples / "tartanair"
    ref = dataset.index(raw, settings)[0]
    frame = dataset.read(raw, ref, settings, 80.0)
    as_ray = ray_distance_to_depth(frame.depth.astype(float), frame.intrinsics)
    planar = _best_plane_error(frame.depth, frame.intrinsics, window=160)
    assert planar < 0.2 * _best_plane_error(as_ray, frame.intrinsics, window=160)


def _best_plane_error(depth: np.ndarray, intrinsics: np.ndarray, window: int) -> float:
    """Relative rms distance to a plane in the flattest of all half-overlapping windows."""
    points = unproject(depth.astype(float), intrinsics)
    height, width = depth.shape
    errors = []
    for top in range(0, height - window + 1, window // 2):
        for left in range(0, width - window + 1, window // 2):
            patch = points[top : top + window : 4, left : left + window : 4].reshape(-1, 3)
            smallest = np.linalg.svd(patch - patch.mean(axis=0), compute_uv=False)[-1]
            errors.append(smallest / np.sqrt(len(patch)) / patch[:, 2].mean())
    return min(errors)


def test_hypersim_cameras(real_samples: Path) -> None:
    """196 of the 457 public scenes have the nominal, centred camera of 886.81 px."""
    cameras = parse_cameras((real_samples / CAMERAS).read_text())
    urls = (real_samples / "hypersim/hypersim_zip_urls.txt").read_text().split()
    public = [url.rsplit("/", 1)[-1].removesuffix(".zip") for url in urls]
    assert all(
        url == f"{hypersim.MIRROR}/scenes/{s}.zip" for url, s in zip(urls, public, strict=True)
    )
    nominal = np.array([[886.81, 0, 511.5], [0, 886.81, 383.5], [0, 0, 1]])
    error = np.array([np.abs(hypersim_intrinsics(cameras[s])[0] - nominal).max() for s in public])
    assert len(public) == 457
    assert (error < 2.0).sum() == 196
    skew = max(abs(hypersim_intrinsics(cameras[s])[0][0, 1]) for s in public)
    assert 14 < skew < 17


@pytest.mark.slow
def test_published_errors_of_the_nominal_camera_are_reproduced(
    real_samples: Path, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    script = [sys.executable, str(root / "scripts/hypersim_geometry.py")]
    csvs = [str(real_samples / CAMERAS), str(real_samples / SPLIT)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([*script, *csvs], cwd=tmp_path, env=environment, check=True, timeout=600)
    for name in ("hypersim_geometry.json", "hypersim_geometry.csv"):
        published = root / "docs" / "benchmarks" / name
        assert (tmp_path / "docs/benchmarks" / name).read_text() == published.read_text()


def test_hypersim_split(real_samples: Path) -> None:
    split = parse_split((real_samples / SPLIT).read_text())
    counts = {name: list(split.values()).count(name) for name in ("train", "val", "test")}
    assert counts == {"train": 59_543, "val": 7_386, "test": 7_690}


def test_hypersim_file_list(real_samples: Path) -> None:
    """What would be fetched: about 270 GB of 457 zips, without the known-bad scenes."""
    settings = DatasetConfig(weight=1, mirrors=(hypersim.MIRROR,), train_size=(480, 640))
    text = (real_samples / SPLIT).read_bytes()
    files = hypersim.Hypersim().remote_files(settings, lambda _: text)
    scenes = [f for f in files if f.members is not None]
    names = {f.path for f in scenes}
    assert "scenes/ai_013_001.zip" not in names
    assert "scenes/ai_003_001.zip" not in names or all(
        "cam_00" not in m
        for f in scenes
        if f.path == "scenes/ai_003_001.zip"
        for m in f.members or ()
    )
    assert 230e9 < sum(f.expected_bytes or 0 for f in files) < 275e9
    few = settings.model_copy(update={"include": ("ai_001_001", "ai_013_001"), "frame_stride": 10})
    chosen = hypersim.Hypersim().remote_files(few, lambda _: text)[2:]
    assert [f.path for f in chosen] == ["scenes/ai_001_001.zip", "scenes/ai_013_001.zip"]
    assert len(chosen[0].members or ()) == 2 * 10


def test_hypersim_depth_file(real_samples: Path) -> None:
    distance = read_ray_distance((real_samples / DEPTH).read_bytes())
    assert distance.shape == (768, 1024)
    assert distance.dtype == np.float16
    matrix = parse_cameras((real_samples / CAMERAS).read_text())["ai_037_002"]
    intrinsics, _ = hypersim_intrinsics(matrix)
    distance = distance.astype(float)
    depth = ray_distance_to_depth(distance, intrinsics)
    # a flat patch is flat only if the distance along the ray was turned into z, and flattest
    # with the scene's own camera
    flat = _best_plane_error(depth, intrinsics, window=80)
    nominal = np.array([[886.81, 0, 511.5], [0, 886.81, 383.5], [0, 0, 1]])
    assert flat < 1e-4
    assert flat < 0.5 * _best_plane_error(distance, intrinsics, window=80)
    assert flat < _best_plane_error(ray_distance_to_depth(distance, nominal), nominal, window=80)


def test_hypersim_frame_of_native_size(real_samples: Path) -> None:
    """Colour and depth are of two scenes; together they still make a frame of full size."""
    matrix = parse_cameras((real_samples / CAMERAS).read_text())["ai_037_002"]
    ref = FrameRef(
        "ai_037_002/cam_00/0000", "ai_037_002/cam_00", "train",
        Part("", ""), Part("", ""), tuple(matrix.ravel().tolist()),
    )  # fmt: skip
    colour, depth = (real_samples / p for p in (COLOUR, DEPTH))
    frame = hypersim.Hypersim().decode(ref, colour.read_bytes(), depth.read_bytes(), 80.0)
    assert frame.rgb.shape == (768, 1024, 3)
    assert frame.valid_ratio > 0.9
    assert 0.2 < np.median(frame.depth[frame.valid_mask]) < 20


def test_tone_map_of_a_genuine_frame(real_samples: Path) -> None:
    """The table gives what the formula gives pixel by pixel, and P90 lands on 0.8."""
    radiance = read_radiance((real_samples / COLOUR).read_bytes())
    valid = np.ones(radiance.shape[:2], bool)
    picture = tone_map(radiance, valid)
    scale = exposure_scale(radiance, valid)
    linear = radiance.astype(np.float64)
    expected = np.clip(np.maximum(scale * linear, 0) ** (1 / 2.2), 0, 1) * 255
    assert np.abs(picture - expected).max() <= 0.51
    grey = linear @ [0.3, 0.59, 0.11]
    assert (np.percentile(grey, 90) * scale) ** (1 / 2.2) == pytest.approx(0.8, abs=2e-3)


def test_csv_names_a_frame_without_geometry(real_samples: Path) -> None:
    """Listed upstream though it has no depth: it must be tolerated as missing."""
    with (real_samples / SPLIT).open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["scene_name"], row["camera_name"], row["frame_id"])
            == ("ai_006_001", "cam_00", "53")
        ]
    assert [row["included_in_public_release"] for row in rows] == ["True"]
