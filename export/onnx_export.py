"""Checkpoint to ONNX: three graphs and ``manifest.json``, the same bytes for the same checkpoint.

``python -m export.onnx_export [CHECKPOINT] [--out FOLDER] [--opset N] [--precision fp32|fp16]
[--fused]``
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxscript
import torch
from diffusers import DDIMScheduler
from torch import nn

from export.components import OneStep, build_components, example_inputs
from export.manifest import (
    MANIFEST_FILE,
    ExportError,
    FusedGraph,
    GraphFile,
    Manifest,
    SchedulerTable,
    sha256_of,
    sha256_of_folder,
)
from export.specs import CHANNELS, COMPONENTS, ONE_STEP, Axis, ComponentSpec, Precision
from metricgold.config import ExportConfig, ProfileConfig, load_config
from metricgold.errors import run_cli
from metricgold.files import replaced_folder
from metricgold.model import FOV_FEATURES, FOV_OCTAVES, vae_factor
from metricgold.pretrained import MetricGoldModel
from metricgold.workspace import Workspace

FALLBACK_OPSET = 20
EXTERNAL_DATA_BYTES = 2 * 1024**3 - 64 * 1024**2
"""Graphs above this (protobuf's 2 GiB less some room) keep their weights in a second file."""
LISTED_STEPS = (1, 2, 4, 10)
METADATA_KEY = "metricgold"


def run(config: ProfileConfig, ws: Workspace) -> Manifest:
    """Stage: export ``ws.model`` to ``ws.onnx``."""
    return export_checkpoint(ws.model, ws.onnx, config.export)


def export_checkpoint(checkpoint: Path, out: Path, config: ExportConfig) -> Manifest:
    """Export a checkpoint folder; ``out`` is replaced only when everything has succeeded.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError: a graph cannot be exported or is not valid ONNX.
    """
    model = MetricGoldModel.from_pretrained(checkpoint)
    precision = Precision(config.precision)
    check_sizes(config, model.size_multiple)
    manifest = _describe(model, config, sha256_of_folder(checkpoint))
    with replaced_folder(out) as folder:
        for name, module in build_components(model, precision).items():
            started = time.perf_counter()
            graph = _export_component(module, COMPONENTS[name], folder, config, manifest)
            manifest.components[name] = graph
            _report(name, graph, config, started)
        if config.fused:
            fused = _export_fused(model, folder, config, manifest)
            manifest = dataclasses.replace(manifest, fused=fused)
        manifest.write(folder)
    return manifest


def _export_fused(
    model: MetricGoldModel, folder: Path, config: ExportConfig, manifest: Manifest
) -> FusedGraph:
    """The graph of :class:`OneStep` at ``config.engine_size``.

    Raises:
        ExportError: the model needs several steps.
    """
    if model.default_denoising_steps != 1:
        raise ExportError(
            f"export.fused is for one-step models; this one takes {model.default_denoising_steps} "
            "steps: train stage C, or set export.fused to false"
        )
    started, size = time.perf_counter(), config.engine_size
    module = OneStep(model, size, Precision(config.precision)).eval().requires_grad_(False)
    static = config.model_copy(update={"dynamic": False})
    graph = _export_component(module, ONE_STEP, folder, static, manifest)
    _report(ONE_STEP.name, graph, config, started)
    return FusedGraph(**vars(graph), size=size)


def _report(name: str, graph: GraphFile, config: ExportConfig, started: float) -> None:
    size, seconds = f"{graph.bytes / 1e6:.1f} MB", time.perf_counter() - started
    print(f"exported {name}: {size}, opset {config.opset}, {seconds:.1f} s", flush=True)


def check_sizes(config: ExportConfig, multiple: int) -> None:
    """Refuse sizes in ``params.yaml`` that the networks cannot take.

    Raises:
        ExportError: names the key, the size and the multiple.
    """
    keyed = [("export.engine_size", config.engine_size)]
    keyed += [("export.parity_sizes", size) for size in config.parity_sizes]
    for key, size in keyed:
        if any(side % multiple for side in size):
            raise ExportError(
                f"params.yaml: {key} has {size[0]}x{size[1]}; "
                f"both sides must be multiples of {multiple}"
            )


def _describe(model: MetricGoldModel, config: ExportConfig, checkpoint_sha256: str) -> Manifest:
    return Manifest(
        precision=config.precision,
        opset=config.opset,
        dynamic=config.dynamic,
        static_size=None if config.dynamic else list(config.engine_size),
        depth_min_m=float(model.config.depth_min_m),
        depth_max_m=float(model.config.depth_max_m),
        size_multiple=model.size_multiple,
        latent_factor=vae_factor(model.image_vae),
        latent_channels=model.image_vae.config.latent_channels,
        processing_resolution=model.default_processing_resolution,
        num_inference_steps=model.default_denoising_steps,
        fov={
            "features": FOV_FEATURES,
            "octaves": list(FOV_OCTAVES),
            "formula": (
                "[sin(p), cos(p)] with p_k = tan(fov_y / 2) * pi * 2^o_k, o evenly spaced over "
                "'octaves', features / 2 of them; all zeros for an unknown field of view"
            ),
        },
        preprocessing={
            "size": (
                "scale the long side to processing_resolution, round each side to the "
                "nearest multiple of size_multiple (at least one)"
            ),
            "resize": "bilinear with antialias on 8-bit sRGB",
            "value_range": "rgb / 255 * 2 - 1, channels first",
            "output": "z-depth in metres; resize bilinearly in log-depth",
            "one_step_start": (
                "noisy_depth_latent of a one-step model: channels x, y, x tan(fov_y/2) w/h, "
                "y tan(fov_y/2) with x, y the cell centres in [-1, 1], both tangents zeros for "
                "an unknown field of view; zeros in any further channel"
            ),
        },
        versions={
            "torch": torch.__version__.partition("+")[0],
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
        },
        checkpoint_sha256=checkpoint_sha256,
        scheduler=scheduler_table(model.scheduler),
        components={},
    )


def scheduler_table(scheduler: DDIMScheduler) -> SchedulerTable:
    """What the numpy DDIM loop needs of a diffusers scheduler.

    Raises:
        ExportError: the scheduler is not v-prediction with trailing timesteps.
    """
    settings = scheduler.config
    if settings.prediction_type != "v_prediction" or settings.timestep_spacing != "trailing":
        raise ExportError(
            f"the scheduler predicts '{settings.prediction_type}' with "
            f"'{settings.timestep_spacing}' timesteps; only v_prediction with trailing "
            "timesteps can be exported: use metricgold.diffusion.make_scheduler()"
        )
    timesteps = {}
    for steps in LISTED_STEPS:
        scheduler.set_timesteps(steps)
        timesteps[str(steps)] = [int(t) for t in scheduler.timesteps]
    return SchedulerTable(
        prediction_type=settings.prediction_type,
        timestep_spacing=settings.timestep_spacing,
        num_train_timesteps=int(settings.num_train_timesteps),
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        timesteps=timesteps,
        alphas_cumprod=" ".join(f"{float(a):.9g}" for a in scheduler.alphas_cumprod),
    )


def _export_component(
    module: nn.Module,
    spec: ComponentSpec,
    folder: Path,
    config: ExportConfig,
    manifest: Manifest,
) -> GraphFile:
    batch, size = 1, config.engine_size
    if config.dynamic:
        batch, size = 2, _dynamic_example(size, manifest.latent_factor)
    inputs = example_inputs(spec, size, manifest.grid, batch)
    shapes = tuple(t.dynamic_axes() for t in spec.inputs.values()) if config.dynamic else None
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=config.opset,
                input_names=list(spec.inputs),
                output_names=[spec.output_name],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"{spec.name}: torch.onnx.export failed at opset {config.opset} "
            f"({' '.join(str(error).split())[:300]}); try --opset {FALLBACK_OPSET}"
        ) from error
    assert program is not None
    graph = program.model
    _make_reproducible(graph, manifest.metadata())
    if config.dynamic:
        _name_axes(graph, spec, manifest.latent_channels)
    return _save(graph, spec, folder)


