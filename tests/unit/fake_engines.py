"""A folder of engines as a build writes it, whose content :mod:`fake_gpu` runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fake_gpu import engine_bytes

from export.engine_manifest import (
    EngineEntry,
    EngineManifest,
    EngineSidecar,
    LibraryBuild,
    read_engine_manifest,
    write_sidecar,
)
from export.engine_profiles import profiles_of
from export.manifest import read_manifest, sha256_of
from export.specs import DDIM_UPDATE, GRAPHS, ComponentSpec
from metricgold.config import ExportConfig

VERSION = "1.0"
CAPABILITIES = ["8.6", "8.9"]


def write_engines(
    folder: Path,
    onnx: Path,
    config: ExportConfig,
    library: str = "tensorrt-rtx",
    options: Mapping[str, Any] | None = None,
    **content: Any,
) -> Path:
    """Every engine of ``library``; ``content`` as of :func:`fake_gpu.engine_bytes`."""
    (folder / library).mkdir(parents=True)
    graphs = read_manifest(onnx)
    build = LibraryBuild(library_version=VERSION, compute_capabilities=CAPABILITIES)
    for name in (*graphs.graphs(), DDIM_UPDATE.name):
        path = folder / library / f"{name}.engine"
        profiles, graph = profiles_of(name, graphs, config), graphs.graphs().get(name)
        spec = GRAPHS.get(name, DDIM_UPDATE)
        source = "" if graph is None else str(onnx / graph.onnx_file)
        path.write_bytes(
            engine_bytes(source, tensors(spec), name=name, profiles=profiles, **content)
        )
        sidecar = EngineSidecar(
            component=name,
            library=library,
            versions={library: VERSION},
            compute_capabilities=CAPABILITIES,
            file=path.relative_to(folder).as_posix(),
            sha256=sha256_of(path),
            bytes=path.stat().st_size,
            graph={} if graph is None else graph.files,
            precision="fp32",
            profiles=profiles,
            options=dict(options or {}),
            not_available={},
            audit={},
            seconds=0.1,
            peak_memory_mib=None,
            log=f"{library}/{name}.log",
        )
        build.engines[name] = entry_of(folder, sidecar)
    not_built = {"tensorrt": "no NVIDIA driver on this machine"} if library != "tensorrt" else {}
    EngineManifest(builds={library: build}, not_built=not_built).write(folder)
    return folder


def tensors(spec: ComponentSpec) -> dict[str, str]:
    """Names and element types of an engine's tensors, the output last."""
    return {n: t.dtype for n, t in spec.inputs.items()} | {spec.output_name: spec.output.dtype}


def entry_of(folder: Path, sidecar: EngineSidecar) -> EngineEntry:
    """Write a sidecar; its place in the manifest."""
    path = write_sidecar(folder, sidecar)
    return EngineEntry(
        bytes=sidecar.bytes,
        sidecar=path.relative_to(folder).as_posix(),
        sidecar_sha256=sha256_of(path),
    )


def rewritten(folder: Path, sidecar: EngineSidecar, **changed: Any) -> None:
    """Change what is said of one engine, hashes and all, as only a build could."""
    manifest = read_engine_manifest(folder)
    entry = entry_of(folder, dataclasses.replace(sidecar, **changed))
    manifest.builds[sidecar.library].engines[sidecar.component] = entry
    manifest.write(folder)
