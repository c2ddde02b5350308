"""Videos through ffmpeg; what is said where it is missing, or the file is no video."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from metricgold import video
from metricgold.video import VideoError

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def grey(value: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


@needs_ffmpeg
def test_frames_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    values = [20, 90, 160, 230]
    with video.writing(path, "12") as writer:
        for value in values:
            writer.add(grey(value, (33, 49)))  # odd sides are cut
    assert video.probe(path) == video.VideoInfo("12/1", 4)
    found = list(video.read_frames(path))
    assert [f.shape for f in found] == [(32, 48, 3)] * 4
    assert [round(float(f.mean())) for f in found] == pytest.approx(values, abs=4)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@needs_ffmpeg
def test_nothing_is_left_when_it_ends_early(tmp_path: Path) -> None:
    def interrupted() -> None:
        with video.writing(tmp_path / "a.mp4", "12") as writer:
            writer.add(grey(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@needs_ffmpeg
def test_no_video_and_a_cut_one_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("no video")
    with pytest.raises(VideoError, match=r"a\.mp4: not a video that ffmpeg can read"):
        video.probe(path)
    with pytest.raises(VideoError, match=r"a\.mp4: "):
        list(video.read_frames(path))


def test_without_ffmpeg_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match="need the program ffprobe, which is not installed"):
        video.probe(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="no such file"):
        video.probe(tmp_path / "b.mp4")


def test_names_of_videos() -> None:
    assert video.is_video(Path("a.MP4"))
    assert not video.is_video(Path("a.png"))
