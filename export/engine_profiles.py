"""Which shapes an engine takes: profiles of every input from the sizes in ``params.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from export.engine_manifest import LIMITS, Profile
from export.manifest import ExportError, Manifest
from export.specs import COMPONENTS, DDIM_UPDATE, UNET_STEP, ComponentSpec, LatentGrid
from metricgold.config import EngineComponent, EngineProfileConfig, ExportConfig

assert set(COMPONENTS) == set(get_args(EngineComponent)), "specs.py and config.py disagree"


def profiles_of(name: str, graphs: Manifest, config: ExportConfig) -> list[Profile]:
    """What the engine of a graph takes; none where the graph is of one shape.

    Raises:
        ExportError: a size in ``params.yaml`` is none the networks can take.
    """
    if not graphs.dynamic or name not in (*COMPONENTS, DDIM_UPDATE.name):
        return []
    key, wanted = _wanted(name, config)
    if not wanted:
        key, wanted = "export.engine_size", [around(config.engine_size, graphs.size_multiple)]
    _check(key, wanted, graphs.size_multiple)
    spec = DDIM_UPDATE if name == DDIM_UPDATE.name else COMPONENTS[name]
    return [shape_profile(spec, one, graphs.grid) for one in wanted]


def around(engine_size: tuple[int, int], multiple: int) -> EngineProfileConfig:
    """The profile where none is given, around ``engine_size`` (height, width in pixels).

    Either side may go from half the short side to the whole long side, so any picture
    whose long side is processed at ``max(engine_size)`` fits unless it is very narrow.
    """
    low = max(multiple, min(engine_size) // 2 // multiple * multiple)
    high = max(engine_size)
    return EngineProfileConfig(min=(low, low), opt=engine_size, max=(high, high))


def shape_profile(spec: ComponentSpec, wanted: EngineProfileConfig, grid: LatentGrid) -> Profile:
    """Shapes of every input of ``spec``."""
    sizes = (wanted.min, wanted.opt, wanted.max)
    return {
        name: {
            limit: list(tensor.shape(batch, *size, grid))
            for limit, batch, size in zip(LIMITS, wanted.batch, sizes, strict=True)
        }
        for name, tensor in spec.inputs.items()
    }


def _wanted(name: str, config: ExportConfig) -> tuple[str, Sequence[EngineProfileConfig]]:
    """The key in ``params.yaml`` that says it, and what it says; the update follows the U-Net."""
    own = UNET_STEP.name if name == DDIM_UPDATE.name else name
    for component, profiles in config.engines.components.items():
        if component == own:
            return f"export.engines.components.{own}", profiles
    return "export.engines.profiles", config.engines.profiles


def _check(key: str, wanted: Sequence[EngineProfileConfig], multiple: int) -> None:
    for profile in wanted:
        for height, width in (profile.min, profile.opt, profile.max):
            if height % multiple or width % multiple:
                raise ExportError(
                    f"params.yaml: {key} has {height}x{width}; "
                    f"both sides must be multiples of {multiple}"
                )
