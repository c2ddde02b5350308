"""A model repository for NVIDIA's Triton Inference Server from an export folder.

``python -m export.triton --out FOLDER`` writes the three graphs (or TensorRT engines of them), two
small graphs for what lies between, and the ensemble ``metricgold``, which goes in one request from
``picture`` (UINT8 [H, W, 3], sRGB, sides multiples of the model's) and ``fov_y_deg`` (FP32 [1],
0 where unknown) to ``depth`` (FP32 [1, H, W], z-depth in metres). Nothing in it needs Python.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.engine_checks import built_engines, largest_batch
from export.manifest import (
    BackendUnavailableError,
    ExportError,
    GraphFile,
    Manifest,
    read_manifest,
    verify_graphs,
)
from export.quantised import measured
from export.specs import COMPONENTS, DEPTH_DECODER, ComponentSpec
from export.triton_config import Served, Tensor, Word, ensemble, text
from export.triton_graphs import camera_graph, step_graph
from export.trt_library import TENSORRT
from metricgold.errors import run_cli
from metricgold.files import replaced_folder, write_text
from metricgold.workspace import Workspace

ENSEMBLE, CAMERA, STEP = "metricgold", "camera", "ddim_step"
ONNX, PLAN = "onnxruntime_onnx", "tensorrt_plan"
CONFIG = "config.pbtxt"
DOCKER = (
    "docker run --rm --gpus all -p 127.0.0.1:8000-8002:8000-8002 -v {folder}:/models:ro "
    "nvcr.io/nvidia/tritonserver:<version>-py3 tritonserver --model-repository=/models"
)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How the models are served.

    Attributes:
        max_batch: pictures at once, where the graphs or engines do not allow fewer.
        delay_us: microseconds a request may wait for others.
        instances: of each network, on each device.
        threads: of ONNX Runtime; None leaves it to the server.
    """

    max_batch: int = 8
    delay_us: int = 2000
    instances: int = 1
    threads: int | None = None


def write_repository(
    export: Path, out: Path, choices: Choices, engines: Path | None = None
) -> list[str]:
    """Write the repository; ``out`` is replaced only when all is written. Names of its models.

    Args:
        export: what ``export.onnx_export`` wrote.
        engines: what ``export.build_engine`` wrote, to serve TensorRT's engines in place of the
            three graphs.

    Raises:
        ExportError: a model of several steps, missing or stale files, or no such engines.
    """
    manifest = read_manifest(export)
    if manifest.num_inference_steps != 1:
        raise ExportError(
            f"{export}: the model takes {manifest.num_inference_steps} steps, and an ensemble of "
            "Triton has no loop; train stage C for a one-step model, or run 'metricgold serve'"
        )
    verify_graphs(export, manifest)
    facts = _facts(manifest, measured(export, manifest))
    plans, most = ({}, choices.max_batch) if engines is None else _plans(engines, manifest)
    max_batch = min(most, choices.max_batch) if manifest.dynamic else 0
    with replaced_folder(out) as folder:
        helpers = _helpers(manifest, folder)
        encoder, unet, decoder = (
            _network(spec, manifest.components[spec.name], export, plans.get(spec.name), folder)
            for spec in COMPONENTS.values()
        )
        camera, step = helpers
        order = [camera, encoder, unet, step, decoder]
        for served in order:
            instances = 1 if served in helpers else choices.instances
            config = served.config(max_batch, choices.delay_us, instances, choices.threads)
            write_text(folder / served.name / CONFIG, text(config))
        whole = ensemble(ENSEMBLE, order, camera.inputs, decoder.outputs, max_batch, facts)
        (folder / ENSEMBLE / "1").mkdir(parents=True)
        write_text(folder / ENSEMBLE / CONFIG, text(whole))
    return [ENSEMBLE, *(served.name for served in order)]


