"""Metric depth of pictures from the command line.

``python -m export.trt_infer image.jpg [more ...]`` writes, for each picture, depth in metres
(.npy), as a 16-bit picture and in colour, and prints the range, the back-end and the time. Takes
TensorRT or TensorRT-RTX where engines and a GPU are there, else ONNX Runtime.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from export import timing
from export.runtime import AUTO, BACKENDS, DepthSession, open_session
from metricgold.errors import UserError, run_cli
from metricgold.outputs import DEFAULT_FORMATS, FORMATS, Prediction, parse_formats
from metricgold.picture_files import CameraOptions, Loaded, Predict, find_pictures, load, run
from metricgold.workspace import Workspace


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when every picture was done, 1 when any was refused."""
    options = _parser().parse_args(arguments)
    formats = parse_formats(options.format)
    camera = CameraOptions(options.fov_deg, options.focal_px)
    sources = find_pictures(options.images)
    began = time.perf_counter()
    session = open_session(
        options.model, options.backend, engines=options.engines, fused=options.fused
    )
    opened = time.perf_counter() - began
    how: dict[str, Any] = {
        "steps": options.steps,
        "ensemble_size": options.ensemble,
        "processing_resolution": options.processing_resolution,
        "seed": options.seed,
    }
    if options.benchmark is not None:
        print(f"{session.backend.name}: opened in {opened:.2f} s")
        _benchmark(session, [load(s, camera) for s in sources], options.benchmark, how)
        return 0
    predict = predictor(session, **how)
    refused = run(
        sources, predict, camera=camera, out=options.out, formats=formats, force=options.force
    )
    return 1 if refused else 0


def _benchmark(
    session: DepthSession, pictures: Sequence[Loaded], rounds: int, how: dict[str, Any]
) -> None:
    """Time the pictures, which are in memory already; nothing is written."""
    if rounds < 1:
        raise UserError(f"--benchmark must be 1 round or more, got {rounds}")
    calls = [partial(session.infer, p.rgb, fov_deg=p.fov_deg, **how) for p in pictures]
    for line in timing.described(timing.measure(calls, rounds)):
        print(line)


def predictor(
    session: DepthSession,
    *,
    steps: int | None = None,
    ensemble_size: int = 1,
    processing_resolution: int | None = None,
    seed: int = 0,
) -> Predict:
    """What is done with pictures, one after the other; arguments as of ``DepthSession.infer``."""

    def infer_one(picture: Loaded) -> tuple[Prediction, str]:
        """Its depth, and the back-end, working size and time."""
        result = session.infer(
            picture.rgb,
            fov_deg=picture.fov_deg,
            steps=steps,
            ensemble_size=ensemble_size,
            processing_resolution=processing_resolution,
            seed=seed,
        )
        own = ("preprocess", "postprocess")
        networks = sum(time for stage, time in result.seconds.items() if stage not in own)
        said = (
            f"{result.backend}, worked at {result.size[1]}x{result.size[0]}, "
            f"{networks:.2f} s in the networks"
        )
        prediction = Prediction(
            rgb=picture.rgb,
            depth=result.depth,
            uncertainty=result.uncertainty,
            fov_deg=picture.fov_deg,
            depth_max_m=session.manifest.depth_max_m,
        )
        return prediction, said

    return lambda pictures: [infer_one(picture) for picture in pictures]


def _parser() -> argparse.ArgumentParser:
    ws = Workspace()
    parser = argparse.ArgumentParser(
        prog="python -m export.trt_infer", description="Metric depth of pictures."
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="pictures, folders, patterns such as '*.jpg'")
    add("--model", type=Path, default=ws.onnx, help="folder of exported graphs (%(default)s)")
    add("--engines", type=Path, help="folder of engines (default: beside the graphs)")
    add("--out", type=Path, default=Path("outputs"), help="folder for results (%(default)s)")
    add(
        "--format",
        default=",".join(DEFAULT_FORMATS),
        help=f"names with commas, or all: {', '.join(FORMATS)} (%(default)s)",
    )
    add("--force", action="store_true", help="replace results that exist")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--fov-deg", type=float, help="vertical field of view in degrees")
    camera.add_argument("--focal-px", type=float, help="focal length in pixels of the picture")
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
