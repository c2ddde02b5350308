"""A user's own folder goes the way of the public sets: source, download, preprocess, shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from served import logged

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data import download, preprocess, source
from metricgold.data.evaluation_sets.prepare import prepare
from metricgold.data.folder_spec import FolderError, decode_depth, parse_camera
from metricgold.data.mirror_server import Faults
from metricgold.data.procedural import Rendered, render_scene
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.data.tone_map import tone_map
from metricgold.errors import UserError
from metricgold.geometry import depth_to_ray_distance, make_intrinsics
from metricgold.workspace import Workspace

SIZE = (48, 64)
K = make_intrinsics(50.0, 52.0, 30.0, 25.0)
PIXELS = {"fx": 50.0, "fy": 52.0, "cx": 30.0, "cy": 25.0}


@pytest.fixture(scope="module")
def frames() -> list[Rendered]:
    return render_scene("indoor", 11, K, SIZE, 4)


def png16(values: NDArray[np.floating]) -> bytes:
    return encoded("PNG", np.rint(values).astype(np.uint16))


def npy(values: NDArray[np.floating]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float32))
    return buffer.getvalue()


def exr(values: NDArray[np.floating]) -> bytes:
    buffer = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": values.astype(np.float32)}).write(buffer)
    return buffer.getvalue()


def encoded(kind: str, pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(
    folder: Path,
    frames: list[Rendered],
    store: Callable[[NDArray[np.floating]], bytes],
    ending: str,
    scenes: tuple[str, ...] = ("kitchen", "hall"),
    **spec: Any,
) -> Path:
    """Every frame in every scene; ``store`` gets z-depth in metres, 0 where there is none."""
    for scene in scenes:
        for i, frame in enumerate(frames):
            rgb = tone_map(frame.radiance, np.ones(SIZE, bool))
            depth = np.where(np.isfinite(frame.depth), frame.depth, 0)
            files = {
                f"rgb/{scene}/view {i}.png": encoded("PNG", rgb),
                f"depth/{scene}/view {i}.{ending}": store(depth),
            }
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
    described = {"rgb": "rgb/{id}.png", "depth": f"depth/{{id}}.{ending}", "camera": PIXELS, **spec}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(described))
    return folder


@pytest.fixture
def ingest(tmp_path: Path, tiny_data_config: ProfileConfig):
    """Runs the three stages on a mirror; returns the workspace and the report."""

    def run(mirror: str, **changes: Any) -> tuple[Workspace, dict[str, Any]]:
        settings = DatasetConfig(weight=1, mirrors=(mirror,), train_size=(16, 24), **changes)
        datasets = {**tiny_data_config.datasets, "folder": settings}
        config = tiny_data_config.model_copy(update={"datasets": datasets})
        workspace = Workspace(tmp_path / "project")
        source.run(config, workspace, "folder")
        download.run(config, workspace, "folder")
        return workspace, preprocess.run(config, workspace, "folder")

    return run


def stored_frames(workspace: Workspace) -> dict[str, Any]:
    found = {}
    for split in ("train", "holdout"):
        reader = ShardReader(shard_paths(workspace.shards("folder"), split))
        found |= {frame.key: frame for frame in reader[:]}
        reader.close()
    return found


@pytest.mark.parametrize(
    ("store", "ending", "spec", "tolerance"),
    [
        (lambda z: png16(z * 1000), "png", {"depth_unit_m": 0.001}, 1e-3),
        (npy, "npy", {}, 5e-4),
        (exr, "exr", {}, 5e-4),
        (lambda z: npy(depth_to_ray_distance(z, K)), "npy", {"depth_kind": "ray"}, 5e-4),
        (lambda z: npy(np.divide(2.0, z, out=np.zeros_like(z), where=z > 0)), "npy",
         {"depth_kind": "inverse", "depth_unit_m": 0.5}, 5e-4),
    ],
    ids=["millimetres", "npy", "exr", "ray distance", "inverse"],
)  # fmt: skip
def test_depth_of_every_kind_and_unit_becomes_metres(
    tmp_path: Path, ingest, frames, store, ending: str, spec: dict, tolerance: float
) -> None:
    workspace, report = ingest(str(write(tmp_path / "own", frames, store, ending, **spec)))
    found = stored_frames(workspace)
    names = [f"{scene}/view {i}" for scene in ("hall", "kitchen") for i in range(4)]
    assert sorted(found) == names
    assert report["warnings"] == []
    assert {report[s]["scenes"] for s in ("train", "holdout")} == {1}
    for name, frame in found.items():
        truth = frames[int(name[-1])].depth
        expected = np.where(np.isfinite(truth), truth, 0)
        np.testing.assert_array_equal(frame.valid_mask, expected > 0)
        np.testing.assert_allclose(frame.depth, expected, rtol=tolerance, atol=6e-4)
        np.testing.assert_array_equal(frame.intrinsics, K)


def test_a_camera_file_for_each_frame_and_a_sky_value(tmp_path: Path, ingest, frames) -> None:
    folder = tmp_path / "own"

    def with_sky(z: NDArray[np.floating]) -> bytes:
        """The top rows are sky, stored as 65535."""
        stored = np.rint(z * 1000)
        stored[:5] = 65535
        return png16(stored)

    write(
        folder, frames, with_sky, "png",
        depth_unit_m=0.001, sky_value=65535, camera={"file": "camera/{id}.txt"},
    )  # fmt: skip
    for i, text in enumerate(["50 52 30 25", "50, 0, 30\n0, 52, 25\n0, 0, 1", "51 53 31 26"]):
        for scene in ("kitchen", "hall"):
            path = folder / f"camera/{scene}/view {i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    with pytest.raises(UserError, match=r"2 of 8 frames have no file 'camera\.file': hall"):
        ingest(str(folder))
    for scene in ("kitchen", "hall"):
        (folder / f"camera/{scene}/view 3.txt").write_text("50 52 30 25")
    found = stored_frames(ingest(str(folder))[0])
    assert found["hall/view 2"].intrinsics.tolist() == [[51, 0, 31], [0, 53, 26], [0, 0, 1]]
    np.testing.assert_array_equal(found["hall/view 1"].intrinsics, K)
    assert found["hall/view 0"].sky_mask[:5].all()
    assert not found["hall/view 0"].sky_mask[5:].any()
    assert not found["hall/view 0"].valid_mask[:5].any()


def test_a_folder_on_a_server_needs_its_list_of_files(
    tmp_path: Path, ingest, frames, serve
) -> None:
    write(tmp_path / "mirror", frames, npy, "npy")
    faults = Faults()
    workspace, _ = ingest(serve(faults).url)
    assert len(stored_frames(workspace)) == 8
    assert "/files.txt" in {path for _, path, _, _ in logged(faults)}


def test_stride_selection_and_holdout_are_those_of_the_other_sets(
    tmp_path: Path, ingest, frames
) -> None:
    folder = write(tmp_path / "own", frames, npy, "npy", scenes=("a/1", "a/2", "b", "c"))
    workspace, report = ingest(str(folder), frame_stride=2, include=("a", "b"), holdout=("a/2",))
    assert sorted(stored_frames(workspace)) == [
        f"{scene}/view {i}" for scene in ("a/1", "a/2", "b") for i in (0, 2)
    ]
    assert report["holdout"]["frames"] == 2
    raw = {
        p.relative_to(workspace.raw("folder")).parts[1]
        for p in workspace.raw("folder").rglob("*.npy")
    }
    assert raw == {"a", "b"}


def test_of_a_single_scene_the_last_frames_are_held_out(tmp_path: Path, ingest, frames) -> None:
    for i, frame in enumerate(frames):
        for kind, data in (("rgb", encoded("PNG", tone_map(frame.radiance, np.ones(SIZE, bool)))),
                           ("depth", npy(frame.depth))):  # fmt: skip
            path = tmp_path / "own" / f"{kind}-{i}.{'png' if kind == 'rgb' else 'npy'}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    spec = {"rgb": "rgb-{id}.png", "depth": "depth-{id}.npy", "camera": PIXELS}
    (tmp_path / "own/dataset.yaml").write_text(yaml.safe_dump(spec))
    workspace, report = ingest(str(tmp_path / "own"))
    reader = ShardReader(shard_paths(workspace.shards("folder"), "holdout"))
    assert reader.keys == ["all/3"]
    assert report["train"]["frames"] == 3


@pytest.mark.parametrize(
    ("store", "ending", "spec", "told"),
    [
        (lambda z: png16(z * 1000), "png", {}, "millimetres taken for metres"),
        (npy, "npy", {"depth_kind": "inverse"}, "look like z-depth"),
    ],
    ids=["millimetres", "kind"],
)
def test_what_looks_wrong_is_told_and_reported(
    tmp_path: Path, ingest, capsys, store, ending: str, spec: dict, told: str
) -> None:
    frames = render_scene("indoor", 11, make_intrinsics(200, 200, 128, 96), (192, 256), 4)
    folder = tmp_path / "own"
    for i, frame in enumerate(frames):
        rgb = encoded("PNG", tone_map(frame.radiance, np.ones(frame.depth.shape, bool)))
        for name, data in ((f"rgb/s/{i}.png", rgb), (f"depth/s/{i}.{ending}", store(frame.depth))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    camera = {"fx": 200, "fy": 200, "cx": 128, "cy": 96}
    described = {"rgb": "rgb/{id}.png", "depth": f"depth/{{id}}.{ending}", "camera": camera, **spec}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(described))
    if told.startswith("millimetres"):  # nothing lies below 80 "metres"
        with pytest.raises(UserError, match="no training frame is left"):
            ingest(str(folder))
    else:
        assert any(told in warning for warning in ingest(str(folder))[1]["warnings"])
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"camera": None}, "no camera is given, and without the focal length"),
        ({"depth": "depth/x.npy"}, "needs {id} once"),
        ({"depht_unit": 1}, "depht_unit: Extra inputs are not permitted"),
        ({"camera": {"fx": -1, "fy": 1, "cx": 1, "cy": 1}}, "should be greater than 0"),
    ],
    ids=["no camera", "no id", "misspelt", "negative focal length"],
)
def test_a_wrong_description_is_refused(
    tmp_path: Path, ingest, frames, change: dict, told: str
) -> None:
    folder = write(tmp_path / "own", frames, npy, "npy", **change)
    with pytest.raises(UserError, match=r"dataset\.yaml") as error:
        ingest(str(folder))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [("1 2 3", "3 numbers"), ("a b c d", "numbers only"), ("0 1 1 1", "positive focal"),
     ("1 0 0 1 1 0 0 0 1", "not a camera matrix"), ("nan 1 1 1", "not a camera matrix")],
)  # fmt: skip
def test_a_camera_file_that_is_none(text: str, told: str) -> None:
    with pytest.raises(FolderError, match=told):
        parse_camera(text, "k.txt")


def test_an_exr_without_depth_and_a_damaged_one(frames) -> None:
    buffer = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"B": frames[0].depth}).write(buffer)
    with pytest.raises(FolderError, match=r"d\.exr: has the channels B, none of Z, Y, V, R"):
        decode_depth(buffer.getvalue(), "d.exr")
    with pytest.raises(FolderError, match=r"d\.exr: depth cannot be read"):
        decode_depth(exr(frames[0].depth)[:150], "d.exr")


def test_an_own_folder_is_an_evaluation_set_too(
    tmp_path: Path, frames, tiny_data_config: ProfileConfig
) -> None:
    folder = write(tmp_path / "own", frames, npy, "npy")
    out = tmp_path / "out"
    report = prepare("folder", str(folder), out, tiny_data_config.download)
    assert (report["frames"], report["expected_frames"]) == (8, 8)
    reader = ShardReader(shard_paths(out, "holdout"))
    for index, key in enumerate(reader.keys):
        truth = frames[int(key[-1])].depth
        np.testing.assert_array_equal(reader[index].depth, np.where(np.isfinite(truth), truth, 0))
    reader.close()
    (folder / "depth/hall/view 1.npy").unlink()
    with pytest.raises(UserError, match=r"1 of 8 .*missing"):
        prepare("folder", str(folder), out, tiny_data_config.download)
    report = prepare("folder", str(folder), out, tiny_data_config.download, partial=True)
    assert report["frames"] == 7
