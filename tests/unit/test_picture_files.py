"""Finding pictures, naming results, and going on after a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricgold.errors import UserError
from metricgold.outputs import Prediction
from metricgold.picture_files import CameraOptions, Loaded, find_pictures, run


def picture(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


class OneMetre:
    """Predicts a metre; notes the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, pictures: Sequence[Loaded]) -> list[tuple[Prediction, str]]:
        self.batches.append(len(pictures))
        return [
            (Prediction(p.rgb, np.ones(p.rgb.shape[:2], np.float32), fov_deg=p.fov_deg), "a ruler")
            for p in pictures
        ]


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "in" / "deep" / "b.JPG")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert [(s.path, s.name) for s in find_pictures([a, tmp_path / "in"])] == [
        (a, "a"),
        (b, "deep/b"),
    ]
    assert [s.name for s in find_pictures([f"{tmp_path}/**/*.JPG"])] == ["b"]
    odd = picture(tmp_path / "odd[1].png")
    assert [s.path for s in find_pictures([odd])] == [odd]
    assert find_pictures(["missing.png"])[0].path == Path("missing.png")
    with pytest.raises(UserError, match="no picture in this folder"):
        find_pictures([(tmp_path / "empty").mkdir() or tmp_path / "empty"])
    with pytest.raises(UserError, match="matches no file"):
        find_pictures([f"{tmp_path}/*.webp"])


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_a_bad_picture_does_not_stop_the_others(
    tmp_path: Path, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [picture(tmp_path / f"{n}.png") for n in "abcd"]
    paths[1].write_text("no picture")
    predict, out = OneMetre(), tmp_path / "out"
    refused = run(
        find_pictures(paths),
        predict,
        camera=CameraOptions(fov_deg=50),
        out=out,
        formats=["npy"],
        batch_size=batch_size,
    )
    assert refused == 1
    assert sum(predict.batches) == 3
    assert max(predict.batches) <= batch_size
    assert sorted(p.name for p in out.iterdir()) == [f"{n}_depth.npy" for n in "acd"]
    said = capsys.readouterr()
    assert "b.png: not an image" in said.err
    assert "1 of 4 pictures refused" in said.err
    assert "median 1.00 m" in said.out
    assert "50.0° from --fov-deg; a ruler" in said.out


def test_a_result_that_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, out = [picture(tmp_path / f"{n}.png") for n in "ab"], tmp_path / "out"
    (out / "a_depth.npy").mkdir(parents=True)
    options = {"camera": CameraOptions(), "out": out, "formats": ["npy"], "force": True}
    assert run(find_pictures(paths), OneMetre(), **options) == 1
    assert "a.png: " in capsys.readouterr().err
    assert (out / "b_depth.npy").is_file()
    assert not list(out.glob("*.part*"))


def test_lines_in_a_log_do_not_draw_the_bar_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = find_pictures([picture(tmp_path / f"{n}.png") for n in "abcdefgh"])
    run(sources, OneMetre(), camera=CameraOptions(), out=tmp_path / "out", formats=["npy"])
    said = capsys.readouterr()
    assert said.out.count("depth min 1.00 m") == 8
    assert said.err.count("pictures:") <= 2  # its begin and its end


def test_results_that_exist_are_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = find_pictures([picture(tmp_path / "a.png")])
    predict, out = OneMetre(), tmp_path / "out"

    def again(force: bool) -> int:
        return run(
            sources, predict, camera=CameraOptions(), out=out, formats=["npy", "npz"], force=force
        )

    assert again(False) == 0
    assert again(False) == 1
    assert "a_depth.npy: exists already; name another --out or add --force" in (
        capsys.readouterr().err
    )
    assert predict.batches == [1]
    assert again(True) == 0
    assert predict.batches == [1, 1]


@pytest.mark.parametrize(
    "options",
    [{"fov_deg": 0}, {"fov_deg": 180}, {"focal_px": 0}, {"focal_px": float("nan")},
     {"fov_deg": 50, "focal_px": 50}],
)  # fmt: skip
def test_an_impossible_camera_is_told(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--f"):
        CameraOptions(**options)
