"""The command line: every kind of picture, what is written, what is said, what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export import timing, trt_infer
from export.runtime import DepthResult, DepthSession
from metricgold import video, webcam
from metricgold.errors import run_cli
from metricgold.outputs import FORMATS
from metricgold.picture_files import Loaded
from metricgold.workspace import Workspace

RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
Infer = Callable[..., int]


@pytest.fixture
def infer(exported: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Infer:
    """Runs the command line in an empty folder; returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        common = ["--model", str(exported.onnx), "--backend", "onnxruntime-cpu"]
        monkeypatch.setattr(sys, "argv", ["trt_infer", *arguments, *common])
        with pytest.raises(SystemExit) as ended:
            run_cli(trt_infer.main)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


def outputs(folder: Path = Path("outputs")) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_all_files_and_the_summary(infer: Infer, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(RGB).save("photo.png")
    assert infer("photo.png") == 0
    assert outputs() == [
        "photo_depth.npy",
        "photo_depth_16bit.json",
        "photo_depth_16bit.png",
        "photo_depth_colour.png",
    ]
    depth = np.load("outputs/photo_depth.npy")
    assert depth.dtype == np.float32
    assert depth.shape == (30, 40)
    with Image.open("outputs/photo_depth_16bit.png") as picture:
        assert picture.mode == "I;16"
        steps = np.asarray(picture)
    unit = json.loads(Path("outputs/photo_depth_16bit.json").read_text())["metres_per_step"]
    np.testing.assert_allclose(steps * unit, depth, atol=0.51 * unit)
    with Image.open("outputs/photo_depth_colour.png") as picture:
        assert picture.mode == "RGB"
        assert picture.height > picture.width * 30 / 40  # the scale bar lies below
    said = capsys.readouterr()
    assert said.err == ""
    for part in (
        f"min {depth.min():.2f} m",
        f"median {np.median(depth):.2f} m",
        f"max {depth.max():.2f} m",
        "onnxruntime-cpu",
        " s in the networks, ",
        "field of view unknown",
        "wrote outputs",
    ):
        assert part in said.out
    assert infer("photo.png") == 1
    assert "photo_depth.npy: exists already; name another --out or add --force" in (
        capsys.readouterr().err
    )
    assert infer("photo.png", "--force") == 0


def test_every_format(infer: Infer) -> None:
    Image.fromarray(RGB).save("photo.png")
    assert infer("photo.png", "--fov-deg", "60", "--format", "all", "--ensemble", "2") == 0
    endings = {ending for form in FORMATS.values() for ending in form.endings}
    assert set(outputs()) == {f"photo{ending}" for ending in endings}


def test_field_of_view_sources(infer: Infer, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 24
    Image.fromarray(RGB).save("photo.jpg", exif=exif)
    assert infer("photo.jpg") == 0
    assert "° from EXIF" in capsys.readouterr().out
    assert infer("photo.jpg", "--fov-deg", "50", "--force") == 0
    assert "50.0° from --fov-deg" in capsys.readouterr().out
    assert infer("photo.jpg", "--focal-px", "15", "--force") == 0
    assert "90.0° from --focal-px" in capsys.readouterr().out


@pytest.mark.parametrize("focal", ["0", "-3", "nan"])
def test_bad_options_are_one_line(
    infer: Infer, capsys: pytest.CaptureFixture[str], focal: str
) -> None:
    Image.fromarray(RGB).save("photo.png")
    assert infer("photo.png", "photo.png", "--focal-px", focal) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert outputs() == []


def test_ensemble_writes_its_uncertainty(infer: Infer) -> None:
    Image.fromarray(RGB).save("photo.png")
    assert infer("photo.png", "--ensemble", "3", "--steps", "2") == 0
    assert np.load("outputs/photo_uncertainty.npy").shape == (30, 40)
    assert infer("photo.png", "--force") == 0
    assert "photo_uncertainty.npy" not in outputs(), "it belongs to an older result"


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "one_pixel.png": lambda: Image.new("RGB", (1, 1), (9, 9, 9)),
    "cmyk.jpg": lambda: Image.fromarray(RGB).convert("CMYK"),
    "deep.png": lambda: Image.fromarray(RGB[..., 0].astype(np.uint16) * 257),
    "rgba.png": lambda: Image.fromarray(RGB).convert("RGBA"),
    "grey.png": lambda: Image.fromarray(RGB).convert("L"),
    "palette.gif": lambda: Image.fromarray(RGB).quantize(16),
    "narrow.png": lambda: Image.new("RGB", (1, 900)),
}


@pytest.mark.parametrize("name", list(PICTURES))
def test_unusual_pictures_are_handled(infer: Infer, name: str) -> None:
    picture = PICTURES[name]()
    picture.save(name)
    assert infer(name) == 0
    depth = np.load(f"outputs/{Path(name).stem}_depth.npy")
    assert depth.shape == (picture.height, picture.width)
    assert np.isfinite(depth).all()
    assert (depth > 0).all()


def test_rotated_by_exif(infer: Infer) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save("turned.jpg", exif=exif)
    assert infer("turned.jpg") == 0
    assert np.load("outputs/turned_depth.npy").shape == (40, 30)


def make_bad(kind: str) -> Path:
    path = Path("bad.png")
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "truncated":
        Image.fromarray(RGB).save(path)
        path.write_bytes(path.read_bytes()[:900])
    return path


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated"])
def test_bad_input_is_one_line_and_no_output(
    infer: Infer, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert infer(str(make_bad(kind))) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: bad.png: ")
    assert said.count("\n") == 1
    assert outputs() == []


def test_bad_ones_do_not_stop_the_others(infer: Infer, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(RGB).save("a.png")
    Image.fromarray(RGB).save("b.png")
    assert infer("a.png", "missing.png", "b.png") == 1
    assert {"a_depth.npy", "b_depth.npy"} <= set(outputs())
    assert "1 of 3 pictures refused" in capsys.readouterr().err


def test_a_picture_too_large_for_the_memory_does_not_stop_the_others(
    infer: Infer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = DepthSession.infer_many

    def infer_many(session: DepthSession, pictures: Any, **options: Any) -> Any:
        if pictures[0].shape[0] > 30:
            raise MemoryError("Unable to allocate 27.9 GiB\nfor an array")
        return usual(session, pictures, **options)

    monkeypatch.setattr(DepthSession, "infer_many", infer_many)
    for name, height in (("a.png", 30), ("large.png", 31), ("b.png", 30)):
        Image.new("RGB", (40, height)).save(name)
    assert infer("a.png", "large.png", "b.png") == 1
    assert {"a_depth.npy", "b_depth.npy"} <= set(outputs())
    said = capsys.readouterr().err
    told = "error: large.png: there is not enough memory (Unable to allocate 27.9 GiB for an array)"
    assert told in said
    assert "Traceback" not in said
    assert infer("large.png", "--benchmark", "1") == 1
    assert capsys.readouterr().err.startswith("error: there is not enough memory (Unable")


def test_two_pictures_of_one_name_do_not_share_results(
    infer: Infer, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(RGB).save("a.png")
    Image.fromarray(RGB[:20]).save("a.jpg")
    assert infer("a.png", "a.jpg") == 1
    assert "a.jpg: its results would replace those of a.png" in capsys.readouterr().err
    assert np.load("outputs/a_depth.npy").shape == (30, 40)


def test_missing_model_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("a.png")
    monkeypatch.setattr(sys, "argv", ["trt_infer", "a.png"])
    with pytest.raises(SystemExit, match="1"):
        run_cli(trt_infer.main)
    said = capsys.readouterr().err
    assert "manifest.json: no such file; run" in said
    assert said.count("\n") == 1


def test_genuine_pictures(infer: Infer, real_samples: Path) -> None:
    pictures = sorted(
        [*real_samples.glob("kitti/rgb/*.png"), *real_samples.glob("nyuv2/rgb/*.jpg")]
    )
    assert len(pictures) >= 4
    assert infer(*map(str, pictures)) == 0
    assert len(outputs()) == 4 * len(pictures)
    for path in pictures:
        with Image.open(path) as picture:
            assert np.load(f"outputs/{path.stem}_depth.npy").shape == picture.size[::-1]


def test_times_are_told_stage_by_stage_and_nothing_is_written(
    infer: Infer, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(RGB).save("a.png")
    Image.fromarray(RGB[:, ::-1]).save("b.png")
    assert infer("a.png", "b.png", "--benchmark", "3") == 0
    said = capsys.readouterr().out
    assert "onnxruntime-cpu: opened in" in said
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line[:1].isalpha()}
    for stage in ("preprocess", "encode", "denoise", "decode", "postprocess", "all"):
        half, most = (float(number) for number in rows[stage])
        assert 0 < half <= most
    assert "images/s; peak memory" in said
    assert outputs() == []
    assert infer("a.png", "--fused", "--benchmark", "1") == 0
    assert "fused" in capsys.readouterr().out
    assert infer("a.png", "--benchmark", "0") == 1
    assert "--benchmark must be 1 round or more" in capsys.readouterr().err


def test_pictures_of_one_size_go_together(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(5):
        Image.fromarray(np.roll(RGB, index, axis=1)).save(f"{index}.png")
    assert infer(*(f"{i}.png" for i in range(5)), "--out", "one", "--format", "npy") == 0
    sizes: list[int] = []
    real = trt_infer.infer_loaded

    def noted(session: Any, pictures: Sequence[Loaded], **options: Any) -> list[DepthResult]:
        sizes.append(len(pictures))
        return real(session, pictures, **options)

    monkeypatch.setattr(trt_infer, "infer_loaded", noted)
    options = ["--out", "many", "--format", "npy", "--batch", "2", "--threads", "1"]
    assert infer(*(f"{i}.png" for i in range(5)), *options) == 0
    assert sizes == [2, 2, 1]
    for index in range(5):
        one, many = (np.load(f"{folder}/{index}_depth.npy") for folder in ("one", "many"))
        np.testing.assert_allclose(many, one, rtol=1e-4)


def test_a_batch_is_timed_as_a_whole(infer: Infer, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(RGB).save(name)
    assert infer("a.png", "b.png", "c.png", "--batch", "2", "--benchmark", "2") == 0
    said = capsys.readouterr().out
    assert "first call" in said
    assert "images/s; peak memory" in said
    assert outputs() == []


@pytest.mark.parametrize("option", ["--batch", "--frames", "--threads"])
def test_a_number_below_one_is_told(
    infer: Infer, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    Image.fromarray(RGB).save("a.png")
    assert infer("a.png", option, "0") == 1
    assert f"{option.strip('-')} must be 1 or more, got 0" in capsys.readouterr().err


def test_graphs_are_cached_where_it_is_asked_for(infer: Infer) -> None:
    Image.fromarray(RGB).save("a.png")
    assert infer("a.png", "--cache", "graphs", "--out", "first") == 0
    assert len(list(Path("graphs").glob("*/graph.onnx"))) == 3
    assert infer("a.png", "--cache", "graphs", "--out", "second") == 0
    first, second = (np.load(f"{folder}/a_depth.npy") for folder in ("first", "second"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_video_a_webcam_and_a_picture(
    infer: Infer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = ["-f", "lavfi", "-i", "testsrc=size=40x30:rate=10:duration=1"]
    monkeypatch.setattr(webcam, "ffmpeg_input", lambda name: stand_in)
    Image.fromarray(RGB).save("a.png")
    with video.writing(Path("clip.mp4"), "10") as writer:
        for index in range(3):
            writer.add(np.roll(RGB, index, axis=1))
    options = ["--fov-deg", "50", "--format", "npy,png16", "--batch", "2", "--frames", "2"]
    assert infer("a.png", "clip.mp4", "webcam:0", *options) == 0
    assert np.load("outputs/a_depth.npy").shape == (30, 40)
    assert len(list(Path("outputs/clip").glob("*_depth.npy"))) == 3
    assert len(list(Path("outputs/webcam_0").glob("*_depth_16bit.png"))) <= 2
    assert len(list(video.read_frames(Path("outputs/clip_depth.mp4")))) == 3
    assert Path("outputs/webcam_0_depth.mp4").is_file()
    assert "clip.mp4: 3 frames" in capsys.readouterr().out
    assert infer("clip.mp4", "--benchmark", "1") == 1
    assert "leave videos and webcams out" in capsys.readouterr().err


def test_timings_by_hand() -> None:
    pauses = iter([0.0, 1.0, 2.0, 3.0, 4.0])

    def call() -> DepthResult:
        nothing = np.zeros((1, 1), np.float32)
        seconds = {"encode": next(pauses)}
        return DepthResult(
            depth=nothing, uncertainty=None, backend="x", size=(1, 1), seconds=seconds
        )

    found = timing.measure([call, call], 2)
    assert found.calls["encode"] == [1.0, 2.0, 3.0, 4.0]
    assert found.pictures == 4
    assert found.percentile("encode", 50) == 2500.0
    assert found.images_a_second == pytest.approx(4 / sum(found.calls["all"]))