def _dynamic_example(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """A size from which a graph is traced that takes every size.

    What has length 1 is taken for a constant, and from latents of even sides the U-Net's way up
    would be traced as plain doubling: both sides have an odd number of latent cells, at least 3.
    """
    height, width = (factor * (side // factor * 2 + 1) for side in size)
    return height, width


def _make_reproducible(graph: onnx_ir.Model, metadata: dict[str, Any]) -> None:
    """Drop stack traces and the build's local version; add the manifest's metadata."""
    graph.producer_name = "metricgold"
    graph.producer_version = metadata["versions"]["torch"]
    graph.metadata_props.clear()
    graph.metadata_props[METADATA_KEY] = json.dumps(metadata, sort_keys=True)
    functions: list[Any] = [graph.graph, *graph.functions.values()]
    for function in functions:
        function.metadata_props.clear()
        for node in function:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()


def _name_axes(graph: onnx_ir.Model, spec: ComponentSpec, channels: int) -> None:
    """Give the output the axis names of ``spec`` where the exporter wrote an expression."""
    (output,) = graph.graph.outputs
    suffix = "_out" if spec.output.latent != next(iter(spec.inputs.values())).latent else ""
    names: dict[Axis, Axis] = {a: f"{a}{suffix}" for a in ("height", "width")}
    names[CHANNELS] = channels
    output.shape = onnx_ir.Shape([names.get(axis, axis) for axis in spec.output.axes])


def _save(graph: onnx_ir.Model, spec: ComponentSpec, folder: Path) -> GraphFile:
    path = folder / spec.file
    weights = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value)
    external = f"{spec.file}.data" if weights > EXTERNAL_DATA_BYTES else None
    onnx_ir.save(graph, path, external_data=external)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{spec.name}: the exported graph is not valid ONNX: {reason}") from error
    names = [spec.file] + ([external] if external else [])
    return GraphFile(
        files={name: sha256_of(folder / name) for name in names},
        bytes=sum((folder / name).stat().st_size for name in names),
        inputs={n: _shape(v) for v in graph.graph.inputs if (n := v.name)},
        output={spec.output_name: _shape(graph.graph.outputs[0])},
    )


def _shape(value: onnx_ir.Value) -> list[str | int]:
    assert value.shape is not None
    return [d if isinstance(d, int) else str(d.value) for d in value.shape]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on optional packages and renamed axes concern nobody here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def main(arguments: list[str] | None = None) -> int:
    """Command line; defaults come from ``params.yaml``."""
    ws = Workspace()
    parser = argparse.ArgumentParser(prog="python -m export.onnx_export", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=ws.model)
    parser.add_argument("--out", type=Path, default=ws.onnx)
    parser.add_argument("--opset", type=int)
    parser.add_argument("--precision", choices=[p.value for p in Precision])
    parser.add_argument(
        "--fused", action="store_true", default=None, help="also one graph from picture to metres"
    )
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("opset", "precision", "fused")}
    base = load_config().export.model_dump()
    config = ExportConfig(**(base | {k: v for k, v in given.items() if v is not None}))
    manifest = export_checkpoint(options.checkpoint, options.out, config)
    graphs = manifest.graphs()
    total = sum(g.bytes for g in graphs.values()) / 1e6
    print(f"{options.out / MANIFEST_FILE}: {len(graphs)} graphs, {total:.1f} MB")
    return 0


if __name__ == "__main__":
    run_cli(main)
