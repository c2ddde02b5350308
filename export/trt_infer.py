"""Metric depth of pictures from the command line.

``python -m export.trt_infer image.jpg [more ...]`` writes, for each picture, depth in metres
(.npy), as a 16-bit picture and in colour, and prints the range, the back-end and the time. Takes
TensorRT or TensorRT-RTX where engines and a GPU are there, else ONNX Runtime. Folders, patterns,
videos and webcams are taken too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from export import timing
from export.ort_options import OrtOptions
from export.runtime import AUTO, BACKENDS, DepthResult, DepthSession, open_session
from metricgold.errors import UserError, run_cli
from metricgold.inputs import Inputs, find_inputs, run_inputs
from metricgold.output_formats import ABOUT, DEFAULT_FORMATS
from metricgold.outputs import Prediction, parse_formats
from metricgold.picture_files import CameraOptions, Loaded, Predict, load, parts
from metricgold.video_files import Results
from metricgold.workspace import Workspace

Infer = Callable[[Sequence[Loaded]], list[DepthResult]]


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when every picture was done, 1 when any was refused."""
    options = _parser().parse_args(arguments)
    _require_positive(options, "batch", "frames")
    results = Results(options.out, parse_formats(options.format), options.force)
    camera = CameraOptions(options.fov_deg, options.focal_px)
    inputs = find_inputs(options.images)
    began = time.perf_counter()
    session = open_session(
        options.model,
        options.backend,
        engines=options.engines,
        fused=options.fused,
        options=OrtOptions(threads=options.threads, cache=options.cache),
        weight_streaming_mib=options.weight_streaming_mib,
    )
    opened = time.perf_counter() - began
    infer = partial(
        infer_loaded,
        session,
        steps=options.steps,
        ensemble_size=options.ensemble,
        processing_resolution=options.processing_resolution,
        seed=options.seed,
    )
    with session:
        if options.benchmark is not None:
            print(f"{session.backend.name}: opened in {opened:.2f} s")
            _benchmark(infer, inputs, camera, options.benchmark, options.batch)
            return 0
        refused = run_inputs(
            inputs,
            _predictor(session, infer),
            camera=camera,
            results=results,
            batch_size=options.batch,
            most_frames=options.frames,
        )
    return 1 if refused else 0


def _require_positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be 1 or more, got {value}")


def _benchmark(
    infer: Infer, inputs: Inputs, camera: CameraOptions, rounds: int, batch: int
) -> None:
    """Time the pictures, which are in memory already; nothing is written."""
    if rounds < 1:
        raise UserError(f"--benchmark must be 1 round or more, got {rounds}")
    if inputs.videos or inputs.webcams:
        raise UserError("--benchmark times pictures; leave videos and webcams out")
    pictures = [load(source, camera) for source in inputs.pictures]
    calls = [partial(infer, part) for part in parts(pictures, batch)]
    for line in timing.described(timing.measure(calls, rounds)):
        print(line)


def infer_loaded(
    session: DepthSession, pictures: Sequence[Loaded], **options: Any
) -> list[DepthResult]:
    """``DepthSession.infer_many`` of pictures with their cameras; ``options`` are its own."""
    fovs = [picture.fov_deg for picture in pictures]
    return session.infer_many([picture.rgb for picture in pictures], fov_deg=fovs, **options)


def predictor(session: DepthSession, **options: Any) -> Predict:
    """What is done with a few pictures at once; ``options`` as of ``DepthSession.infer_many``."""
    return _predictor(session, partial(infer_loaded, session, **options))


def _predictor(session: DepthSession, infer: Infer) -> Predict:
    def predict(pictures: Sequence[Loaded]) -> list[tuple[Prediction, str]]:
        """Their depth, and the back-end, working size and time."""
        found = zip(pictures, infer(pictures), strict=True)
        return [(_prediction(session, picture, result), _said(result)) for picture, result in found]

    return predict


def _prediction(session: DepthSession, picture: Loaded, result: DepthResult) -> Prediction:
    return Prediction(
        rgb=picture.rgb,
        depth=result.depth,
        uncertainty=result.uncertainty,
        fov_deg=picture.fov_deg,
        depth_max_m=session.manifest.depth_max_m,
    )


def _said(result: DepthResult) -> str:
    own = ("preprocess", "postprocess")
    networks = sum(time for stage, time in result.seconds.items() if stage not in own)
    return (
        f"{result.backend}, worked at {result.size[1]}x{result.size[0]}, "
        f"{networks:.2f} s in the networks"
    )


def _parser() -> argparse.ArgumentParser:
    ws = Workspace()
    parser = argparse.ArgumentParser(
        prog="python -m export.trt_infer", description="Metric depth of pictures."
    )
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="pictures, folders, patterns such as '*.jpg', videos, webcam:0 (both need ffmpeg)",
    )
    add("--model", type=Path, default=ws.onnx, help="folder of exported graphs (%(default)s)")
    add("--engines", type=Path, help="folder of engines (default: beside the graphs)")
    add("--out", type=Path, default=Path("outputs"), help="folder for results (%(default)s)")
    add(
        "--format",
        default=",".join(DEFAULT_FORMATS),
        help="names with commas, or all (%(default)s). "
        + "; ".join(f"{name}: {about}" for name, about in ABOUT.items()),
    )
    add("--force", action="store_true", help="replace results that exist")
    add(
        "--backend",
        choices=[AUTO, *BACKENDS],
        default=AUTO,
        help="auto takes the first that works and says which; a named one is taken or refused",
    )
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--fov-deg", type=float, help="vertical field of view in degrees")
    camera.add_argument("--focal-px", type=float, help="focal length in pixels of the picture")
    add("--batch", type=int, default=1, help="pictures of one working size at once (%(default)s)")
    add("--frames", type=int, help="of a webcam (default: until Ctrl-C)")
    add("--threads", type=int, help="of ONNX Runtime (default: as many as cores may be used)")
    add("--cache", type=Path, help="folder for optimised graphs: ONNX Runtime opens sooner")
    add(
        "--weight-streaming-mib",
        type=float,
        help="of engines built for it: weights of each that stay on the GPU (default: automatic)",
    )
    add("--steps", type=int, help="denoising steps (default: what the model was trained for)")
    add("--ensemble", type=int, default=1, help="predictions to fuse (%(default)s)")
    add("--processing-resolution", type=int, help="long side in pixels; 0: the picture's own")
    add(
        "--benchmark",
        type=int,
        nargs="?",
        const=20,
        metavar="ROUNDS",
        help="time the pictures (%(const)s rounds) stage by stage in place of writing results",
    )
    add("--fused", action="store_true", help="the one graph from picture to metres, one step")
    add("--seed", type=int, default=0, help="of the initial noise (%(default)s)")
    return parser


if __name__ == "__main__":
    run_cli(main)
