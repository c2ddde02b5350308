"""``manifest.json`` of the engines folder: what was built from which graph, and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from export.manifest import MANIFEST_FILE, ExportError, Manifest, read_json
from export.specs import COMPONENTS, ComponentSpec, LatentGrid
from metricgold import files

ENGINE_HINT = "run 'dvc repro export_trt' or 'python -m export.build_engine'"

Profile = dict[str, dict[str, list[int]]]
"""Input name to ``min``, ``opt`` and ``max`` shape; empty for a static graph."""


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """One built engine; ``file`` is relative to the engines folder."""

    file: str
    sha256: str
    bytes: int
    seconds: float
    onnx_sha256: str
    profile: Profile


@dataclass(kw_only=True)
class LibraryBuild:
    """What one library built."""

    library_version: str
    compute_capabilities: list[str]
    engines: dict[str, EngineFile] = field(default_factory=dict)


@dataclass(kw_only=True)
class EngineManifest:
    """All of the folder. ``not_built`` gives the reason for every library left out or failed."""

    builds: dict[str, LibraryBuild] = field(default_factory=dict)
    not_built: dict[str, str] = field(default_factory=dict)
    note: str = "engine bytes differ from build to build of the same graph"

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        files.write_json(folder / MANIFEST_FILE, asdict(self))


def read_engine_manifest(folder: Path) -> EngineManifest:
    """Manifest of an engines folder; raises :class:`ExportError` when missing or damaged."""
    path = folder / MANIFEST_FILE
    raw = read_json(path, ENGINE_HINT)
    try:
        builds = {}
        for name, build in raw["builds"].items():
            engines = {n: EngineFile(**e) for n, e in build.pop("engines").items()}
            builds[name] = LibraryBuild(**build, engines=engines)
        return EngineManifest(builds=builds, not_built=dict(raw["not_built"]), note=raw["note"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"{path}: not an engine manifest ({error}); {ENGINE_HINT}") from None


def profile_of(name: str, graphs: Manifest, engine_size: tuple[int, int]) -> Profile:
    """What an engine of a graph accepts: one shape, where the graph is of fixed shape."""
    if not graphs.dynamic or name not in COMPONENTS:
        return {}
    return shape_profile(COMPONENTS[name], engine_size, graphs.size_multiple, graphs.grid)


def shape_profile(
    spec: ComponentSpec, engine_size: tuple[int, int], multiple: int, grid: LatentGrid
) -> Profile:
    """Shapes an engine accepts around ``engine_size`` (height, width in pixels).

    Either side may go from half the short side to the whole long side, so any picture
    whose long side is processed at ``max(engine_size)`` fits unless it is very narrow.
    """
    low = max(multiple, min(engine_size) // 2 // multiple * multiple)
    high = max(engine_size)
    sizes: Mapping[str, tuple[int, int]] = {
        "min": (low, low),
        "opt": engine_size,
        "max": (high, high),
    }
    return {
        name: {key: list(tensor.shape(1, *size, grid)) for key, size in sizes.items()}
        for name, tensor in spec.inputs.items()
    }
