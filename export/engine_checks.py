"""Whether engines on disk may be run here: refused by name before any of them is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.engine_manifest import (
    ENGINE_HINT,
    EngineSidecar,
    Profile,
    read_engine_manifest,
    read_sidecar,
)
from export.manifest import BackendUnavailableError, ExportError, GraphFile, ShapeError
from export.specs import DDIM_UPDATE, GRAPHS, ComponentSpec
from export.trt_library import TrtLibrary


def find_engines(
    library: TrtLibrary,
    engines: Path,
    graphs: Mapping[str, GraphFile],
    version: str,
    capability: str,
) -> dict[str, EngineSidecar]:
    """Engines of ``library`` for ``graphs`` in a folder, checked against library and GPU.

    With several graphs the engine that takes a step from one latent to the next comes along.

    Args:
        version: of the library that will run the engines.
        capability: compute capability of the GPU, such as ``8.9``.

    Raises:
        BackendUnavailableError: nothing was built, or for another library version or GPU.
        ExportError: an engine or its sidecar is missing, cut short, altered, exchanged, or
            belongs to other graphs.
    """
    wanted = [*graphs, DDIM_UPDATE.name] if len(graphs) > 1 else list(graphs)
    found = built_engines(library, engines, graphs, wanted)
    for sidecar in found.values():
        _check_version(library, engines, sidecar, version)
        _check_capability(library, engines, sidecar, capability)
    return found


def built_engines(
    library: TrtLibrary, engines: Path, graphs: Mapping[str, GraphFile], wanted: Iterable[str]
) -> dict[str, EngineSidecar]:
    """The ``wanted`` engines of ``library``, whatever runs them: their files and their graphs.

    Raises:
        BackendUnavailableError: nothing was built.
        ExportError: an engine or its sidecar is missing, cut short, altered, exchanged, or
            belongs to other graphs.
    """
    manifest = read_engine_manifest(engines)
    build = manifest.builds.get(library.name)
    if build is None:
        reason = manifest.not_built.get(library.name, "it was not asked for")
        raise BackendUnavailableError(
            f"{library.name}: no engines in {engines} ({reason}); {ENGINE_HINT}"
        )
    found = {}
    for component in wanted:
        if component not in build.engines:
            raise ExportError(f"{library.name}: no engine of {component}; {ENGINE_HINT}")
        found[component] = sidecar = read_sidecar(engines, build.engines[component])
        if (sidecar.library, sidecar.component) != (library.name, component):
            raise ExportError(
                f"{engines / sidecar.file}: is the {sidecar.library} engine of "
                f"{sidecar.component}, not the {library.name} engine of {component}; {ENGINE_HINT}"
            )
        if component in graphs and sidecar.graph != graphs[component].files:
            raise ExportError(
                f"{library.name}: the engine of {component} was built from another "
                f"{graphs[component].onnx_file}; {ENGINE_HINT}"
            )
    return found


def fitting(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Index of the first profile whose ranges hold all of ``shapes``; None if there is none."""
    for index, profile in enumerate(profiles):
        if all(_inside(shapes[name], limits) for name, limits in profile.items()):
            return index
    return None


def _inside(shape: Sequence[int], limits: Mapping[str, Sequence[int]]) -> bool:
    if len(shape) != len(limits["min"]):
        return False
    sides = zip(limits["min"], shape, limits["max"], strict=True)
    return all(low <= n <= high for low, n, high in sides)


def check_profile(component: str, sidecar: EngineSidecar, shapes: Mapping[str, Any]) -> int | None:
    """The profile that takes input shapes; None for an engine without profiles.

    Raises:
        ShapeError: there is none; names the component, a shape and the accepted ranges.
    """
    if not sidecar.profiles:
        return None
    index = fitting(sidecar.profiles, shapes)
    if index is not None:
        return index
    name = next(iter(sidecar.profiles[0]))
    ranges = " or ".join(f"{p[name]['min']} to {p[name]['max']}" for p in sidecar.profiles)
    raise ShapeError(
        f"{component}: {name} of shape {list(shapes[name])} lies outside the engine's range "
        f"{ranges}; choose another --processing-resolution or --backend, or "
        "rebuild with another export.engine_size or export.engines.profiles"
    )


def check_tensors(component: str, engine: Any, spec: ComponentSpec) -> None:
    """Refuse an engine whose inputs and output are not those of its graph.

    Raises:
        ExportError: names the component and both sets.
    """
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    expected = {*spec.inputs, spec.output_name}
    if names != expected:
        raise ExportError(
            f"{component}: the engine has the tensors {_listed(names)}, expected are "
            f"{_listed(expected)}; {ENGINE_HINT}"
        )


def largest_batch(sidecars: Iterable[EngineSidecar]) -> int:
    """How many pictures all engines take at once, at any size; one, where they are of one shape."""
    return min(_largest_batch(sidecar) for sidecar in sidecars)


def _largest_batch(sidecar: EngineSidecar) -> int:
    spec = GRAPHS.get(sidecar.component, DDIM_UPDATE)
    batched = [name for name, tensor in spec.inputs.items() if tensor.axes[0] == "batch"]
    most = (profile[name]["max"][0] for profile in sidecar.profiles for name in batched)
    return min(most, default=1)


def _check_version(
    library: TrtLibrary, engines: Path, sidecar: EngineSidecar, version: str
) -> None:
    built = sidecar.versions[library.name]
    if built == version:
        return
    if "version_compatible" in sidecar.options and _numbers(built) <= _numbers(version):
        return
    raise BackendUnavailableError(
        f"{library.name}: engines in {engines} were built with version "
        f"{built}, installed is {version}; {ENGINE_HINT}"
    )


def _check_capability(
    library: TrtLibrary, engines: Path, sidecar: EngineSidecar, capability: str
) -> None:
    if capability in sidecar.compute_capabilities:
        return
    compatible = sidecar.options.get("hardware_compatibility")
    if compatible == "ampere_plus" and _numbers(capability) >= (8, 0):
        return
    raise BackendUnavailableError(
        f"{library.name}: engines in {engines} are for compute capability "
        f"{', '.join(sidecar.compute_capabilities)}, this GPU has {capability}; {ENGINE_HINT}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _listed(names: Iterable[str]) -> Sequence[str]:
    return sorted(names)
