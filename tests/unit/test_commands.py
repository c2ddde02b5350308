"""``metricgold infer`` and ``info`` as they are called."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy import toy_model
from typer.testing import CliRunner, Result

from metricgold import video
from metricgold.cli import app
from metricgold.errors import UserError

ROOT = Path(__file__).parents[2]
RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    toy_model(fov_matters=True).save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("a.png")
    return tmp_path


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_infer_gives_what_the_pipeline_gives(checkpoint: Path, workplace: Path) -> None:
    done = call("infer", "a.png", "--checkpoint", checkpoint, "--fov-deg", 50, "--format", "npy")
    assert done.exit_code == 0, done.output
    expected = toy_model(fov_matters=True)(RGB, fov_deg=50).prediction[0, ..., 0]
    np.testing.assert_allclose(np.load("outputs/a_depth.npy"), expected, rtol=1e-4)
    assert "vertical field of view 50.0° from --fov-deg; torch on cpu" in done.output


def test_infer_ensembles_folders_and_batches(checkpoint: Path, workplace: Path) -> None:
    (workplace / "in" / "b").mkdir(parents=True)
    Image.fromarray(RGB[:20]).save("in/b/c.png")
    Image.fromarray(RGB).save("in/d.png")
    done = call(
        "infer", "in", "--checkpoint", checkpoint, "--ensemble", 2, "--batch-size", 2, "--out", "o",
        "--format", "npz", "--dtype", "bfloat16",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with np.load("o/b/c.npz") as found:
        assert found["depth"].shape == found["uncertainty"].shape == (20, 40)
        assert (found["uncertainty"] >= 0).all()
        assert "intrinsics" not in found
    assert Path("o/d.npz").is_file()
    assert re.search(r"max [\d.]+ m, give or take [\d.]+ m \(40x20\)", done.output)


def test_the_batch_size_and_other_pictures_do_not_change_a_depth(
    checkpoint: Path, workplace: Path
) -> None:
    for n in range(1, 4):
        Image.fromarray(np.roll(RGB, n, axis=1)).save(f"{n}.png")
    found = []
    for n, names in enumerate((["1.png", "2.png", "3.png"], ["3.png"])):
        done = call(
            "infer", *names, "--checkpoint", checkpoint, "--steps", 2, "--batch-size", 3, "--out",
            f"o{n}", "--format", "npy",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        found.append(np.load(f"o{n}/3_depth.npy"))
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_infer_says_nothing_but_what_is_for_people(checkpoint: Path, workplace: Path) -> None:
    name = os.fsdecode(b"n\xff.png")
    shutil.copy("a.png", name)
    done = subprocess.run(
        [sys.executable, "-m", "metricgold", "infer", name, "--checkpoint", checkpoint],
        capture_output=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert b"give or take" not in done.stdout  # one prediction knows no uncertainty
    assert done.stdout.startswith(b"n\\udcff.png: depth min ")
    assert Path("outputs", os.fsdecode(b"n\xff_depth.npy")).is_file()


def test_infer_in_tiles(checkpoint: Path, workplace: Path) -> None:
    for tile in ([], ["--tile", "16"]):
        done = call(
            "infer", "a.png", "--checkpoint", checkpoint, "--fov-deg", 50, "--out", f"o{len(tile)}",
            "--format", "npy", *tile,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert ("in 9 tiles, at whose borders depth bends" in done.output) == bool(tile)
    whole, tiled = (np.load(f"o{n}/a_depth.npy") for n in (0, 2))
    assert whole.shape == tiled.shape == (30, 40)
    assert not np.allclose(whole, tiled, rtol=1e-2)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_infer_a_video(checkpoint: Path, workplace: Path) -> None:
    frames = [np.roll(RGB, n, axis=1) for n in range(5)]
    with video.writing(Path("clip.mp4"), "10") as writer:
        for frame in frames:
            writer.add(frame)
    arguments = ["infer", "clip.mp4", "--checkpoint", checkpoint, "--format", "npy,side"]
    done = call(*arguments, "--fov-deg", 50)
    assert done.exit_code == 0, done.output
    found = sorted(p.name for p in Path("outputs/clip").glob("*.npy"))
    assert found == [f"{n:06d}_depth.npy" for n in range(1, 6)]
    logs = np.log([np.load(f"outputs/clip/{name}") for name in found])
    assert logs.shape == (5, 30, 40)
    change = 100 * np.abs(np.diff(logs, axis=0)).mean()
    assert f"5 frames, from one to the next depth changes by {change:.1f} % (motion" in done.output
    shown = list(video.read_frames(Path("outputs/clip_depth.mp4")))
    assert len(shown) == 5
    assert shown[0].shape[1] == 80
    assert "exists already" in str(call(*arguments).exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ensemble", "3"], "has two views"),
        (["--format", "jpg"], "unknown format 'jpg'"),
        (["--dtype", "int8"], "--dtype int8: not known"),
        (["--device", "cuda:9"], "--device cuda:9: cannot be used here"),
        (["--device", "nonsense"], "--device nonsense: cannot be used here"),
        (["--fov-deg", "190"], "--fov-deg must lie"),
        (["--checkpoint", "./none"], "none: no MetricGold checkpoint there"),
    ],
)
def test_bad_options_are_one_sentence(
    checkpoint: Path, workplace: Path, arguments: list[str], said: str
) -> None:
    done = call("infer", "a.png", "--checkpoint", checkpoint, *arguments)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not Path("outputs").exists()


def test_a_refused_picture_gives_exit_code_1(checkpoint: Path, workplace: Path) -> None:
    done = call("infer", "a.png", "none.png", "--checkpoint", checkpoint, "--format", "npy")
    assert done.exit_code == 1
    assert "none.png: no such file" in done.output
    assert Path("outputs/a_depth.npy").is_file()


def test_info(checkpoint: Path, workplace: Path) -> None:
    done = call("info", "--checkpoint", checkpoint, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["checkpoint"]["depth range (m)"] == "0.1 to 80"
    assert found["checkpoint"]["inference steps"] == 1
    assert found["torch"].startswith("2.")
    told = call("info").output
    assert "none at artifacts/metricgold" in told
    assert "torch: 2." in told


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['metricgold', 'infer', '--help']\n"
        "from metricgold.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'diffusers', 'prefect', 'dvc'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout
