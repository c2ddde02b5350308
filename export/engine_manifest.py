"""What an engines folder holds: ``manifest.json``, and a sidecar JSON beside each engine.

The manifest lists what was built and what was not; a sidecar says everything of one engine and
is hashed in the manifest, the engine in its sidecar. A runtime believes neither before both
hashes, the graph, the library and the GPU agree.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export.manifest import MANIFEST_FILE, ExportError, read_json, verify_files
from metricgold import files

ENGINE_HINT = "run 'dvc repro export_trt' or 'python -m export.build_engine'"
FORMAT = 2
Profile = dict[str, dict[str, list[int]]]
"""Input name to ``min``, ``opt`` and ``max`` shape."""
LIMITS = ("min", "opt", "max")


@dataclass(frozen=True, kw_only=True)
class EngineSidecar:
    """One built engine.

    Attributes:
        component: the graph it runs.
        library: ``tensorrt`` or ``tensorrt-rtx``.
        versions: of the library (under its name), its ONNX parser and this project.
        compute_capabilities: of the GPUs it is built for, such as ``8.9``.
        file: relative to the engines folder, as are all files here.
        graph: every file of the ONNX graph and its sha256; empty for an engine without a graph.
        precision: of the graph: ``fp32`` or ``fp16``.
        profiles: shapes it takes; none when it takes one shape only.
        options: what was asked of the library and done.
        not_available: what was asked and this library does not have, and why.
        audit: layers by kind and element type (:mod:`export.engine_audit`).
        seconds: that the build took.
        peak_memory_mib: the most the process held while building, None where it is not known.
        log: all that the library said.
    """

    component: str
    library: str
    versions: dict[str, str]
    compute_capabilities: list[str]
    file: str
    sha256: str
    bytes: int
    graph: dict[str, str]
    precision: str
    profiles: list[Profile]
    options: dict[str, Any]
    not_available: dict[str, str]
    audit: dict[str, Any]
    seconds: float
    peak_memory_mib: float | None
    log: str


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One engine in the manifest; ``sidecar`` is relative to the engines folder."""

    bytes: int
    sidecar: str
    sidecar_sha256: str


@dataclass(kw_only=True)
class LibraryBuild:
    """What one library built."""

    library_version: str
    compute_capabilities: list[str]
    engines: dict[str, EngineEntry] = field(default_factory=dict)


@dataclass(kw_only=True)
class EngineManifest:
    """All of the folder. ``not_built`` gives the reason for every library left out or failed."""

    builds: dict[str, LibraryBuild] = field(default_factory=dict)
    not_built: dict[str, str] = field(default_factory=dict)
    note: str = "engine bytes differ from build to build of the same graph"
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        files.write_json(folder / MANIFEST_FILE, asdict(self))


def read_engine_manifest(folder: Path) -> EngineManifest:
    """Manifest of an engines folder; raises :class:`ExportError` when missing or damaged."""
    path = folder / MANIFEST_FILE
    raw = read_json(path, ENGINE_HINT)
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise ExportError(f"{path}: format {found!r}, this version reads {FORMAT}; {ENGINE_HINT}")
    try:
        builds = {}
        for name, build in raw.pop("builds").items():
            engines = {n: EngineEntry(**e) for n, e in build.pop("engines").items()}
            builds[name] = LibraryBuild(**build, engines=engines)
        return EngineManifest(**raw, builds=builds)
    except (TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"{path}: not an engine manifest ({error}); {ENGINE_HINT}") from None


def read_sidecar(folder: Path, entry: EngineEntry) -> EngineSidecar:
    """What is said of one engine; it and the engine are compared with their hashes.

    Raises:
        ExportError: a file is missing, damaged or another than the manifest lists.
    """
    verify_files(folder, {entry.sidecar: entry.sidecar_sha256}, ENGINE_HINT)
    path = folder / entry.sidecar
    try:
        sidecar = EngineSidecar(**read_json(path, ENGINE_HINT))
    except TypeError as error:
        raise ExportError(f"{path}: not an engine's sidecar ({error}); {ENGINE_HINT}") from None
    verify_files(folder, {sidecar.file: sidecar.sha256}, ENGINE_HINT)
    return sidecar


def write_sidecar(folder: Path, sidecar: EngineSidecar) -> Path:
    """Write it beside the engine; returns its path."""
    path = (folder / sidecar.file).with_suffix(".json")
    files.write_json(path, asdict(sidecar))
    return path