def _plans(engines: Path, manifest: Manifest) -> tuple[dict[str, Path], int]:
    """TensorRT's engines of the graphs, and how many pictures they all take at once.

    Files and graphs are checked here; version and GPU by Triton when it loads them.
    """
    try:
        found = built_engines(TENSORRT, engines, manifest.components, manifest.components)
    except BackendUnavailableError as error:
        raise ExportError(
            f"{error}; Triton runs no other library's: leave --engines out to serve the graphs"
        ) from None
    plans = {name: engines / sidecar.file for name, sidecar in found.items()}
    return plans, largest_batch(found.values())


def _helpers(manifest: Manifest, folder: Path) -> tuple[Served, Served]:
    """The graphs between the networks; on the CPU, where the picture comes from."""
    found = []
    for name, graph in ((CAMERA, camera_graph(manifest)), (STEP, step_graph(manifest))):
        file = f"{name}.onnx"
        (folder / name / "1").mkdir(parents=True)
        onnx.save(graph, folder / name / "1" / file)
        batch = None if manifest.dynamic else 1
        found.append(
            Served(
                name=name,
                platform=ONNX,
                file=file,
                inputs=[_tensor_of(value, batch) for value in graph.graph.input],
                outputs=[_tensor_of(value, batch) for value in graph.graph.output],
                kind=Word.CPU,
            )
        )
    return found[0], found[1]


def _network(
    spec: ComponentSpec, graph: GraphFile, export: Path, plan: Path | None, folder: Path
) -> Served:
    """One of the three graphs, copied with its weights, or its engine, which ``plan`` is."""
    version = folder / spec.name / "1"
    version.mkdir(parents=True)
    file, platform = graph.onnx_file, ONNX
    if plan is not None:
        file, platform = "model.plan", PLAN
        shutil.copyfile(plan, version / file)
    else:
        for name in graph.files:
            shutil.copyfile(export / name, version / name)
    inputs = [
        Tensor(name, spec.inputs[name].dtype, _lengths(axes)) for name, axes in graph.inputs.items()
    ]
    output = Tensor(spec.output_name, spec.output.dtype, _lengths(graph.output[spec.output_name]))
    return Served(
        name=spec.name,
        platform=platform,
        file=file,
        inputs=inputs,
        outputs=[output],
    )


def _lengths(axes: Sequence[str | int]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else -1 for axis in axes)


def _tensor_of(value: onnx.ValueInfoProto, batch: int | None) -> Tensor:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    return Tensor(value.name, dtype, (batch or shape[0], *shape[1:]))


def _facts(manifest: Manifest, accuracy: str | None) -> dict[str, object]:
    """What a client should know."""
    names = ("depth_min_m", "depth_max_m", "size_multiple", "processing_resolution", "precision")
    facts: dict[str, object] = {name: getattr(manifest, name) for name in names}
    if accuracy is not None:
        facts["accuracy"] = accuracy
    return facts | {
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "depth": f"z-depth in metres; resize in log-depth ({DEPTH_DECODER.output_name})",
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line; says how the server is started."""
    ws = Workspace()
    parser = argparse.ArgumentParser(
        prog="python -m export.triton", description="A model repository for Triton."
    )
    add = parser.add_argument
    add("--model", type=Path, default=ws.onnx, help="folder of exported graphs (%(default)s)")
    add("--engines", type=Path, help="folder of engines: TensorRT in place of ONNX Runtime")
    add("--out", type=Path, required=True, help="folder for the repository")
    add("--max-batch", type=int, default=8, help="pictures at once (%(default)s)")
    add("--delay-us", type=int, default=2000, help="wait for others, in µs (%(default)s)")
    add("--instances", type=int, default=1, help="of each network (%(default)s)")
    add("--threads", type=int, help="of ONNX Runtime (default: the server's)")
    options = parser.parse_args(arguments)
    for name, least in (("max_batch", 1), ("delay_us", 0), ("instances", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ExportError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")
    choices = Choices(
        max_batch=options.max_batch,
        delay_us=options.delay_us,
        instances=options.instances,
        threads=options.threads,
    )
    names = write_repository(options.model, options.out, choices, options.engines)
    print(f"{options.out}: {', '.join(names)}\nserve it with\n  ", end="")
    print(DOCKER.format(folder=options.out.resolve()))
    return 0


if __name__ == "__main__":
    run_cli(main)
