"""Checkpoint to ONNX: three graphs and ``manifest.json``, the same bytes for the same checkpoint.

``python -m export.onnx_export [CHECKPOINT] [--out FOLDER] [--opset N] [--precision fp32|fp16]
[--attention auto|fp32] [--dynamic | --fixed HxW] [--fused | --no-fused] [--light]``
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from export import trial
from export.components import OneStep, build_components
from export.describe import describe, licence_of
from export.graphs import FALLBACK_OPSET, OpsetError, export_graph
from export.half import attention_in_float32, to_half
from export.manifest import (
    MANIFEST_FILE,
    ExportError,
    FusedGraph,
    GraphFile,
    Manifest,
    sha256_of_folder,
)
from export.specs import COMPONENTS, EXPORTED, ONE_STEP, Precision
from metricgold.config import OPSETS, ExportConfig, ProfileConfig, load_config
from metricgold.errors import run_cli
from metricgold.files import replaced_folder
from metricgold.pretrained import MetricGoldModel
from metricgold.workspace import Workspace


def run(config: ProfileConfig, ws: Workspace) -> Manifest:
    """Stage: export ``ws.model`` to ``ws.onnx``."""
    return export_checkpoint(ws.model, ws.onnx, config.export)


def export_checkpoint(
    checkpoint: Path, out: Path, config: ExportConfig, *, fall_back: bool = True
) -> Manifest:
    """Export a checkpoint folder; ``out`` is replaced only when everything has succeeded.

    Args:
        fall_back: where ``config.opset`` does not do, say so and take :data:`FALLBACK_OPSET`.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no light autoencoder.
        ExportError: a graph cannot be exported, is not valid ONNX, has leftovers, or does not
            load and give finite values in ONNX Runtime (where that is installed).
    """
    model = MetricGoldModel.from_pretrained(checkpoint, light=config.light)
    check_sizes(config, model.size_multiple)
    _check_fused(config, model)
    widened = False
    if Precision(config.precision) is Precision.FP16:
        widened = attention_in_float32(model, config.engine_size, config.attention)
        to_half(model, widened)
    told = {
        "attention": Precision.FP32.value if widened else config.precision,
        "licence": licence_of(checkpoint),
        "checkpoint_sha256": sha256_of_folder(checkpoint),
    }
    opsets = [config.opset]
    if fall_back and config.opset != FALLBACK_OPSET:
        opsets.append(FALLBACK_OPSET)
    for opset in opsets:
        asked = config.model_copy(update={"opset": opset})
        try:
            with replaced_folder(out) as folder:
                manifest = _export_all(model, folder, asked, describe(model, asked, **told))
                trial.run(folder, manifest, config.engine_size)
        except (OpsetError, trial.RefusedError) as error:
            if opset == opsets[-1]:
                raise
            print(f"{error}; falling back to opset {FALLBACK_OPSET}", flush=True)
        else:
            return manifest
    raise AssertionError("the last opset either succeeds or raises")


def _export_all(
    model: MetricGoldModel, folder: Path, config: ExportConfig, manifest: Manifest
) -> Manifest:
    """Every graph and the manifest, into ``folder``."""
    precision = Precision(config.precision)
    for name, module in build_components(model, precision).items():
        started = time.perf_counter()
        graph = export_graph(module, COMPONENTS[name], folder, config, manifest)
        manifest.components[name] = graph
        _report(name, graph, config, started)
    if config.fused:
        started, size = time.perf_counter(), config.engine_size
        module = OneStep(model, size, precision).eval().requires_grad_(False)
        static = config.model_copy(update={"dynamic": False})
        graph = export_graph(module, ONE_STEP, folder, static, manifest)
        _report(ONE_STEP.name, graph, config, started)
        manifest = dataclasses.replace(manifest, fused=FusedGraph(**vars(graph), size=size))
    manifest.write(folder)
    return manifest


def _check_fused(config: ExportConfig, model: MetricGoldModel) -> None:
    """Refuse a fused graph of a model that needs several steps."""
    if config.fused and model.default_denoising_steps != 1:
        raise ExportError(
            f"export.fused is for one-step models; this one takes {model.default_denoising_steps} "
            "steps: train stage C, or set export.fused to false"
        )


def _report(name: str, graph: GraphFile, config: ExportConfig, started: float) -> None:
    size, seconds = f"{graph.bytes / 1e6:.1f} MB", time.perf_counter() - started
    print(f"exported {name}: {size}, opset {config.opset}, {seconds:.1f} s", flush=True)


def check_sizes(config: ExportConfig, multiple: int) -> None:
    """Refuse sizes in ``params.yaml``, or of ``--fixed``, that the networks cannot take.

    Raises:
        ExportError: names the key, the size and the multiple.
    """
    keyed = [("export.engine_size (or --fixed)", config.engine_size)]
    keyed += [("export.parity_sizes", size) for size in config.parity_sizes]
    for key, size in keyed:
        if any(side % multiple for side in size):
            raise ExportError(
                f"params.yaml: {key} has {size[0]}x{size[1]}; "
                f"both sides must be multiples of {multiple}"
            )


def main(arguments: list[str] | None = None) -> int:
    """Command line; defaults come from ``params.yaml``."""
    options = _parser().parse_args(arguments)
    names = ("opset", "precision", "attention", "dynamic", "fused", "light")
    given = {name: getattr(options, name) for name in names}
    if options.fixed is not None:
        given |= {"dynamic": False, "engine_size": options.fixed}
    base = load_config().export.model_dump()
    config = ExportConfig(**(base | {k: v for k, v in given.items() if v is not None}))
    manifest = export_checkpoint(
        options.checkpoint, options.out, config, fall_back=options.opset is None
    )
    graphs = manifest.graphs()
    total = sum(g.bytes for g in graphs.values()) / 1e6
    print(f"{options.out / MANIFEST_FILE}: {len(graphs)} graphs, {total:.1f} MB")
    return 0


def _parser() -> argparse.ArgumentParser:
    ws, on_or_off = Workspace(), argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(
        prog="python -m export.onnx_export",
        description="Checkpoint to ONNX; what is not given is taken from params.yaml.",
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, default=ws.model, help="folder (%(default)s)")
    add("--out", type=Path, default=ws.onnx, help="folder for the graphs (%(default)s)")
    add(
        "--opset",
        type=int,
        choices=OPSETS,
        metavar="N",
        help=f"this and no other; else {FALLBACK_OPSET} if need be",
    )
    add("--precision", choices=[p.value for p in EXPORTED], help="arithmetic inside the graphs")
    add("--attention", choices=["auto", "fp32"], help="auto: fp32 where fp16 would overflow")
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument(
        "--dynamic", action="store_true", default=None, help="any batch, height and width"
    )
    shapes.add_argument("--fixed", type=_size, metavar="HxW", help="one picture of this size only")
    add("--fused", action=on_or_off, help="also one graph from picture to metres")
    add("--light", action=on_or_off, help="graphs of the light autoencoder")
    return parser


def _size(text: str) -> tuple[int, int]:
    """``480x640`` as height and width in pixels."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"'{text}' is not height x width in pixels, like 480x640")
    return int(height), int(width)


if __name__ == "__main__":
    run_cli(main)
