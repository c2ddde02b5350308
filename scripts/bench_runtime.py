"""ONNX Runtime on the CPU beside torch, same weights; writes docs/benchmarks/runtime.json.

Usage: python scripts/bench_runtime.py [--checkpoint FOLDER] [--sizes 96x144,240x320,480x640]
                                       [--full] [--rounds 15] [--no-compile] [--no-fused]
                                       [--out FILE]

Per component and end to end (resizing and all), every case once a round, one after the other;
figures are medians, ratios are medians of the ratios to torch's eager mode in the same round.
``--full`` takes networks of Stable Diffusion 2's size with random weights, at one size. The floor
is the FLOPs that torch counts over the speed of matrix products measured in the same run. Opening
and memory are measured in a process of each kind of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from _header import header
from torch.utils.flop_counter import FlopCounterMode

from export.components import build_components, example_inputs
from export.onnx_export import export_checkpoint
from export.ort_options import OrtOptions
from export.runtime import DepthSession, open_session
from export.specs import COMPONENTS
from metricgold.config import ExportConfig
from metricgold.files import write_json
from metricgold.pipeline import MetricGoldPipeline
from metricgold.progress import progress_bar
from metricgold.random_weights import random_full_size_pipeline
from metricgold.training.accelerator import default_device, use_all_cores
from metricgold.training.plan import matmul_flops_a_second

CPU = "onnxruntime-cpu"
EAGER, COMPILED, AUTOCAST = "torch eager", "torch.compile", "torch bf16 autocast"
ORT, FUSED = "onnxruntime", "onnxruntime, one graph"
END_TO_END = "end to end"
REST_S = 0.3
"""Before each call: threads of the library before it go on spinning for a while."""
OPTIONS: Mapping[str, OrtOptions] = {
    "default": OrtOptions(),
    "one thread": OrtOptions(threads=1),
    "no spinning": OrtOptions(spinning=False),
    "no arena": OrtOptions(arena=False),
    "extended (no blocked layout)": OrtOptions(level="extended"),
    "basic": OrtOptions(level="basic"),
    "none": OrtOptions(level="none"),
}
Size = tuple[int, int]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Model:
    """The same weights, as a checkpoint and as graphs."""

    checkpoint: Path
    onnx: Path
    pipeline: MetricGoldPipeline


def picture(size: Size) -> np.ndarray:
    """Noise, uint8 [H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def take_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call; two rounds to warm up are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            time.sleep(REST_S)
            began = time.perf_counter()
            call()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def table(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Median milliseconds, fastest, and how many times as fast as the reference."""
    rows = {}
    for name, taken in seconds.items():
        ratio = (r / s for r, s in zip(seconds[reference], taken, strict=True))
        rows[name] = {
            "ms": round(1000 * statistics.median(taken), 2),
            "fastest_ms": round(1000 * min(taken), 2),
            "times_as_fast": round(statistics.median(ratio), 3),
        }
    return rows


def torch_call(pipeline: MetricGoldPipeline, rgb: np.ndarray) -> Call:
    """Picture to metres by the pipeline, in one step."""
    return lambda: pipeline([rgb], 1, processing_resolution=0, fov_deg=50)


def autocast(call: Call) -> Call:
    """The same in bfloat16 where torch thinks it safe."""

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call()

    return run


def ort_call(session: DepthSession, rgb: np.ndarray) -> Call:
    """Picture to metres by the exported graphs, in one step."""
    own_size = None if session.fused else 0
    return lambda: session.infer(rgb, steps=1, processing_resolution=own_size, fov_deg=50)


def component_calls(
    pipelines: Mapping[str, MetricGoldPipeline], session: DepthSession, size: Size
) -> dict[str, dict[str, Call]]:
    """For each graph: torch's module in each pipeline, and ONNX Runtime, on the same inputs."""
    modules = {way: build_components(pipeline) for way, pipeline in pipelines.items()}
    found: dict[str, dict[str, Call]] = {}
    for name, spec in COMPONENTS.items():
        inputs = example_inputs(spec, size, session.manifest.grid, batch=1)
        arrays = {key: value.numpy() for key, value in inputs.items()}

        def torch_way(module: Any, inputs: Any = inputs) -> Any:
            with torch.inference_mode():
                return module(*inputs.values())

        def graph(name: str = name, arrays: Any = arrays) -> Any:
            return session.backend.run(name, arrays)

        found[name] = {way: partial(torch_way, parts[name]) for way, parts in modules.items()}
        found[name][ORT] = graph
    return found


def compiled(model: Model) -> MetricGoldPipeline:
    """A pipeline of the same weights whose networks are compiled."""
    own = MetricGoldPipeline.from_pretrained(model.checkpoint)
    own.set_progress_bar_config(disable=True)
    for network in (own.image_vae.encoder, own.depth_vae.decoder, own.unet):
        network.compile()
    return own


def tflop(call: Call) -> float:
    """FLOPs of a call in units of 1e12, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def operators(model: Model, size: Size, rounds: int = 10) -> dict[str, dict[str, float]]:
    """Milliseconds of each kind of operator in each graph: of every node its fastest round."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        with open_session(model.onnx, CPU, options=OrtOptions(profile=Path(scratch))) as session:
            for _ in range(rounds):
                ort_call(session, picture(size))()
            files = session.backend.end_profiling()  # type: ignore[attr-defined]
        for name, file in files.items():
            fastest: dict[tuple[str, str], float] = {}
            for event in json.loads(Path(file).read_text("utf-8")):
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    node = event["name"], event["args"]["op_name"]
                    fastest[node] = min(fastest.get(node, float("inf")), event["dur"] / 1000)
            total: Counter[str] = Counter()
            for (_, operator), milliseconds in fastest.items():
                total[operator] += milliseconds
            found[name] = {operator: round(ms, 3) for operator, ms in total.most_common()}
    return found


def one_size(
    model: Model, size: Size, rounds: int, with_compile: bool, fused: Path | None
) -> dict[str, Any]:
    """Everything at one size."""
    rgb = picture(size)
    eager = torch_call(model.pipeline, rgb)
    calls = {EAGER: eager, AUTOCAST: autocast(eager)}
    pipelines = {EAGER: model.pipeline}
    if with_compile:
        pipelines[COMPILED] = compiled(model)
        calls[COMPILED] = torch_call(pipelines[COMPILED], rgb)
    with open_session(model.onnx, CPU) as session:
        calls[ORT] = ort_call(session, rgb)
        if fused is not None:
            calls[FUSED] = ort_call(open_session(fused, CPU, fused=True), rgb)
        result: dict[str, Any] = {END_TO_END: table(take_turns(calls, rounds), EAGER)}
        for name, each in component_calls(pipelines, session, size).items():
            result[name] = table(take_turns(each, rounds), EAGER)
        times = [calls[ORT]().seconds for _ in range(rounds)]
    result["stages of onnxruntime, ms"] = {
        stage: round(1000 * statistics.median(t[stage] for t in times), 3) for stage in times[0]
    }
    work = tflop(eager)
    speed = matmul_flops_a_second(torch.device("cpu"), "fp32")
    floor = work * 1e12 / speed
    result["floor"] = {
        "tflop": round(work, 5),
        "matmul_gflop_a_second": round(speed / 1e9, 1),
        "ms": round(1000 * floor, 2),
        "share_of_onnxruntime": round(1000 * floor / result[END_TO_END][ORT]["ms"], 3),
        "share_of_torch": round(1000 * floor / result[END_TO_END][EAGER]["ms"], 3),
    }
    result["operators, ms"] = operators(model, size)
    return result


def settings(model: Model, size: Size, rounds: int) -> dict[str, dict[str, float]]:
    """ONNX Runtime's options against each other."""
    sessions = {name: open_session(model.onnx, CPU, options=o) for name, o in OPTIONS.items()}
    calls = {name: ort_call(session, picture(size)) for name, session in sessions.items()}
    found = table(take_turns(calls, rounds), "default")
    for session in sessions.values():
        session.close()
    return found


_CHILD = """
import json, sys, time
from export.peak_memory import peak_memory
kind, folder, height, width, cache = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]

def torch_call():
    from metricgold.pipeline import MetricGoldPipeline
    yield
    pipeline = MetricGoldPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    yield lambda: pipeline([rgb], 1, processing_resolution=0, fov_deg=50)

def ort_call():
    import onnxruntime
    from pathlib import Path
    from export.ort_options import OrtOptions
    from export.runtime import open_session
    yield
    options = OrtOptions(cache=Path(cache) if cache else None, arena="no arena" not in kind)
    session = open_session(folder, "onnxruntime-cpu", options=options)
    yield lambda: session.infer(rgb, steps=1, processing_resolution=0, fov_deg=50)

with peak_memory() as peak:  # not getrusage, which knows the largest of the parent too
    times = [time.perf_counter()]
    import numpy as np
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    made = torch_call() if kind == "torch eager" else ort_call()
    next(made)
    times.append(time.perf_counter())
    call = next(made)
    times.append(time.perf_counter())
    for _ in range(6):
        call()
        times.append(time.perf_counter())
imported, opened, first, *later = (b - a for a, b in zip(times, times[1:]))
print(json.dumps({
    "import_s": round(imported, 3), "open_s": round(opened, 3), "first_call_s": round(first, 3),
    "later_call_s": round(sum(later) / len(later), 3), "peak_memory_mib": peak.mib,
}))
"""


def in_a_process(kind: str, folder: Path, size: Size, cache: str = "") -> dict[str, float]:
    """Import, opening, first and later calls, peak memory, in a process of its own."""
    command = [sys.executable, "-c", _CHILD, kind, str(folder), *map(str, size), cache]
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), *sys.path])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{kind}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def opening(model: Model, size: Size, times: int = 3) -> dict[str, dict[str, float]]:
    """Medians over processes of every kind, taking turns."""
    with tempfile.TemporaryDirectory() as cache:
        kinds = {
            EAGER: (model.checkpoint, ""),
            ORT: (model.onnx, ""),
            "onnxruntime, no arena": (model.onnx, ""),
            "onnxruntime, cached graphs": (model.onnx, cache),
        }
        in_a_process("onnxruntime, cached graphs", model.onnx, size, cache)  # fills the cache
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(times):
            for kind, (folder, where) in kinds.items():
                runs[kind].append(in_a_process(kind, folder, size, where))
    return {
        kind: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for kind, found in runs.items()
    }


