"""Videos by the program ffmpeg, where it is installed: frames in, a video of pictures out."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from metricgold.errors import UserError

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
"""What is taken for a video."""

MAX_SIDE = 16384
"""Widest and highest frame that is read."""

Picture = NDArray[np.uint8]


class VideoError(UserError):
    """A video cannot be read or written; names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """Frames a second (a fraction as ffmpeg writes it), and how many there are if the file says."""

    rate: str
    frames: int | None


def is_video(path: Path) -> bool:
    """Whether the name ends like a video's."""
    return path.suffix.lower() in SUFFIXES


def probe(path: Path) -> VideoInfo:
    """What ffprobe says of the first video stream."""
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    done = subprocess.run(
        [_program("ffprobe", path), "-v", "error", "-select_streams", "v:0", "-show_entries",
         "stream=r_frame_rate,nb_frames", "-of", "json", f"file:{path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    streams = json.loads(done.stdout or "{}").get("streams") if done.returncode == 0 else None
    if not streams:
        reason = done.stderr.strip().splitlines()[-1:] or ["no video stream"]
        raise VideoError(f"{path}: not a video that ffmpeg can read ({reason[0]})")
    count = str(streams[0].get("nb_frames", ""))
    return VideoInfo(streams[0]["r_frame_rate"], int(count) if count.isdigit() else None)


def read_frames(path: Path) -> Iterator[Picture]:
    """Frames [H, W, 3] in order, upright, one at a time.

    Raises:
        VideoError: the file ends in the middle of a frame, or ffmpeg cannot read it.
    """
    return decoded_frames(["-i", f"file:{path}"], str(path))


def decoded_frames(source: Sequence[str], name: str) -> Generator[Picture]:
    """As :func:`read_frames`, of what ``source`` tells ffmpeg to read; ``name`` is for messages."""
    command = [_program("ffmpeg", name), "-v", "error", "-nostdin", *source, "-map", "0:v:0",
               "-f", "image2pipe", "-c:v", "ppm", "-"]  # fmt: skip
    with tempfile.TemporaryFile() as said, _running(command, stdout=True, said=said) as process:
        assert process.stdout is not None
        while (frame := _ppm(process.stdout, name)) is not None:
            yield frame
        if process.wait() != 0:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()
            raise VideoError(f"{name}: {lines[-1] if lines else 'ffmpeg gave up'}")


@contextmanager
def writing(path: Path, rate: str) -> Iterator[VideoWriter]:
    """An H.264 video to add pictures of one size to; ``path`` is there when all is well."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(part, rate)
    try:
        yield writer
        writer.close()
        if part.exists():
            part.replace(path)
    finally:
        writer.stop()
        part.unlink(missing_ok=True)


class VideoWriter:
    """ffmpeg, started with the first picture, whose size the others must have."""

    def __init__(self, path: Path, rate: str) -> None:
        self.path, self.rate = path, rate
        self._process: subprocess.Popen[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()

    def add(self, picture: Picture) -> None:
        """One more frame; a last odd row or column is cut off, as H.264 needs even sides."""
        picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        if self._process is None:
            self._shape = picture.shape
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            self._process = subprocess.Popen(
                [_program("ffmpeg", self.path), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt",
                 "rgb24", "-s", size, "-r", self.rate, "-i", "-", "-pix_fmt", "yuv420p",
                 f"file:{self.path}"],
                stdin=subprocess.PIPE, stderr=self._said, start_new_session=True,
            )  # fmt: skip
        assert picture.shape == self._shape
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(picture).tobytes())
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Finish the file.

        Raises:
            VideoError: ffmpeg could not write it.
        """
        if self._process is None:
            return
        self._process.communicate()
        if self._process.returncode != 0:
            self._said.seek(0)
            lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
            raise VideoError(f"{self.path}: {lines[-1] if lines else 'ffmpeg gave up'}")

    def stop(self) -> None:
        """End ffmpeg, whatever it is at."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._said.close()


@contextmanager
def _running(command: list[str], stdout: bool, said: IO[bytes]) -> Iterator[Any]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE if stdout else None,
        stderr=said,
        start_new_session=True,  # Ctrl-C is for this program to act on
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _ppm(stream: IO[bytes], name: str) -> Picture | None:
    """The next picture of a stream of binary PPM, None at its end."""
    magic = stream.readline()
    if not magic:
        return None
    width, height = (int(n) for n in stream.readline().split())
    stream.readline()
    if magic.strip() != b"P6" or not 0 < max(width, height) <= MAX_SIDE:
        raise VideoError(f"{name}: frames of {width}x{height} pixels are not read")
    data = stream.read(width * height * 3)
    if len(data) < width * height * 3:
        raise VideoError(f"{name}: ends in the middle of a frame")
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _program(program: str, name: Path | str) -> str:
    found = shutil.which(program)
    if found is None:
        raise VideoError(f"{name}: videos need the program {program}, which is not installed")
    return found
