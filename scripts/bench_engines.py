"""Builds TensorRT-RTX engines at Stable Diffusion 2's size; writes docs/benchmarks/engines.json.

Usage: python scripts/bench_engines.py [--size 480x640] [--dynamic] [--precision fp16]
                                       [--components unet_step,...] [--keep FOLDER] [--out FILE]

``--dynamic``: for any size, with the engine profiles of the profile sd2 in params.yaml. Weights are
random: time, memory and sizes do not depend on them. Each export and each build runs in a process
of its own, so that its peak is its own. No GPU is needed, and none of the engines is run. What is
recorded: seconds, peak memory of the process, size of graph and engine, and the audit of the
layers' precision.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _header import header

from export.build_graph import build, toolchain
from export.components import build_components
from export.describe import describe
from export.engine_audit import described
from export.engine_manifest import write_sidecar
from export.engine_profiles import profiles_of
from export.graphs import export_graph
from export.half import to_half
from export.manifest import read_manifest
from export.peak_memory import peak_memory
from export.specs import COMPONENTS, Precision
from export.trt_library import TENSORRT_RTX
from metricgold import files
from metricgold.config import ExportConfig, load_config
from metricgold.random_weights import random_full_size_pipeline

RESULT = "result.json"


def export(component: str, config: ExportConfig, folder: Path) -> None:
    """One graph and a manifest of it alone, into ``folder``."""
    model = random_full_size_pipeline()
    if config.precision == Precision.FP16.value:
        to_half(model, float32_attention=False)
    manifest = describe(
        model, config, attention=config.precision, licence="none", checkpoint_sha256="random"
    )
    module = build_components(model, Precision(config.precision))[component]
    del model
    gc.collect()
    started = time.perf_counter()
    with peak_memory() as peak:
        graph = export_graph(module, COMPONENTS[component], folder, config, manifest)
    seconds = time.perf_counter() - started
    manifest.components[component] = graph
    manifest.write(folder)
    files.write_json(
        folder / RESULT,
        {
            "parameters": sum(p.numel() for p in module.parameters()),
            "onnx_bytes": graph.bytes,
            "opset": config.opset,
            "seconds": round(seconds, 1),
            "peak_memory_mib": peak.mib,
        },
    )


def build_engine(component: str, config: ExportConfig, folder: Path) -> None:
    """Its engine beside the graph."""
    graphs, timing = read_manifest(folder), folder / "timing.cache"
    tools = toolchain(TENSORRT_RTX, folder, graphs, folder, timing, config.engines)
    (folder / TENSORRT_RTX.name).mkdir()
    sidecar = build(tools, component, profiles_of(component, graphs, config))
    write_sidecar(folder, sidecar)
    files.write_json(
        folder / RESULT,
        {
            "versions": sidecar.versions,
            "compute_capabilities": sidecar.compute_capabilities,
            "profiles": sidecar.profiles,
            "engine_bytes": sidecar.bytes,
            "log_bytes": (folder / sidecar.log).stat().st_size,
            "seconds": sidecar.seconds,
            "peak_memory_mib": sidecar.peak_memory_mib,
            "options": sidecar.options,
            "not_available": sidecar.not_available,
            "audit": described(sidecar.audit["layers"]),
        },
    )


def _in_a_process(step: str, component: str, folder: Path, arguments: list[str]) -> Any:
    """What a child of this script found out."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, *arguments, "--child", step, component, str(folder)]
    subprocess.run(command, check=True)
    return json.loads((folder / RESULT).read_text())


def main() -> None:
    """Export and build everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="480x640", help="height x width in pixels")
    parser.add_argument("--dynamic", action="store_true", help="graphs and engines for any size")
    parser.add_argument("--precision", default="fp16", choices=["fp16", "fp32"])
    parser.add_argument("--components", default=",".join(COMPONENTS))
    parser.add_argument("--keep", type=Path, help="folder for graphs and engines (some 10 GB)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/engines.json"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.size.split("x"))
    asked = {"precision": arguments.precision, "dynamic": arguments.dynamic}
    asked |= {"engine_size": (height, width), "fused": False}
    config = load_config("params.yaml", "sd2").export.model_copy(update=asked)
    if arguments.child:
        step, component, folder = arguments.child
        {"export": export, "build": build_engine}[step](component, config, Path(folder))
        return
    result: dict[str, Any] = {
        "networks": "Stable Diffusion 2, random weights",
        **header(torch.device("cpu")),
        "size": [height, width],
        "dynamic": arguments.dynamic,
        "precision": arguments.precision,
        "components": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for component in arguments.components.split(","):
            folder = (arguments.keep or Path(scratch)) / component
            folder.parent.mkdir(parents=True, exist_ok=True)
            found = {
                step: _in_a_process(step, component, folder, sys.argv[1:])
                for step in ("export", "build")
            }
            result["components"][component] = found
            files.write_json(arguments.out, result)
            for step, values in found.items():
                print(component, step, values, flush=True)


if __name__ == "__main__":
    main()
