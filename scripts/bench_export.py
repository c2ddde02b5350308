"""Export of Stable Diffusion 2's size on this machine: seconds, memory, file sizes, agreement.

The components for one size and for any, and the one graph from picture to metres for one size.

Usage: ``python scripts/bench_export.py [--only TEXT] [--out FILE]``. Random weights. Each graph is
exported in a process of its own, and loaded and run by ONNX Runtime in another, so that both peaks
of memory (ru_maxrss) are theirs alone; the result is compared with torch's in float32. What was
measured before is kept when a run is cut off, and with ``--only`` the other rows stay.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _header import header
from torch import nn

from export.backends import OnnxRuntimeBackend
from export.components import DepthDecoder, OneStep, UNetStep, VAEEncoder, example_inputs
from export.describe import NOT_STATED, describe
from export.graphs import export_graph
from export.half import to_half
from export.manifest import GraphFile
from export.specs import COMPONENTS, EXPORTED, ONE_STEP, Precision
from export.timing import peak_memory_mib
from metricgold import files
from metricgold.config import ExportConfig
from metricgold.pipeline import MetricGoldPipeline
from metricgold.progress import progress_bar
from metricgold.random_weights import random_full_size_pipeline

NETWORK = {"vae_encoder": "image_vae", "unet_step": "unet", "depth_decoder": "depth_vae"}
SPECS = {**COMPONENTS, ONE_STEP.name: ONE_STEP}
SIZE = (256, 256)
OPSET = 23
EXPECTED = "expected.npz"
SHAPES = ("fixed", "dynamic")
FIXED_ONLY = ONE_STEP.name


def one_step(model: MetricGoldPipeline, precision: Precision = Precision.FP32) -> OneStep:
    """From picture to metres, for pictures of ``SIZE``."""
    return OneStep(model, SIZE, precision)


MODULE: Mapping[str, Callable[..., nn.Module]] = {
    "vae_encoder": VAEEncoder,
    "unet_step": UNetStep,
    "depth_decoder": DepthDecoder,
    "one_step": one_step,
}


def export_one(name: str, precision: Precision, dynamic: bool, folder: Path) -> dict[str, Any]:
    """Export a graph into ``folder``; its inputs and torch's output in float32 beside it."""
    spec = SPECS[name]
    config = ExportConfig.model_validate(
        {"opset": OPSET, "precision": precision.value, "dynamic": dynamic,
         "parity_sizes": [SIZE], "engine_size": SIZE}
    )  # fmt: skip
    model = random_full_size_pipeline(only=NETWORK.get(name))
    told = {"attention": precision.value, "licence": NOT_STATED, "checkpoint_sha256": ""}
    manifest = describe(model, config, **told)
    inputs = example_inputs(spec, SIZE, manifest.grid, batch=1)
    with torch.no_grad():
        expected = MODULE[name](model)(*inputs.values())
    arrays = {k: v.numpy() for k, v in inputs.items()}
    np.savez(folder / EXPECTED, _expected=expected.numpy(), **arrays)
    before = peak_memory_mib()
    if precision is Precision.FP16:
        to_half(model, float32_attention=False)
    module = MODULE[name](model, precision).eval().requires_grad_(False)
    began = time.perf_counter()
    graph = export_graph(module, spec, folder, config, manifest)
    seconds = time.perf_counter() - began
    nodes = onnx.load(folder / graph.onnx_file, load_external_data=False).graph.node
    return {
        "parameters_m": round(sum(p.numel() for p in module.parameters()) / 1e6, 1),
        "seconds": round(seconds, 1),
        "before_export_gb": in_gb(before),
        "nodes": len(nodes),
        "files_mb": {n: round((folder / n).stat().st_size / 1e6, 1) for n in graph.files},
        "_graph": vars(graph),
    }


def run_one(name: str, graph: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Load a graph with ONNX Runtime and run it; how far from torch it is."""
    began = time.perf_counter()
    backend = OnnxRuntimeBackend(folder, {name: GraphFile(**graph)})
    loaded = time.perf_counter() - began
    with np.load(folder / EXPECTED) as saved:
        inputs = dict(saved)
    expected = inputs.pop("_expected")
    began = time.perf_counter()
    actual = backend.run(name, inputs)
    seconds = time.perf_counter() - began
    is_depth = SPECS[name].output_name == "depth"
    scale = np.abs(expected) if is_depth else np.abs(expected).max()
    relative = np.abs(actual.astype(np.float64) - expected) / scale
    return {
        "load_seconds": round(loaded, 1),
        "run_seconds": round(seconds, 2),
        "finite": bool(np.isfinite(actual).all()),
        "max_relative": float(f"{relative.max():.3g}"),
        "median_relative": float(f"{np.median(relative):.3g}"),
    }


def in_gb(mib: float | None) -> float | None:
    """MiB as units of 10^9 bytes."""
    return None if mib is None else round(mib * 2**20 / 1e9, 2)


def child(*arguments: str) -> tuple[dict[str, Any], float]:
    """What a process of this script printed last, and its peak memory in units of 10^9 bytes."""
    command = [sys.executable, __file__, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read().splitlines()
    if process.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}")
    return json.loads(printed[-1]), round(usage.ru_maxrss * 1024 / 1e9, 2)


def row_of(name: str, precision: Precision, shapes: str) -> dict[str, Any]:
    """Export, load, compare; ``load_average`` says how busy the machine was already."""
    busy = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as scratch:
        exported, peak = child("--export", name, precision.value, shapes, scratch)
        graph = exported.pop("_graph")
        ran, peak_of_run = child("--run", name, json.dumps(graph), scratch)
    return {
        "component": name, "precision": precision.value, "shapes": shapes,
        "load_average": busy, **exported,
        "peak_memory_gb": peak, "onnxruntime": ran | {"peak_memory_gb": peak_of_run},
    }  # fmt: skip


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a name such as unet_step-fp16-fixed")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/export.json"))
    parser.add_argument("--export", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        name, precision, shapes, folder = options.export
        found = export_one(name, Precision(precision), shapes == "dynamic", Path(folder))
        print(json.dumps(found))
        return
    if options.run:
        name, graph, folder = options.run
        print(json.dumps(run_one(name, json.loads(graph), Path(folder))))
        return
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    if options.only and options.out.is_file():
        old = json.loads(options.out.read_text("utf-8"))["graphs"]
        rows = {(r["component"], r["precision"], r["shapes"]): r for r in old}
    todo = [
        (name, precision, shapes)
        for shapes, name, precision in itertools.product(SHAPES, SPECS, EXPORTED)
        if options.only in f"{name}-{precision}-{shapes}"
        and (shapes == "fixed" or name != FIXED_ONLY)
    ]
    for name, precision, shapes in progress_bar(todo, description="graphs", unit="graph"):
        row = row_of(name, precision, shapes)
        rows[name, precision.value, shapes] = row
        result = {
            "networks": "Stable Diffusion 2, random weights",
            **header(torch.device("cpu")),
            "opset": OPSET,
            "size": list(SIZE),
            "graphs": list(rows.values()),
        }
        files.write_json(options.out, result)
        print(row, flush=True)


if __name__ == "__main__":
    main()
