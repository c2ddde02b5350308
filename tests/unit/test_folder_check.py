"""`metricgold data check`: what people get wrong about their own data is named."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from metricgold import geometry as geo
from metricgold.cli import app
from metricgold.data.depth_kind import KINDS, DepthKind, patch_votes, verdict
from metricgold.data.folder_check import check_folder, load_spec
from metricgold.data.folder_spec import FolderError, decode_depth
from metricgold.data.hypersim import parse_cameras, read_ray_distance
from metricgold.data.procedural import WorldKind, render_scene

SIZE = (120, 160)
FOV_X_DEG = 75.0
K = np.asarray(geo.intrinsics_from_fov(FOV_X_DEG, *SIZE), np.float64)
CAMERA = {"fx": K[0, 0].item(), "fy": K[1, 1].item(), "cx": 79.5, "cy": 59.5}
Depth = NDArray[np.floating]


def stored_as(depth: Depth, kind: DepthKind, intrinsics: NDArray[np.floating] = K) -> Depth:
    if kind == "z":
        return depth
    return geo.depth_to_ray_distance(depth, intrinsics) if kind == "ray" else 1.0 / depth


def rendered(kind: WorldKind, seed: int) -> tuple[NDArray[np.uint8], Depth]:
    from metricgold.data.procedural import to_srgb

    frame = render_scene(kind, seed, K, SIZE, 1)[0]
    return to_srgb(frame.radiance), frame.depth


@pytest.fixture(scope="module")
def frames() -> list[tuple[NDArray[np.uint8], Depth]]:
    return [rendered("indoor", seed) for seed in range(4)]


def write(
    folder: Path,
    frames: list[tuple[NDArray[np.uint8], Depth]],
    unit_m: float = 0.001,
    kind: DepthKind = "z",
    **spec: Any,
) -> Path:
    """16-bit PNGs in units of ``unit_m`` (inverse depth: float .npy) and a right ``dataset.yaml``
    but for what ``spec`` says."""
    suffix = "npy" if kind == "inverse" else "png"
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, (rgb, depth) in enumerate(frames):
        Image.fromarray(rgb).save(folder / f"rgb/{index:03d}.jpg", quality=90)
        stored = (
            stored_as(np.where(np.isfinite(depth) & (depth < 60), depth, np.nan), kind) / unit_m
        )
        path = folder / f"depth/{index:03d}.{suffix}"
        if suffix == "npy":
            np.save(path, stored.astype(np.float32))
        else:
            Image.fromarray(np.nan_to_num(stored).round().astype(np.uint16)).save(path)
    content = {
        "rgb": "rgb/{id}.jpg",
        "depth": f"depth/{{id}}.{suffix}",
        "depth_unit_m": unit_m,
        "depth_kind": kind,
        "camera": CAMERA,
    } | spec
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return folder


def codes(folder: Path) -> list[str]:
    return [f"{f.level}:{f.code}" for f in check_folder(folder)]


@pytest.mark.parametrize("world", ["indoor", "street"])
@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_rendered_depth(world: WorldKind, kind: DepthKind) -> None:
    frames = [rendered(world, seed)[1] for seed in (1, 2, 3)]
    votes = sum(
        (patch_votes(stored_as(d, kind), np.isfinite(d) & (d > 0), K) for d in frames),
        start=patch_votes(np.ones(SIZE), np.zeros(SIZE, bool), K),
    )
    assert verdict(votes) == kind, votes


def test_kind_is_left_open_where_nothing_tells() -> None:
    flat = np.full(SIZE, 3.0)  # a wall seen head-on: z and its inverse are both constant
    assert verdict(patch_votes(flat, flat > 0, K)) is None
    noise = np.random.default_rng(0).uniform(1, 9, SIZE)
    assert not patch_votes(noise, noise > 0, K)
    tiny = np.ones((6, 6))
    assert not patch_votes(tiny, tiny > 0, K)


def test_kind_of_genuine_tartanair_depth(real_samples: Path) -> None:
    archive = next((real_samples / "tartanair").rglob("depth_left.zip"))
    matrix = geo.make_intrinsics(320, 320, 320, 240)
    with zipfile.ZipFile(archive) as file:
        names = [n for n in sorted(file.namelist()) if n.endswith(".npy")][::8]
        depths = [np.load(BytesIO(file.read(n))) for n in names]
    for kind in KINDS:
        votes = [patch_votes(stored_as(d, kind, matrix), d < 200, matrix) for d in depths]
        assert verdict(sum(votes[1:], start=votes[0])) == kind, votes


def test_kind_of_genuine_hypersim_depth(real_samples: Path) -> None:
    root = real_samples / "hypersim"
    path = next((root / "scenes").rglob("*.depth_meters.hdf5"))
    scene = next(part for part in path.parts if part.startswith("ai_"))
    cameras = parse_cameras((root / "metadata_camera_parameters.csv").read_text())
    intrinsics, _ = geo.hypersim_intrinsics(cameras[scene])
    distance = read_ray_distance(path.read_bytes()).astype(np.float64)
    assert verdict(patch_votes(distance, np.isfinite(distance), intrinsics)) == "ray"


@pytest.mark.parametrize("kind", KINDS)
def test_right_data_gives_no_finding(tmp_path: Path, frames: Any, kind: DepthKind) -> None:
    unit = 1.0 if kind == "inverse" else 0.001
    assert check_folder(write(tmp_path, frames, unit_m=unit, kind=kind)) == []


def test_field_of_view_serves_as_camera(tmp_path: Path, frames: Any) -> None:
    assert codes(write(tmp_path, frames, camera={"fov_x_deg": FOV_X_DEG})) == []


def test_millimetres_taken_for_metres(tmp_path: Path, frames: Any) -> None:
    (found,) = check_folder(write(tmp_path, frames, depth_unit_m=1.0))
    assert (found.level, found.code) == ("warning", "unit")
    assert "millimetres taken for metres? Then depth_unit_m is 0.001" in found.message


@pytest.mark.parametrize("truth", KINDS)
@pytest.mark.parametrize("declared", KINDS)
def test_depth_declared_as_another_kind(
    tmp_path: Path, frames: Any, truth: DepthKind, declared: DepthKind
) -> None:
    unit = 1.0 if truth == "inverse" else 0.001
    found = check_folder(write(tmp_path, frames, unit_m=unit, kind=truth, depth_kind=declared))
    kinds = [f for f in found if f.code == "kind"]
    assert bool(kinds) == (truth != declared)
    assert all(f"set depth_kind: {truth}" in f.message for f in kinds)


def test_sizes_that_differ_are_named(tmp_path: Path, frames: Any) -> None:
    folder = write(tmp_path, frames)
    Image.new("RGB", (80, 60)).save(folder / "rgb/002.jpg")
    (found,) = check_folder(folder)
    assert found.code == "size"
    assert found.message == "002: picture and depth differ in size (80x60 and 160x120 px)"


def test_no_camera_and_cameras_of_another_resolution(tmp_path: Path, frames: Any) -> None:
    assert codes(write(tmp_path / "a", frames, camera=None)) == ["warning:camera-missing"]
    large = {key: 4 * value for key, value in CAMERA.items()}
    assert codes(write(tmp_path / "b", frames, camera=large))[-1] == "warning:camera-centre"
    far = CAMERA | {"fx": 900.0, "fy": 900.0}
    assert "warning:camera-fov" in codes(write(tmp_path / "c", frames, camera=far))


def test_one_pixel_camera_for_several_sizes(tmp_path: Path, frames: Any) -> None:
    folder = write(tmp_path, frames)
    rgb, depth = frames[0]
    write(tmp_path / "x", [(rgb[:60], depth[:60])])
    for name in ("rgb/000.jpg", "depth/000.png"):
        (tmp_path / "x" / name).replace(folder / name.replace("000", "900"))
    assert "error:camera-size" in codes(folder)


def test_frames_without_their_other_half(tmp_path: Path, frames: Any) -> None:
    folder = write(tmp_path, frames)
    (folder / "rgb/001.jpg").unlink()
    (folder / "depth/003.png").rename(folder / "depth/3.png")
    found = check_folder(folder)
    assert [f.message for f in found if f.code == "unpaired"] == [
        "1 frames have no depth: 003",
        "2 frames have no picture: 001, 3",
    ]


def test_folders_may_be_links(tmp_path: Path, frames: Any) -> None:
    write(tmp_path / "real", frames)
    (tmp_path / "linked").mkdir()
    for name in ("rgb", "depth", "dataset.yaml"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    assert codes(tmp_path / "linked") == []


def test_damaged_empty_and_negative_files(tmp_path: Path, frames: Any) -> None:
    folder = write(tmp_path, frames, unit_m=1.0, kind="inverse")
    (folder / "rgb/000.jpg").write_bytes(b"<html>not found</html>")
    content = (folder / "depth/001.npy").read_bytes()
    (folder / "depth/001.npy").write_bytes(content[: len(content) // 2])
    np.save(folder / "depth/002.npy", np.zeros(SIZE, np.float32))
    np.save(folder / "depth/003.npy", np.full(SIZE, -2.0, np.float32))
    found = check_folder(folder)
    assert [f.code for f in found] == ["unreadable", "unreadable", "empty", "negative", "empty"]
    assert "000.jpg" in found[0].message
    assert "001.npy: depth cannot be read" in found[1].message


def test_a_colour_picture_is_no_depth(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "depth.png")
    with pytest.raises(FolderError, match=r"must be one map of numbers \[H, W\], found uint8"):
        decode_depth((tmp_path / "depth.png").read_bytes(), "depth.png")


def test_hardly_any_depth(tmp_path: Path) -> None:
    rgb, depth = rendered("indoor", 9)
    sparse = np.where(np.random.default_rng(0).random(SIZE) < 0.02, depth, np.inf)
    assert codes(write(tmp_path, [(rgb, sparse)])) == ["warning:few-valid"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; it says where"),
        ("rgb: [", "not readable as YAML"),
        ("- 1", "dataset.yaml: the file: Input should be"),
        ("{rgb: 'r/{id}.png', depth: d.png}", "depth: needs {id} once"),
        ("{rgb: 'r/{id}.png', depth: 'd/{id}.png', units: 1}", "units: Extra inputs"),
        ("{rgb: 'r/{id}.png', depth: 'd/{id}.png', depth_kind: disparity}", "depth_kind: Input"),
        (
            "{rgb: 'r/{id}.png', depth: 'd/{id}.png', camera: {fx: 3}}",
            "camera.PixelCamera.fy",
        ),
        (
            "{rgb: 'r/{id}.png', depth: 'd/{id}.png'}",
            "no frame has all its files: 0 match 'r/{id}.png'",
        ),
    ],
)
def test_a_wrong_spec_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "dataset.yaml").write_text(content)
    with pytest.raises(FolderError) as error:
        check_folder(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_command_line(tmp_path: Path, frames: Any) -> None:
    good = CliRunner().invoke(app, ["data", "check", str(write(tmp_path / "good", frames))])
    assert (good.exit_code, "good: nothing wrong found" in good.output) == (0, True)
    warned = CliRunner().invoke(
        app, ["data", "check", str(write(tmp_path / "w", frames, camera=None))]
    )
    assert warned.exit_code == 0
    assert "warning (camera-missing): no camera is given" in warned.output
    bad = write(tmp_path / "bad", frames)
    (bad / "rgb/001.jpg").unlink()
    refused = CliRunner().invoke(app, ["data", "check", str(bad)])
    assert "error (unpaired): 1 frames have no picture: 001" in refused.output
    assert "1 error" in str(refused.exception)


def test_spec_defaults(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("{rgb: 'a/{id}.png', depth: 'b/{id}.npy'}")
    spec = load_spec(tmp_path)
    assert (spec.depth_unit_m, spec.depth_kind, spec.camera) == (1.0, "z", None)