def exported(checkpoint: Path, out: Path, size: Size, fused: bool = False) -> Path:
    """The checkpoint as float32 graphs for any size; with ``fused`` also as one for this size."""
    config = ExportConfig.model_validate(
        {"opset": 23, "precision": "fp32", "dynamic": True, "parity_sizes": [size],
         "engine_size": size, "fused": fused}
    )  # fmt: skip
    export_checkpoint(checkpoint, out, config)
    return out


def main() -> None:
    """Time everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("artifacts/metricgold"))
    parser.add_argument("--sizes", help="default: 96x144,240x320,480x640; with --full: 240x320")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-fused", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/runtime.json"))
    arguments = parser.parse_args()
    use_all_cores()
    named = arguments.sizes or ("240x320" if arguments.full else "96x144,240x320,480x640")
    sizes = [tuple(map(int, s.split("x"))) for s in named.split(",")]
    key = "Stable Diffusion 2, random weights" if arguments.full else "demo"
    before = json.loads(arguments.out.read_text("utf-8")) if arguments.out.is_file() else {}
    result: dict[str, Any] = header(default_device()) | {
        "onnxruntime": onnxruntime.__version__,
        "rounds": arguments.rounds,
        "load_average_before": os.getloadavg()[0],
        "sizes": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, folder = arguments.checkpoint, Path(scratch)
        if arguments.full:
            checkpoint = folder / "model"
            random_full_size_pipeline().save_pretrained(checkpoint)
            gc.collect()
        onnx = exported(checkpoint, folder / "onnx", sizes[0])
        pipeline = MetricGoldPipeline.from_pretrained(checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        model = Model(checkpoint, onnx, pipeline)
        for size in progress_bar(sizes, description="sizes", unit="size"):
            torch._dynamo.reset()
            fused = None
            if not (arguments.no_fused or arguments.full):
                fused = exported(checkpoint, folder / f"{size[0]}x{size[1]}", size, fused=True)
            found = one_size(model, size, arguments.rounds, not arguments.no_compile, fused)
            if not arguments.full:
                found["options"] = settings(model, size, arguments.rounds)
            found["opening"] = opening(model, size)
            result["sizes"][f"{size[0]}x{size[1]}"] = found
            result["load_average_after"] = os.getloadavg()[0]
            write_json(arguments.out, before | {key: result})
            print(size, json.dumps(found[END_TO_END], indent=1), found["floor"], flush=True)


if __name__ == "__main__":
    main()
