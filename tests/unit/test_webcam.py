"""Cameras through ffmpeg. None is at hand, so that ffmpeg's own test picture stands in for one."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from metricgold import video, video_files, webcam
from metricgold.errors import UserError
from metricgold.outputs import Prediction
from metricgold.picture_files import CameraOptions, Loaded
from metricgold.video_files import Results, run_video, run_webcam

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
STAND_IN = ["-re", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=20:duration=5"]
CAMERA = CameraOptions(fov_deg=50)


def metres(pictures: Sequence[Loaded]) -> list[tuple[Prediction, str]]:
    """Depth from 1 m at the top to 2 m at the bottom."""
    found = []
    for one in pictures:
        height, width = one.rgb.shape[:2]
        depth = np.linspace(1, 2, height, dtype=np.float32)[:, None].repeat(width, axis=1)
        found.append((Prediction(one.rgb, depth, fov_deg=one.fov_deg), "a ruler"))
    return found


@pytest.mark.parametrize(
    ("name", "platform", "expected"),
    [
        ("webcam:0", "linux", ["-f", "v4l2", "-i", "/dev/video0"]),
        ("webcam:/dev/video2", "linux", ["-f", "v4l2", "-i", "/dev/video2"]),
        ("webcam:1", "darwin", ["-f", "avfoundation", "-framerate", "30", "-i", "1:none"]),
        ("webcam:My Cam", "win32", ["-f", "dshow", "-i", "video=My Cam"]),
    ],
)
def test_how_each_system_names_cameras(name: str, platform: str, expected: list[str]) -> None:
    assert webcam.is_webcam(name)
    assert webcam.ffmpeg_input(name, platform) == expected


def test_names_that_do_not_do() -> None:
    with pytest.raises(UserError, match="name a camera"):
        webcam.ffmpeg_input("webcam:", "linux")
    with pytest.raises(UserError, match="on Windows cameras have names"):
        webcam.ffmpeg_input("webcam:0", "win32")
    assert not webcam.is_webcam("webcam.png")
    assert webcam.result_name("webcam:/dev/video2") == "webcam_dev_video2"


def test_frames_that_came_meanwhile_are_left_out() -> None:
    taken = threading.Event()

    def frames() -> Generator[NDArray[np.uint8]]:
        for number in range(50):
            yield np.full((2, 2, 3), number, np.uint8)
            if number == 0:
                taken.wait(10)

    found = webcam.newest(frames())
    assert int(next(found)[0, 0, 0]) == 0
    taken.set()
    time.sleep(0.2)
    assert [int(f[0, 0, 0]) for f in found] == [49], "the last one, and no other, is waiting"


def test_an_error_of_the_reader_is_raised_after_the_last_frame() -> None:
    def frames() -> Generator[NDArray[np.uint8]]:
        yield np.zeros((2, 2, 3), np.uint8)
        raise video.VideoError("webcam:0: unplugged")

    found = webcam.newest(frames())
    next(found)
    with pytest.raises(UserError, match="unplugged"):
        next(found)


def test_a_reader_that_is_left_is_closed() -> None:
    closed = threading.Event()

    def frames() -> Generator[NDArray[np.uint8]]:
        try:
            while True:
                yield np.zeros((2, 2, 3), np.uint8)
        finally:
            closed.set()

    found = webcam.newest(frames())
    next(found)
    found.close()
    assert closed.wait(5)


@needs_ffmpeg
def test_a_camera_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webcam, "ffmpeg_input", lambda name: STAND_IN)
    results = Results(tmp_path, ["npy"])
    assert run_webcam("webcam:0", metres, camera=CAMERA, results=results, most=3) == 3
    names = sorted(p.name for p in (tmp_path / "webcam_0").iterdir())
    assert names == [f"{n:06d}_depth.npy" for n in (1, 2, 3)]
    shown = list(video.read_frames(tmp_path / "webcam_0_depth.mp4"))
    assert shown[0].shape[1] == 128
    with pytest.raises(UserError, match="exists already"):
        run_webcam("webcam:0", metres, camera=CAMERA, results=results, most=3)


@needs_ffmpeg
def test_ctrl_c_ends_a_camera_and_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webcam, "ffmpeg_input", lambda name: STAND_IN)
    calls = 0

    def interrupted(pictures: Sequence[Loaded]) -> list[tuple[Prediction, str]]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return metres(pictures)

    results = Results(tmp_path, ["npy"])
    assert run_webcam("webcam:0", interrupted, camera=CAMERA, results=results) == 2
    assert len(list((tmp_path / "webcam_0").glob("*.npy"))) == 2
    assert video.probe(tmp_path / "webcam_0_depth.mp4").frames
    calls, path = 2, tmp_path / "webcam_0_depth.mp4"
    other = Results(tmp_path / "other", ["npy"])
    with pytest.raises(KeyboardInterrupt):
        run_video(path, interrupted, camera=CAMERA, results=other)


@needs_ffmpeg
def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"webcam:/dev/no_camera: "):
        run_webcam(
            "webcam:/dev/no_camera", metres, camera=CAMERA, results=Results(tmp_path, ["npy"])
        )
    assert not list(tmp_path.rglob("*.*"))


@needs_ffmpeg
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_video_in_batches(tmp_path: Path, batch_size: int) -> None:
    with video.writing(tmp_path / "a.mp4", "12") as writer:
        for value in range(5):
            writer.add(np.full((32, 48, 3), 40 * value, np.uint8))
    sizes: list[int] = []

    def predict(pictures: Sequence[Loaded]) -> list[tuple[Prediction, str]]:
        sizes.append(len(pictures))
        return metres(pictures)

    count = run_video(
        tmp_path / "a.mp4",
        predict,
        camera=CAMERA,
        results=Results(tmp_path / "out", ["npy"]),
        batch_size=batch_size,
    )
    assert count == sum(sizes) == 5
    assert max(sizes) == min(batch_size, 5)
    assert len(list(video.read_frames(tmp_path / "out" / "a_depth.mp4"))) == 5


def test_a_cameras_video_runs_as_time_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.5, 0.55, 2.0])
    monkeypatch.setattr(video_files.time, "monotonic", lambda: next(now))
    due = video_files._repetitions()
    assert [due(), due(), due()] == [5, 1, 14]
