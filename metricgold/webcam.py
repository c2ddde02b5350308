"""A camera of this machine, by ffmpeg: always the newest frame, however slow the model is."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Generator, Iterator

from metricgold import video
from metricgold.errors import UserError

PREFIX = "webcam:"


def is_webcam(name: str) -> bool:
    """Whether an input is a camera: ``webcam:0``, ``webcam:/dev/video2``, ``webcam:NAME``."""
    return name.startswith(PREFIX)


def result_name(name: str) -> str:
    """What a camera's results are called: ``webcam:0`` is ``webcam_0``."""
    return re.sub(r"\W+", "_", name).strip("_")


def ffmpeg_input(name: str, platform: str = sys.platform) -> list[str]:
    """How ffmpeg is told to read a camera.

    Raises:
        UserError: no camera is named, or not as this system names them.
    """
    device = name.removeprefix(PREFIX)
    if not device:
        raise UserError(f"{name}: name a camera, such as {PREFIX}0")
    if platform == "darwin":
        return ["-f", "avfoundation", "-framerate", "30", "-i", f"{device}:none"]
    if platform == "win32":
        if device.isdigit():
            raise UserError(
                f"{name}: on Windows cameras have names, {PREFIX}NAME; "
                "'ffmpeg -list_devices true -f dshow -i dummy' lists them"
            )
        return ["-f", "dshow", "-i", f"video={device}"]
    return ["-f", "v4l2", "-i", f"/dev/video{device}" if device.isdigit() else device]


def newest_frames(name: str) -> Iterator[video.Picture]:
    """Frames [H, W, 3] of a camera; each time the newest, those that came meanwhile are left out.

    Raises:
        UserError: there is no such camera, or it stops working.
    """
    return newest(video.decoded_frames(ffmpeg_input(name), name))


def newest(frames: Generator[video.Picture]) -> Iterator[video.Picture]:
    """The newest frame that has come each time, read by a thread of its own; the last one too."""
    changed, stop = threading.Condition(), threading.Event()
    waiting: list[video.Picture] = []
    ended: list[Exception | None] = []

    def read() -> None:
        error: Exception | None = None
        try:
            for frame in frames:
                with changed:
                    waiting[:] = [frame]
                    changed.notify()
                if stop.is_set():
                    break
        except Exception as raised:  # told by the thread that waits
            error = raised
        frames.close()
        with changed:
            ended.append(error)
            changed.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                frame = waiting.pop() if waiting else None
            if frame is not None:
                yield frame
            elif ended[0] is not None:
                raise ended[0]
            else:
                return
    finally:
        stop.set()
        reader.join(timeout=5)
