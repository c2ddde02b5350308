"""Metric depth of pictures from the command line.

``python -m export.trt_infer image.jpg [more ...]`` writes, for each picture, depth in metres
(.npy), in millimetres (16-bit .png) and in colour, and prints the range, the back-end and the
time. Takes TensorRT or TensorRT-RTX where engines and a GPU are there, else ONNX Runtime.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.depth_files import MM_LIMIT_M, Written, write_depth
from export.runtime import AUTO, BACKENDS, DepthResult, DepthSession, InferenceError, open_session
from metricgold import geometry, imaging
from metricgold.errors import UserError, run_cli
from metricgold.workspace import Workspace


@dataclass(frozen=True)
class FieldOfView:
    """Vertical field of view in degrees (None: unknown) and where it comes from."""

    degrees: float | None
    source: str

    def __str__(self) -> str:
        if self.degrees is None:
            return "field of view unknown (give --fov-deg or --focal-px for a surer scale)"
        return f"vertical field of view {self.degrees:.1f}° from {self.source}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when every picture was done, 1 when any was refused."""
    options = _parser().parse_args(arguments)
    session = open_session(options.model, options.backend, engines=options.engines)
    done: dict[str, Path] = {}
    refused = 0
    for path in options.images:
        try:
            _refuse_same_name(path, done)
            _infer_one(session, path, options)
        except InferenceError:
            raise  # about the options, so the same for every picture
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            refused += 1
    if refused and len(options.images) > 1:
        print(f"{refused} of {len(options.images)} pictures refused", file=sys.stderr)
    return 1 if refused else 0


def _infer_one(session: DepthSession, path: Path, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    rgb = imaging.load_rgb(path)
    fov = field_of_view(path, rgb.shape[0], rgb.shape[1], options.fov_deg, options.focal_px)
    result = session.infer(
        rgb,
        fov_deg=fov.degrees,
        steps=options.steps,
        ensemble_size=options.ensemble,
        processing_resolution=options.processing_resolution,
        seed=options.seed,
    )
    written = write_depth(options.out, path.stem, result.depth, result.uncertainty)
    seconds = time.perf_counter() - started
    print(_summary(path, result, fov, seconds), flush=True)
    print(_files_line(written), flush=True)


def field_of_view(
    path: Path, height: int, width: int, fov_deg: float | None, focal_px: float | None
) -> FieldOfView:
    """From the command line, else from the picture's EXIF data, else unknown.

    Raises:
        InferenceError: ``focal_px`` is not positive.
    """
    if fov_deg is not None:
        return FieldOfView(fov_deg, "--fov-deg")
    if focal_px is not None:
        if not focal_px > 0:
            raise InferenceError(f"--focal-px must be positive, got {focal_px}")
        intrinsics = geometry.make_intrinsics(focal_px, focal_px, width / 2, height / 2)
        return FieldOfView(geometry.fov_y_deg(intrinsics, height), "--focal-px")
    return FieldOfView(imaging.exif_fov_y_deg(path, height, width), "EXIF")


def _summary(path: Path, result: DepthResult, fov: FieldOfView, seconds: float) -> str:
    depth = result.depth
    height, width = depth.shape
    networks = sum(result.seconds[stage] for stage in ("encode", "denoise", "decode"))
    return (
        f"{path}: depth min {depth.min():.2f} m, median {np.median(depth):.2f} m, "
        f"max {depth.max():.2f} m ({width}x{height}, worked at {result.size[1]}x{result.size[0]})\n"
        f"  {fov}; {result.backend}, {seconds:.2f} s ({networks:.2f} s in the networks)"
    )


def _files_line(written: Written) -> str:
    names = ", ".join(str(path) for path in written.files)
    line = f"  {'replaced' if written.replaced else 'wrote'} {names}"
    if written.saturated:
        line += f"\n  {written.saturated} pixels beyond {MM_LIMIT_M} m saturate in the mm picture"
    return line


def _refuse_same_name(path: Path, done: dict[str, Path]) -> None:
    earlier = done.setdefault(path.stem, path)
    if earlier is not path:
        raise UserError(
            f"{path}: its results would replace those of {earlier} of the same name; "
            "run it by itself with another --out"
        )


def _parser() -> argparse.ArgumentParser:
    ws = Workspace()
    parser = argparse.ArgumentParser(
        prog="python -m export.trt_infer", description="Metric depth of pictures."
    )
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE")
    add("--model", type=Path, default=ws.onnx, help="folder of exported graphs (%(default)s)")
    add("--engines", type=Path, help="folder of engines (default: beside the graphs)")
    add("--out", type=Path, default=Path("outputs"), help="folder for results (%(default)s)")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--fov-deg", type=float, help="vertical field of view in degrees")
    camera.add_argument("--focal-px", type=float, help="focal length in pixels of the picture")
    add("--steps", type=int, help="denoising steps (default: what the model was trained for)")
    add("--ensemble", type=int, default=1, help="predictions to fuse (%(default)s)")
    add("--processing-resolution", type=int, help="long side in pixels; 0: the picture's own")
    add("--seed", type=int, default=0, help="of the initial noise (%(default)s)")
    return parser


if __name__ == "__main__":
    run_cli(main)
