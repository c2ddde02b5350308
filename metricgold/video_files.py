"""A video to files: every frame as a picture's results, and a video of depth beside the frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metricgold import video, visualize
from metricgold.errors import UserError
from metricgold.outputs import write_outputs
from metricgold.picture_files import CameraOptions, Loaded, Predict, Source
from metricgold.progress import progress_bar


def run_video(
    path: Path,
    predict: Predict,
    *,
    camera: CameraOptions,
    out: Path,
    formats: Sequence[str],
    force: bool = False,
) -> int:
    """Predict every frame; how many there were.

    ``<out>/<name>/000001_depth.npy`` and so on, from 1, and ``<out>/<name>_depth.mp4``: the frame
    and its depth, in the same colours all along (limits of the first frame).

    Raises:
        UserError: results exist and ``force`` is not given, or the video cannot be read.
    """
    info = video.probe(path)
    shown = out / f"{path.stem}_depth.mp4"
    for there in (shown, out / path.stem):
        if there.exists() and not force:
            raise UserError(f"{there}: exists already; name another --out or add --force")
    limits: tuple[float, float] | None = None
    count = 0
    with (
        video.writing(shown, info.rate) as writer,
        progress_bar(description=path.name, total=info.frames, unit="frame") as bar,
    ):
        for count, rgb in enumerate(video.read_frames(path), 1):
            source = Source(path, f"{path.stem}/{count:06d}")
            fov_deg, told = camera.fov_of(rgb.shape[0])
            ((prediction, _),) = predict([Loaded(source, rgb, fov_deg, told)])
            write_outputs(out, source.name, prediction, formats, force)
            limits = limits or visualize.depth_limits(prediction.depth)
            coloured = visualize.colourise(prediction.depth, *limits)
            beside = np.concatenate([rgb, coloured], axis=1)
            writer.add(visualize.add_scale_bar(beside, *limits))
            bar.update()
    print(f"{path}: {count} frames, wrote {out / path.stem} and {shown}")
    return count
