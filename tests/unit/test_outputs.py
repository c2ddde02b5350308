"""Files of a prediction: what they hold, that they are whole, that nothing is replaced unasked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from metricgold import outputs
from metricgold.outputs import (
    FORMATS,
    OutputError,
    Prediction,
    colour_picture,
    depth_to_16_bit,
    parse_formats,
    side_by_side,
    write_outputs,
)
from metricgold.point_cloud import NothingToWriteError

RNG = np.random.default_rng(0)
DEPTH = np.geomspace(2, 5, 12 * 16).reshape(12, 16).astype(np.float32)
RGB = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
PLAIN = Prediction(RGB, DEPTH)
FULL = Prediction(RGB, DEPTH, uncertainty=DEPTH / 10, fov_deg=60.0, depth_max_m=80.0)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def test_every_format_is_written_and_holds_the_depth(tmp_path: Path) -> None:
    openexr = pytest.importorskip("OpenEXR")
    trimesh = pytest.importorskip("trimesh")
    written = write_outputs(tmp_path, "a", FULL, list(FORMATS))
    assert names(tmp_path) == {p.name for p in written}
    assert len(written) == sum(len(f.endings) for f in FORMATS.values())
    np.testing.assert_array_equal(np.load(tmp_path / "a_depth.npy"), DEPTH)
    np.testing.assert_array_equal(np.load(tmp_path / "a_uncertainty.npy"), DEPTH / 10)
    with np.load(tmp_path / "a.npz") as both:
        np.testing.assert_array_equal(both["depth"], DEPTH)
        np.testing.assert_array_equal(both["uncertainty"], DEPTH / 10)
        np.testing.assert_allclose(both["intrinsics"], FULL.intrinsics)
        assert both["valid_mask"].all()
    with openexr.File(str(tmp_path / "a_depth.exr")) as file:
        np.testing.assert_array_equal(file.channels()["Z"].pixels, DEPTH)
    with Image.open(tmp_path / "a_depth_16bit.png") as picture:
        steps = np.asarray(picture)
    unit = json.loads((tmp_path / "a_depth_16bit.json").read_text())["metres_per_step"]
    np.testing.assert_allclose(steps * unit, DEPTH, atol=unit / 2 + 1e-6)
    cloud = trimesh.load(tmp_path / "a_points.ply")
    assert len(cloud.vertices) == DEPTH.size
    np.testing.assert_allclose(np.sort(cloud.vertices[:, 2]), np.sort(DEPTH.ravel()), rtol=1e-5)
    for name in ("a_points.glb", "a_mesh.glb"):
        (shape,) = trimesh.load(tmp_path / name, force="scene").geometry.values()
        assert shape.vertices[:, 2].max() < 0, "glTF's camera looks along -z"


def test_what_has_no_surface_is_left_out_and_told(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    pixel = Prediction(RGB[:1, :1], DEPTH[:1, :1])
    sky = Prediction(RGB, np.full_like(DEPTH, 80.0), depth_max_m=80.0)
    for prediction, without in ((pixel, {"mesh"}), (sky, {"ply", "mesh"})):
        folder, told = tmp_path / str(len(without)), []  # type: tuple[Path, list[str]]
        write_outputs(folder, "a", prediction, ["npy", "ply", "mesh"], leave_out=told.append)
        assert {t.partition(" is left out: ")[0] for t in told} == without
        endings = {"npy": "a_depth.npy", "ply": "a_points.ply", "mesh": "a_mesh.glb"}
        assert names(folder) == {e for f, e in endings.items() if f not in without}
        for options in ({}, {"leave_out": told.append}):
            with pytest.raises(NothingToWriteError):
                write_outputs(tmp_path / "none", "a", prediction, ["mesh"], **options)
        with pytest.raises(NothingToWriteError):
            write_outputs(tmp_path / "none", "a", prediction, ["npy", "mesh"])
    assert names(tmp_path / "none") == set()


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    pytest.importorskip("trimesh")
    written = write_outputs(tmp_path, os.fsdecode(b"n\xff"), FULL, list(FORMATS))
    assert len(written) == sum(len(f.endings) for f in FORMATS.values())
    assert all(os.fsencode(path.name).startswith(b"n\xff") for path in written)


def test_without_uncertainty_that_of_an_earlier_one_goes(tmp_path: Path) -> None:
    write_outputs(tmp_path, "a", FULL, ["npy"])
    written = write_outputs(tmp_path, "a", PLAIN, ["npy"], force=True)
    assert names(tmp_path) == {"a_depth.npy"} == {p.name for p in written}


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    write_outputs(tmp_path, "a", PLAIN, ["npy", "colour"])
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=r"a_depth.npy: exists already; .* --force"):
        write_outputs(tmp_path, "a", FULL, ["npz", "npy"])
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    write_outputs(tmp_path, "a", FULL, ["npz"])
    assert "a.npz" in names(tmp_path)


def test_names_may_have_folders(tmp_path: Path) -> None:
    write_outputs(tmp_path, "b/c/a", PLAIN, ["npy"])
    assert (tmp_path / "b" / "c" / "a_depth.npy").is_file()


@given(
    arrays(
        np.float32,
        (3, 4),
        elements=st.floats(0.00048828125, 60000, width=32) | st.sampled_from([0.0, np.inf, np.nan]),
    )
)
def test_16_bit_pictures_never_saturate_and_keep_their_precision(depth: Any) -> None:
    steps, unit = depth_to_16_bit(depth)
    usable = np.isfinite(depth) & (depth > 0)
    assert ((steps > 0) == usable).all()
    error = np.abs(steps * unit - np.where(usable, depth, 0).astype(np.float64))
    assert (error <= np.where(usable & (depth < unit / 2), unit, unit / 2 * 1.001)).all()
    if depth[usable].max(initial=0) < 65.5:
        assert unit == 0.001


def test_too_far_for_16_bits() -> None:
    with pytest.raises(OutputError, match="70000 m is too far"):
        depth_to_16_bit(np.full((2, 2), 70000.0, np.float32))


def test_where_the_model_saturates_there_is_no_valid_depth() -> None:
    depth = np.array([[1.0, 79.9, 80.0, 0.0, np.nan]], np.float32)
    rgb = np.zeros((1, 5, 3), np.uint8)
    valid = Prediction(rgb, depth, depth_max_m=80.0).valid_mask
    assert valid.tolist() == [[True, False, False, False, False]]
    assert Prediction(rgb, depth).valid_mask.tolist() == [[True, True, True, False, False]]


def test_formats_are_named() -> None:
    assert parse_formats("npy, colour,npy") == ("npy", "colour")
    assert parse_formats("all") == tuple(FORMATS)
    for bad in ("jpg", "npy,jpg", "", " , "):
        with pytest.raises(OutputError, match="known: all, npy"):
            parse_formats(bad)


def test_huge_results_get_a_small_colour_picture() -> None:
    assert max(colour_picture(np.ones((1, 9000), np.float32)).shape) <= outputs.PREVIEW_PX
    wide = Prediction(np.zeros((10, 5000, 3), np.uint8), np.ones((10, 5000), np.float32))
    assert side_by_side(wide).shape[1] <= 3 * outputs.PREVIEW_PX


def test_nothing_half_written_when_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write_outputs(tmp_path, "x", PLAIN, ["npy", "colour"])
    assert os.listdir(tmp_path) == []


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_outputs(tmp_path / "file", "x", PLAIN, ["npy"])
