"""One graph to one engine: parsed, audited, built, logged, timed."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from export import build_progress, ddim_engine, engine_audit
from export.engine_manifest import LIMITS, EngineSidecar, Profile
from export.engine_options import BuildOptions, network_flags
from export.manifest import ExportError, Manifest, sha256_of
from export.peak_memory import peak_memory
from export.specs import DDIM_UPDATE, GRAPHS, Precision
from export.trt_library import TrtLibrary, make_logger
from metricgold import __version__
from metricgold.config import EnginesConfig


class EngineBuildError(ExportError):
    """A library is there but a graph does not build; names the graph and the reason."""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A library that can build here, its options, and where everything is."""

    library: TrtLibrary
    trt: Any
    options: BuildOptions
    capabilities: list[str]
    onnx: Path
    graphs: Manifest
    folder: Path


def toolchain(
    library: TrtLibrary,
    onnx: Path,
    graphs: Manifest,
    folder: Path,
    timing_cache: Path,
    wanted: EnginesConfig,
) -> Toolchain:
    """What builds engines of ``graphs`` in ``onnx`` below ``folder``.

    Raises:
        BackendUnavailableError: the library cannot build here.
    """
    trt = library.load_for_building()
    quiet = make_logger(trt, [])
    options = BuildOptions(
        trt, lambda: trt.Builder(quiet), wanted, library.ahead_of_time, timing_cache
    )
    return Toolchain(
        library=library,
        trt=trt,
        options=options,
        capabilities=list(library.target_capabilities()),
        onnx=onnx,
        graphs=graphs,
        folder=folder,
    )


def build(tools: Toolchain, component: str, profiles: list[Profile]) -> EngineSidecar:
    """Write ``<component>.engine`` and ``.log`` below ``tools.folder``; returns its record.

    Raises:
        EngineBuildError: it does not parse or build, or a layer is in the wrong precision.
    """
    path = tools.folder / tools.library.name / f"{component}.engine"
    log_path = path.with_suffix(".log")
    began = time.perf_counter()
    with log_path.open("w", encoding="utf-8") as log, peak_memory() as peak:
        built = _Build(tools, component, log)
        try:
            path.write_bytes(built.run(profiles))
        except BaseException as error:
            # Else the traceback keeps the builder, until the garbage collector comes upon it
            # while the next one logs: TensorRT-RTX then waits for its own lock for ever.
            traceback.clear_frames(error.__traceback__)
            raise
    graph = tools.graphs.graphs().get(component)
    return EngineSidecar(
        component=component,
        library=tools.library.name,
        versions={
            tools.library.name: tools.trt.__version__,
            "onnx_parser": ".".join(map(str, _parser_version(tools.trt))),
            "metricgold": __version__,
        },
        compute_capabilities=tools.capabilities,
        file=path.relative_to(tools.folder).as_posix(),
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        graph={} if graph is None else graph.files,
        precision=str(built.precision),
        profiles=profiles,
        options=built.applied.used,
        not_available=built.applied.not_available,
        audit=built.audit,
        seconds=round(time.perf_counter() - began, 2),
        peak_memory_mib=peak.mib,
        log=log_path.relative_to(tools.folder).as_posix(),
    )


class _Build:
    """One run; what it finds out stays in its attributes."""

    def __init__(self, tools: Toolchain, component: str, log: TextIO) -> None:
        self._tools, self._component, self._log = tools, component, log
        self._messages: list[str] = []
        self._logger = make_logger(tools.trt, self._messages, log)
        own = component == DDIM_UPDATE.name
        self.precision = Precision.FP32 if own else tools.graphs.arithmetic
        self.attention = Precision(tools.graphs.attention)
        self.audit: dict[str, Any] = {}

    def run(self, profiles: Sequence[Profile]) -> memoryview:
        """Serialized engine."""
        tools, trt = self._tools, self._tools.trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(network_flags(trt))
        if self._component == DDIM_UPDATE.name:
            fixed = tools.graphs.static_size
            size = None if fixed is None else (fixed[0], fixed[1])
            ddim_engine.define(trt, network, tools.graphs.grid, size)
        else:
            parser = trt.OnnxParser(network, self._logger)
            source = tools.onnx / tools.graphs.graphs()[self._component].onnx_file
            if not parser.parse_from_file(str(source)):
                reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
                raise self._failure(reasons or self._messages)
            allow_decomposed_attention(trt, network)
            self._audit(network)
        config = builder.create_builder_config()
        self.applied = tools.options.apply(config)
        for line in self.applied.described():
            self._log.write(f"metricgold: {line}\n")
        for profile in profiles:
            shapes = builder.create_optimization_profile()
            for name, limits in profile.items():
                shapes.set_shape(name, *(limits[limit] for limit in LIMITS))
            config.add_optimization_profile(shapes)
        self._messages.clear()  # setting options may say things of its own
        with build_progress.shown(trt, config, self._component):
            serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise self._failure(self._messages)
        tools.options.keep_timings(config)
        self._inspect(serialized)
        return memoryview(serialized)

    def _audit(self, network: Any) -> None:
        layers = engine_audit.layers_of(self._tools.trt, network)
        counts = engine_audit.counted(layers)
        self.audit = {"source": "parsed strongly typed network", "layers": counts}
        output = network.get_output(0).name
        judged = engine_audit.problems(
            self._component, layers, output, self.precision, self.attention
        )
        found = list(judged)
        self._log.write("".join(f"metricgold: precision audit: {line}\n" for line in found))
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise self._failure([f"precision audit: {found[0]}{more}"])
        print(f"audited {self._component}: {engine_audit.described(counts)}", flush=True)

    def _inspect(self, serialized: Any) -> None:
        counts, reason = engine_audit.inspected(self._tools.library, serialized, self._logger)
        if counts is not None:
            self.audit["engine_layers"] = counts
        else:
            self.audit["engine_not_inspected"] = reason

    def _failure(self, reasons: Sequence[str]) -> EngineBuildError:
        library, what = self._tools.library.name, GRAPHS.get(self._component, DDIM_UPDATE).file
        reason = (reasons[0] if reasons else "no reason given")[:400]
        return EngineBuildError(f"{library}: {what} does not build: {reason}")


def allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Let attention run as plain matrix products where no fused kernel fits.

    The fused kernels cover half precision; without this an fp32 graph is refused.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    if kind is None:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _parser_version(trt: Any) -> tuple[int, ...]:
    """Of the ONNX parser: one number such as 110400, or a tuple, by version."""
    version = trt.get_nv_onnx_parser_version()
    return (version,) if isinstance(version, int) else tuple(version)
