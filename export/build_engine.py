"""ONNX graphs to TensorRT and TensorRT-RTX engines; records what could not be built and why.

``python -m export.build_engine [--onnx FOLDER] [--out FOLDER] [--backend tensorrt|tensorrt-rtx]
[--commands]``

Shapes and options are ``export.engines`` of ``params.yaml``. Beside each engine: a sidecar JSON
with versions, profiles, options and the audit of its layers, and the log of its build. Beside the
folder: the timing caches, which outlive it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from export.build_graph import EngineBuildError, Toolchain, build, toolchain
from export.engine_manifest import (
    EngineEntry,
    EngineManifest,
    EngineSidecar,
    LibraryBuild,
    write_sidecar,
)
from export.engine_profiles import profiles_of
from export.manifest import (
    MANIFEST_FILE,
    BackendUnavailableError,
    read_manifest,
    sha256_of,
    verify_graphs,
)
from export.specs import DDIM_UPDATE
from export.trt_library import LIBRARIES
from export.trtexec import command_lines
from metricgold.config import ExportConfig, ProfileConfig, load_config
from metricgold.errors import run_cli
from metricgold.files import replaced_folder
from metricgold.workspace import Workspace

__all__ = ["EngineBuildError", "build_engines", "run"]


def run(config: ProfileConfig, ws: Workspace) -> EngineManifest:
    """Stage: engines of every library that works here, from ``ws.onnx`` to ``ws.engines``."""
    return build_engines(ws.onnx, ws.engines, config.export)


def build_engines(
    onnx: Path, out: Path, config: ExportConfig, names: Sequence[str] = tuple(LIBRARIES)
) -> EngineManifest:
    """Build all components with each library of ``names`` that can build on this machine.

    Raises:
        ExportError: the ONNX folder is missing, stale or foreign, or a size does not fit.
        EngineBuildError: a graph does not build; ``out/manifest.json`` says which and why.
    """
    graphs = read_manifest(onnx)
    verify_graphs(onnx, graphs)
    manifest = EngineManifest()
    failures = []
    with replaced_folder(out) as folder:
        for name in names:
            try:
                timing = out.with_name(f"{out.name}.{name}.timing")
                tools = toolchain(LIBRARIES[name], onnx, graphs, folder, timing, config.engines)
                manifest.builds[name] = _build_library(tools, config)
            except BackendUnavailableError as reason:
                manifest.not_built[name] = str(reason)
                print(f"not built with {reason}", flush=True)
            except EngineBuildError as error:
                manifest.not_built[name] = str(error)
                failures.append(str(error))
        manifest.write(folder)
    if failures:
        raise EngineBuildError(failures[0])
    return manifest


def _build_library(tools: Toolchain, config: ExportConfig) -> LibraryBuild:
    made = LibraryBuild(
        library_version=tools.trt.__version__, compute_capabilities=tools.capabilities
    )
    (tools.folder / tools.library.name).mkdir()
    told: set[str] = set()
    # The update between two steps belongs to the three graphs, which are always there.
    for component in (*tools.graphs.graphs(), DDIM_UPDATE.name):
        sidecar = build(tools, component, profiles_of(component, tools.graphs, config))
        path = write_sidecar(tools.folder, sidecar)
        made.engines[component] = EngineEntry(
            bytes=sidecar.bytes,
            sidecar=path.relative_to(tools.folder).as_posix(),
            sidecar_sha256=sha256_of(path),
        )
        _report(sidecar, told)
    return made


def _report(sidecar: EngineSidecar, told: set[str]) -> None:
    peak = (
        ""
        if sidecar.peak_memory_mib is None
        else f", peak memory {sidecar.peak_memory_mib:.0f} MiB"
    )
    print(
        f"built {sidecar.component} with {sidecar.library} {sidecar.versions[sidecar.library]} "
        f"for compute capability {', '.join(sidecar.compute_capabilities)}: "
        f"{sidecar.bytes / 1e6:.1f} MB, {sidecar.seconds:.1f} s{peak}",
        flush=True,
    )
    for name, why in sidecar.not_available.items():
        if name not in told:
            print(f"{sidecar.library}: {name} is not used: {why}", flush=True)
            told.add(name)


def main(arguments: list[str] | None = None) -> int:
    """Command line; shapes and options come from ``params.yaml``."""
    ws = Workspace()
    parser = argparse.ArgumentParser(
        prog="python -m export.build_engine",
        description="ONNX graphs to TensorRT and TensorRT-RTX engines. Shapes, workspace, weight "
        "streaming, compatibility and the like are export.engines of params.yaml; precision is "
        "that of the graphs. See docs/tensorrt.md.",
    )
    add = parser.add_argument
    add("--onnx", type=Path, default=ws.onnx, help="folder of exported graphs (%(default)s)")
    add("--out", type=Path, default=ws.engines, help="folder for the engines (%(default)s)")
    add(
        "--backend",
        choices=list(LIBRARIES),
        action="append",
        help="with this library, or fail; may be repeated (default: with each that can build here)",
    )
    add(
        "--commands",
        action="store_true",
        help="print what NVIDIA's trtexec and polygraphy need for the same engines; build nothing",
    )
    options = parser.parse_args(arguments)
    config = load_config().export
    if options.commands:
        graphs = read_manifest(options.onnx)
        print(*command_lines(options.onnx, options.out, graphs, config), sep="\n")
        return 0
    names = tuple(options.backend or LIBRARIES)
    manifest = build_engines(options.onnx, options.out, config, names)
    engines = sum(len(build.engines) for build in manifest.builds.values())
    print(f"{options.out / MANIFEST_FILE}: {engines} engines")
    asked_in_vain = [name for name in options.backend or () if name in manifest.not_built]
    return 1 if asked_in_vain else 0


if __name__ == "__main__":
    run_cli(main)
