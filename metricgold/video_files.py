"""A video or a camera to files: every frame's results, and a video of depth beside the frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from metricgold import video, visualize, webcam
from metricgold.errors import UserError
from metricgold.evaluation.temporal import flicker
from metricgold.outputs import Prediction, write_outputs
from metricgold.picture_files import CameraOptions, Loaded, Predict, Source
from metricgold.progress import progress_bar

WEBCAM_RATE = 10
"""Frames a second of a camera's video; a prediction is shown for as long as it was the newest."""


@dataclass(frozen=True)
class Results:
    """Where they go, in which formats, and whether they replace what exists."""

    out: Path
    formats: Sequence[str]
    force: bool = False


def run_video(
    path: Path,
    predict: Predict,
    *,
    camera: CameraOptions,
    results: Results,
    batch_size: int = 1,
) -> int:
    """Predict every frame, ``batch_size`` at once; how many there were.

    ``<out>/<name>/000001_depth.npy`` and so on, from 1, and ``<out>/<name>_depth.mp4``: the frame
    and its depth, in the same colours all along (limits of the first frame).

    Raises:
        UserError: results exist and are not to be replaced, or the video cannot be read.
    """
    info = video.probe(path)
    shown = _refuse_existing(path.stem, results)
    frames = video.read_frames(path)
    predicted = _predicted(frames, path, path.stem, predict, camera, batch_size)
    changes = _write(predicted, path.name, shown, info, results, lambda: 1)
    print(f"{path}: {_told(changes)}, wrote {results.out / path.stem} and {shown}")
    return len(changes)


def run_webcam(
    name: str,
    predict: Predict,
    *,
    camera: CameraOptions,
    results: Results,
    most: int | None = None,
) -> int:
    """Predict a camera's newest frame again and again, until ``most`` or Ctrl-C; how many.

    Files as of :func:`run_video`. Its video runs as time did: :data:`WEBCAM_RATE`.

    Raises:
        UserError: as :func:`run_video`, or there is no such camera.
    """
    stem = webcam.result_name(name)
    shown = _refuse_existing(stem, results)
    frames = islice(webcam.newest_frames(name), most)
    predicted = _predicted(frames, Path(name), stem, predict, camera, 1)
    info = video.VideoInfo(str(WEBCAM_RATE), most)
    changes = _write(predicted, name, shown, info, results, _repetitions(), (KeyboardInterrupt,))
    if not changes:
        raise UserError(f"{name}: gave no frame")
    print(f"{name}: {_told(changes)}, wrote {results.out / stem} and {shown}")
    return len(changes)


def _refuse_existing(stem: str, results: Results) -> Path:
    """The video that will be written."""
    shown = results.out / f"{stem}_depth.mp4"
    for there in (shown, results.out / stem):
        if there.exists() and not results.force:
            raise UserError(f"{there}: exists already; name another --out or add --force")
    return shown


def _predicted(
    frames: Iterable[video.Picture],
    path: Path,
    stem: str,
    predict: Predict,
    camera: CameraOptions,
    batch_size: int,
) -> Iterator[tuple[str, Prediction]]:
    """What each frame's results are called, and its prediction."""
    numbered = enumerate(frames, 1)
    while part := list(islice(numbered, batch_size)):
        loaded = []
        for number, rgb in part:
            fov_deg, told = camera.fov_of(rgb.shape[0])
            loaded.append(Loaded(Source(path, f"{stem}/{number:06d}"), rgb, fov_deg, told))
        for one, (prediction, _) in zip(loaded, predict(loaded), strict=True):
            yield one.source.name, prediction


def _write(
    predicted: Iterable[tuple[str, Prediction]],
    name: str,
    shown: Path,
    info: video.VideoInfo,
    results: Results,
    repetitions: Callable[[], int],
    ended_by: tuple[type[BaseException], ...] = (),
) -> list[float]:
    """Write all results and the video, each frame as often as ``repetitions`` says; for every frame
    how much its depth changed since the one before, see :func:`flicker` (0 for the first).

    After what is in ``ended_by`` the files that are there are kept, as at the last frame.
    """
    limits: tuple[float, float] | None = None
    changes: list[float] = []
    before: Prediction | None = None
    with (
        video.writing(shown, info.rate) as writer,
        progress_bar(description=name, total=info.frames, unit="frame") as bar,
        suppress(*ended_by),
    ):
        for frame, prediction in predicted:
            pair = [p.depth for p in (before or prediction, prediction)]
            changes.append(flicker(np.stack(pair)))
            before = prediction
            left_out: list[str] = []
            write_outputs(
                results.out, frame, prediction, results.formats, results.force, left_out.append
            )
            for told in left_out:
                bar.write(f"{frame}: {told}")
            limits = limits or visualize.depth_limits(prediction.depth)
            coloured = visualize.colourise(prediction.depth, *limits)
            beside = np.concatenate([prediction.rgb, coloured], axis=1)
            beside = visualize.add_scale_bar(beside, *limits)
            for _ in range(repetitions()):
                writer.add(beside)
            bar.update()
    return changes


def _told(changes: Sequence[float]) -> str:
    """How many frames there were, and how steady their depth is."""
    told = f"{len(changes)} frames"
    if len(changes) > 1:
        mean = sum(changes) / (len(changes) - 1)
        told += f", from one to the next depth changes by {100 * mean:.1f} % (motion included)"
    return told


def _repetitions() -> Callable[[], int]:
    """Frames of :data:`WEBCAM_RATE` that have become due since the call before, one at least."""
    started, written = time.monotonic(), 0

    def due() -> int:
        nonlocal written
        now = max(1, round((time.monotonic() - started) * WEBCAM_RATE) - written)
        written += now
        return now

    return due
