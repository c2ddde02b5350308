"""Graphs in 8 bits, each with what that costs on held-out frames measured beside it.

``python -m export.quantize int8-weights int8 fp8 [--onnx FOLDER] [--out FOLDER]``

``int8-weights`` stores weights in 8 bits and computes in float32. ``int8`` and ``fp8`` (E4M3) also
round the activations, by QuantizeLinear pairs whose ranges are met on frames of the training split.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from export.accuracy import Accuracy, compare_on_frames, frames_of, session_predictor
from export.backends import OnnxRuntimeBackend
from export.calibration import METHOD, activation_ranges, record
from export.graphs import check_valid, graph_file, save_graph, set_metadata
from export.manifest import ExportError, Manifest
from export.quantised import QUANTIZATION_FILE, describe
from export.quantised_graphs import FLOAT_LAYERS, count_layers, quantise
from export.runtime import DepthSession, open_session
from export.specs import QUANTISED, Precision
from metricgold import files
from metricgold.config import ProfileConfig, load_config
from metricgold.errors import run_cli
from metricgold.workspace import Workspace

CALIBRATION_FRAMES = 32
"""Of each dataset's training split."""
BACKEND = OnnxRuntimeBackend.name


def quantize(
    source: Path,
    out: Path,
    precision: Precision,
    config: ProfileConfig,
    ws: Workspace,
    calibration_frames: int = CALIBRATION_FRAMES,
) -> dict[str, Any]:
    """Export folder ``source`` (fp32) in 8 bits as ``out``, which any runtime opens likewise.

    Args:
        config: says which datasets, and how many held-out frames accuracy is measured on.

    Returns:
        What ``out/quantization.json`` holds.

    Raises:
        ExportError: ``source`` is not an fp32 export, frames are missing, or ONNX Runtime does
            not run the quantised graphs, so that nothing can be measured.
    """
    if not config.export.parity_frames:
        raise ExportError(
            "params.yaml: export.parity_frames is 0; quantised graphs are made only with their "
            "accuracy, so it must be 1 or more"
        )
    session = open_session(source, BACKEND)
    manifest = session.manifest
    if manifest.arithmetic is not Precision.FP32:
        raise ExportError(
            f"{source}: exported in {manifest.precision}; quantised graphs are made of fp32 ones: "
            "export with --precision fp32"
        )
    ranges, calibration = None, None
    if precision is not Precision.INT8_WEIGHTS:
        ranges, calibration = _calibrate(session, source, config, ws, calibration_frames)
    with files.replaced_folder(out) as folder:
        quantised, layers = _quantise_all(source, folder, manifest, precision, ranges)
        opened = OnnxRuntimeBackend(folder, quantised.components)
        rows = _measure(session, DepthSession(quantised, opened), config, ws)
        found = _record(rows, precision, manifest, quantised) | {
            "layers": layers,
            "float_layers": FLOAT_LAYERS,
            "calibration": calibration,
            "source_checkpoint_sha256": manifest.checkpoint_sha256,
        }
        files.write_json(folder / QUANTIZATION_FILE, found)
    return found


def _calibrate(
    session: DepthSession, source: Path, config: ProfileConfig, ws: Workspace, count: int
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Ranges of each graph's activations on training frames, and what is said of that."""
    frames = [
        (frame, max(config.datasets[name].train_size))
        for name, some in frames_of(config, ws, "train", count)
        for frame in some
    ]
    readings = record(session, frames)
    ranges = {
        name: activation_ranges(source, graph, readings[name])
        for name, graph in session.manifest.components.items()
    }
    return ranges, {"method": METHOD, "split": "train", "frames": len(frames)}


def _quantise_all(
    source: Path,
    folder: Path,
    manifest: Manifest,
    precision: Precision,
    ranges: dict[str, dict[str, float]] | None,
) -> tuple[Manifest, dict[str, str]]:
    """The three graphs and their manifest into ``folder``, and how many layers are in 8 bits."""
    new = dataclasses.replace(manifest, precision=precision.value, components={}, fused=None)
    layers = {}
    for name, graph in manifest.components.items():
        model = onnx_ir.load(source / graph.onnx_file)
        all_layers = count_layers(model)
        done = quantise(model, precision, None if ranges is None else ranges[name])
        layers[name] = f"{done} of {all_layers}"
        set_metadata(model, new, name)
        save_graph(model, folder / graph.onnx_file)
        check_valid(folder / graph.onnx_file, name)
        new.components[name] = graph_file(model, folder / graph.onnx_file)
    new.write(folder)
    return new, layers


def _measure(
    session: DepthSession, quantised: DepthSession, config: ProfileConfig, ws: Workspace
) -> list[Accuracy]:
    """Quantised and fp32 graphs on held-out frames of each dataset."""
    rows = []
    for name, frames in frames_of(config, ws, "holdout", config.export.parity_frames):
        resolution = max(config.datasets[name].train_size)
        own, reference = (session_predictor(s, resolution) for s in (quantised, session))
        limits = session.manifest.depth_min_m, session.manifest.depth_max_m
        rows.append(compare_on_frames(name, frames, own, reference, limits))
    return rows


def _record(
    rows: Sequence[Accuracy], precision: Precision, manifest: Manifest, quantised: Manifest
) -> dict[str, Any]:
    """Figures of all datasets and of each; the mean counts every frame the same."""
    weights = [row.frames for row in rows]
    names = [f.name for f in dataclasses.fields(Accuracy) if f.name not in ("dataset", "frames")]
    mean = {n: float(np.average([getattr(r, n) for r in rows], weights=weights)) for n in names}
    mean["max_relative"] = max(row.max_relative for row in rows)
    sizes = [sum(g.bytes for g in m.components.values()) for m in (quantised, manifest)]
    return {
        "precision": precision.value,
        "backend": BACKEND,
        "processor": platform.processor() or platform.machine(),
        "bytes": sizes[0],
        "reference_bytes": sizes[1],
        "speed": _rounded(mean["reference_seconds"] / mean["seconds"]),
        "mean": {"frames": sum(weights)} | {k: _rounded(v) for k, v in mean.items()},
        "datasets": {
            row.dataset: {
                k: _rounded(v) if isinstance(v, float) else v
                for k, v in asdict(row).items()
                if k != "dataset"
            }
            for row in rows
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; datasets and frames come from ``params.yaml``."""
    ws = Workspace()
    parser = argparse.ArgumentParser(
        prog="python -m export.quantize",
        description="Graphs in 8 bits, with what that costs measured on held-out frames.",
    )
    add = parser.add_argument
    add(
        "precision",
        nargs="+",
        choices=[p.value for p in QUANTISED],
        help="int8-weights: weights alone; int8, fp8: activations too, by frames of the training "
        "split",
    )
    add("--onnx", type=Path, default=ws.onnx, help="folder of fp32 graphs (%(default)s)")
    add("--out", type=Path, help="folder for the graphs (default: the former with -PRECISION)")
    add(
        "--calibration-frames",
        type=int,
        default=CALIBRATION_FRAMES,
        help="training frames of each dataset for the ranges of activations (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.out is not None and len(options.precision) > 1:
        parser.error("--out is for one precision")
    if options.calibration_frames < 1:
        parser.error(f"--calibration-frames must be 1 or more, got {options.calibration_frames}")
    config = load_config()
    for name in options.precision:
        out = options.out or options.onnx.with_name(f"{options.onnx.name}-{name}")
        found = quantize(options.onnx, out, Precision(name), config, ws, options.calibration_frames)
        print(f"{out}: {describe(found)}", flush=True)
    return 0


if __name__ == "__main__":
    run_cli(main)
