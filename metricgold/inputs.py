"""What a command line names, pictures, videos and cameras alike, to files. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metricgold.picture_files import CameraOptions, Predict, Source, find_pictures, run
from metricgold.video import is_video
from metricgold.video_files import Results, run_video, run_webcam
from metricgold.webcam import is_webcam


@dataclass(frozen=True)
class Inputs:
    """What was named, sorted by kind."""

    pictures: Sequence[Source]
    videos: Sequence[Path]
    webcams: Sequence[str]


def find_inputs(names: Sequence[str]) -> Inputs:
    """Videos and cameras by their names, all else as ``find_pictures`` takes it.

    Raises:
        UserError: as ``find_pictures``.
    """
    webcams = [n for n in names if is_webcam(n)]
    videos = [Path(n) for n in names if not is_webcam(n) and is_video(Path(n))]
    others = [n for n in names if not is_webcam(n) and not is_video(Path(n))]
    return Inputs(find_pictures(others), videos, webcams)


def run_inputs(
    inputs: Inputs,
    predict: Predict,
    *,
    camera: CameraOptions,
    results: Results,
    batch_size: int = 1,
    most_frames: int | None = None,
) -> int:
    """Predict and write them all; how many pictures were refused.

    Args:
        most_frames: after which a camera is left; None: at Ctrl-C.

    Raises:
        UserError: what concerns every picture, a video or a camera.
    """
    for path in inputs.videos:
        run_video(path, predict, camera=camera, results=results, batch_size=batch_size)
    for name in inputs.webcams:
        run_webcam(name, predict, camera=camera, results=results, most=most_frames)
    return run(
        inputs.pictures,
        predict,
        camera=camera,
        out=results.out,
        formats=results.formats,
        force=results.force,
        batch_size=batch_size,
    )
