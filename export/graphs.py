"""One torch module to one ONNX file: exported, cleaned, described, checked, saved."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import nn

from export import clean, graph_rewrites
from export.components import example_inputs
from export.manifest import ExportError, GraphFile, Manifest, sha256_of
from export.specs import CHANNELS, Axis, ComponentSpec
from metricgold.config import ExportConfig

FALLBACK_OPSET = 20
EXTERNAL_DATA_BYTES = 2**30
"""Graphs above this keep their weights in a second file, which is written and read piece by piece.

A single file could hold twice as much, but is then several times in memory.
"""
METADATA_KEY = "metricgold"
GRAPH_KEY = "metricgold.graph"
"""Which of the graphs a file is."""


class OpsetError(ExportError):
    """A graph cannot be had at an opset; another one may do."""


def export_graph(
    module: nn.Module,
    spec: ComponentSpec,
    folder: Path,
    config: ExportConfig,
    manifest: Manifest,
) -> GraphFile:
    """One graph, checked and clean, into ``folder``; ``manifest`` goes into its metadata.

    Raises:
        OpsetError: the exporter fails, or its graph is not valid ONNX.
        ExportError: the graph has leftovers.
    """
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
        raise OpsetError(
            f"{spec.name}: torch.onnx.export failed at opset {config.opset} "
            f"({' '.join(str(error).split())[:300]}); try --opset {FALLBACK_OPSET}"
        ) from error
    assert program is not None
    graph = program.model
    graph_rewrites.rewrite(graph, manifest.arithmetic)
    clean.clean(graph)
    clean.check_clean(graph, spec.name)
    _make_reproducible(graph)
    set_metadata(graph, manifest, spec.name)
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


def set_metadata(graph: onnx_ir.Model, manifest: Manifest, name: str) -> None:
    """What the file says of itself: everything a reader needs, and which of the graphs it is."""
    graph.graph.name = name
    graph.producer_name = "metricgold"
    graph.producer_version = manifest.versions["metricgold"]
    graph.metadata_props.clear()
    graph.metadata_props[METADATA_KEY] = json.dumps(manifest.metadata(), sort_keys=True)
    graph.metadata_props[GRAPH_KEY] = name


def _make_reproducible(graph: onnx_ir.Model) -> None:
    """Drop stack traces and what else differs from machine to machine."""
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
    save_graph(graph, folder / spec.file)
    check_valid(folder / spec.file, spec.name)
    return graph_file(graph, folder / spec.file)


def save_graph(graph: onnx_ir.Model, path: Path) -> None:
    """Write a graph; its weights to ``<path>.data`` where they are too large for one file."""
    weights = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value)
    external = f"{path.name}.data" if weights > EXTERNAL_DATA_BYTES else None
    onnx_ir.save(graph, path, external_data=external)


def check_valid(path: Path, name: str) -> None:
    """Check a saved graph against the standard, types and shapes of all values included.

    Raises:
        OpsetError: it is not valid.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OpsetError(f"{name}: the exported graph is not valid ONNX: {reason}") from error


def graph_file(graph: onnx_ir.Model, path: Path) -> GraphFile:
    """What the manifest says of a graph that was saved."""
    paths = [path, path.with_name(f"{path.name}.data")]
    sizes = {p.name: p.stat().st_size for p in paths if p.is_file()}
    (output,) = graph.graph.outputs
    return GraphFile(
        files={name: sha256_of(path.with_name(name)) for name in sizes},
        bytes=sum(sizes.values()),
        inputs={n: _shape(v) for v in graph.graph.inputs if (n := v.name)},
        output={str(output.name): _shape(output)},
    )


def _shape(value: onnx_ir.Value) -> list[str | int]:
    assert value.shape is not None
    return [d if isinstance(d, int) else str(d.value) for d in value.shape]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on optional packages, axes and what it tried concern nobody here."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.utils._sympy.interp")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
