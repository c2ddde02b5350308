"""ONNX graphs to TensorRT and TensorRT-RTX engines; records what could not be built and why.

``python -m export.build_engine [--onnx FOLDER] [--out FOLDER] [--backend tensorrt|tensorrt-rtx]
[--commands]``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.engine_manifest import (
    EngineFile,
    EngineManifest,
    LibraryBuild,
    Profile,
    profile_of,
)
from export.manifest import (
    MANIFEST_FILE,
    BackendUnavailableError,
    ExportError,
    Manifest,
    read_manifest,
    sha256_of,
    verify_graphs,
)
from export.trt_library import LIBRARIES, TrtLibrary, make_logger
from export.trtexec import command_lines
from metricgold.config import ProfileConfig, load_config
from metricgold.errors import run_cli
from metricgold.files import replaced_folder
from metricgold.workspace import Workspace

WORKSPACE_BYTES = 4 * 1024**3
"""Upper bound on scratch memory an engine may plan with."""


class EngineBuildError(ExportError):
    """A library is there but a graph does not build; names the graph and the library's reason."""


def run(config: ProfileConfig, ws: Workspace) -> EngineManifest:
    """Stage: engines of every library that works here, from ``ws.onnx`` to ``ws.engines``."""
    return build_engines(ws.onnx, ws.engines, config.export.engine_size)


def build_engines(
    onnx: Path, out: Path, engine_size: tuple[int, int], names: Sequence[str] = tuple(LIBRARIES)
) -> EngineManifest:
    """Build all components with each library of ``names`` that can build on this machine.

    Raises:
        ExportError: the ONNX folder is missing, stale or foreign.
        EngineBuildError: a graph does not build; ``out/manifest.json`` says which and why.
    """
    graphs = read_manifest(onnx)
    verify_graphs(onnx, graphs)
    manifest = EngineManifest()
    failure: EngineBuildError | None = None
    with replaced_folder(out) as folder:
        for name in names:
            try:
                library = LIBRARIES[name]
                trt = library.load_for_building()
                build = _build_library(library, trt, onnx, graphs, folder, engine_size)
                manifest.builds[name] = build
            except BackendUnavailableError as reason:
                manifest.not_built[name] = str(reason)
                print(f"not built with {reason}", flush=True)
            except EngineBuildError as error:
                manifest.not_built[name] = str(error)
                failure = failure or error
        manifest.write(folder)
    if failure:
        raise failure
    return manifest


def _build_library(
    library: TrtLibrary,
    trt: Any,
    onnx: Path,
    graphs: Manifest,
    out: Path,
    engine_size: tuple[int, int],
) -> LibraryBuild:
    build = LibraryBuild(
        library_version=trt.__version__,
        compute_capabilities=list(library.target_capabilities()),
    )
    (out / library.name).mkdir()
    for name, graph in graphs.graphs().items():
        profile = profile_of(name, graphs, engine_size)
        started = time.perf_counter()
        file = f"{library.name}/{name}.engine"
        source = onnx / graph.onnx_file
        serialized = _build_graph(library, trt, source, profile, build.compute_capabilities)
        (out / file).write_bytes(serialized)
        build.engines[name] = EngineFile(
            file=file,
            sha256=sha256_of(out / file),
            bytes=(out / file).stat().st_size,
            seconds=round(time.perf_counter() - started, 2),
            onnx_sha256=graph.onnx_sha256,
            profile=profile,
        )
        _report(library, build, name)
    return build


def _report(library: TrtLibrary, build: LibraryBuild, component: str) -> None:
    engine = build.engines[component]
    print(
        f"built {component} with {library.name} {build.library_version} for compute capability "
        f"{', '.join(build.compute_capabilities)}: {engine.bytes / 1e6:.1f} MB, "
        f"{engine.seconds:.1f} s",
        flush=True,
    )


def _build_graph(
    library: TrtLibrary, trt: Any, source: Path, profile: Profile, capabilities: Sequence[str]
) -> memoryview:
    """Serialized engine of one graph; raises :class:`EngineBuildError`."""
    messages: list[str] = []
    builder = trt.Builder(make_logger(trt, messages))
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, make_logger(trt, messages))
    if not parser.parse_from_file(str(source)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _failure(library, source, reasons or messages)
    _allow_decomposed_attention(trt, network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if library.ahead_of_time:
        _set_capabilities(trt, config, capabilities)
    if profile:
        shapes = builder.create_optimization_profile()
        for name, limits in profile.items():
            shapes.set_shape(name, limits["min"], limits["opt"], limits["max"])
        config.add_optimization_profile(shapes)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _failure(library, source, messages)
    return memoryview(serialized)


def _failure(library: TrtLibrary, source: Path, reasons: Sequence[str]) -> EngineBuildError:
    reason = (reasons[0] if reasons else "no reason given")[:400]
    return EngineBuildError(f"{library.name}: {source.name} does not build: {reason}")


def _network_flags(trt: Any) -> int:
    """Strong typing: precision is what the graph says. Newer versions know nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
        config.set_compute_capability(member, index)


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
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


def main(arguments: list[str] | None = None) -> int:
    """Command line; the engine size comes from ``params.yaml``."""
    ws = Workspace()
    parser = argparse.ArgumentParser(prog="python -m export.build_engine", description=__doc__)
    parser.add_argument("--onnx", type=Path, default=ws.onnx)
    parser.add_argument("--out", type=Path, default=ws.engines)
    parser.add_argument("--backend", choices=list(LIBRARIES), action="append")
    parser.add_argument(
        "--commands",
        action="store_true",
        help="print what NVIDIA's trtexec and polygraphy need for the same engines; build nothing",
    )
    options = parser.parse_args(arguments)
    size = load_config().export.engine_size
    if options.commands:
        graphs = read_manifest(options.onnx)
        print(*command_lines(options.onnx, options.out, graphs, size), sep="\n")
        return 0
    names = tuple(options.backend or LIBRARIES)
    manifest = build_engines(options.onnx, options.out, size, names)
    engines = sum(len(build.engines) for build in manifest.builds.values())
    print(f"{options.out / MANIFEST_FILE}: {engines} engines")
    asked_in_vain = [name for name in options.backend or () if name in manifest.not_built]
    return 1 if asked_in_vain else 0


if __name__ == "__main__":
    run_cli(main)
