"""Options of a build, each used where the library has it and named where it does not.

What a library has is found by looking: at its names, at whether a value stays set, at what it
says. TensorRT 10, 11 and TensorRT-RTX differ in too many places for a table of versions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricgold.config import EnginesConfig


@dataclass
class AppliedOptions:
    """What was asked and done, by name; what was asked in vain, and why."""

    used: dict[str, Any] = field(default_factory=dict)
    not_available: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, value: Any, reason: str | None) -> None:
        """``reason``: why it could not be had; None if it could."""
        if reason is None:
            self.used[name] = value
        else:
            self.not_available[name] = reason

    def described(self) -> list[str]:
        """A line for every option that could not be had."""
        return [f"{name} is not used: {why}" for name, why in self.not_available.items()]


def network_flags(trt: Any) -> int:
    """Strong typing: precision is what the graph says. Newer versions know nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


class BuildOptions:
    """The options of one library, looked at once and then set for every engine.

    Args:
        make_builder: a fresh builder that does not write to the terminal.
        capabilities: to build for ahead of time; empty: for the GPU at hand.
        cache: file of the timing cache.
    """

    def __init__(
        self,
        trt: Any,
        make_builder: Callable[[], Any],
        wanted: EnginesConfig,
        capabilities: Sequence[str],
        cache: Path,
    ) -> None:
        self._trt, self._wanted, self._capabilities = trt, wanted, capabilities
        self._cache_file = cache
        self._cache: Any = None
        self._make_builder = make_builder
        self._flags = {
            "weight_streaming": wanted.weight_streaming,
            "version_compatible": wanted.version_compatible,
        }
        self._refused = {
            name: self._refusal(name.upper()) for name, asked in self._flags.items() if asked
        }

    def apply(self, config: Any) -> AppliedOptions:
        """Set everything in an ``IBuilderConfig``; says what was done."""
        applied = AppliedOptions(used={"strongly_typed": True})
        note, wanted, trt = applied.note, self._wanted, self._trt
        config.set_memory_pool_limit(
            trt.MemoryPoolType.WORKSPACE, int(wanted.workspace_gib * 2**30)
        )
        note("workspace_gib", wanted.workspace_gib, None)
        if self._capabilities:
            self.set_capabilities(config)
        if wanted.optimization_level is not None:
            level = wanted.optimization_level
            reason = _set(config, "builder_optimization_level", level)
            note("optimization_level", level, reason)
        if wanted.hardware_compatibility != "none":
            level_name = wanted.hardware_compatibility
            reason = self._set_hardware(config, level_name.upper())
            note("hardware_compatibility", level_name, reason)
        for name, refusal in self._refused.items():
            if refusal is None:
                config.set_flag(getattr(trt.BuilderFlag, name.upper()))
            note(name, True, refusal)
        # TensorRT-RTX captures no graph of an engine that allocates memory while it runs.
        own_memory = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if own_memory is not None:
            note("require_user_allocation", True, _own_memory(config, own_memory, applied))
        verbosity = trt.ProfilingVerbosity.DETAILED
        note("profiling_verbosity", "detailed", _set(config, "profiling_verbosity", verbosity))
        if wanted.timing_cache:
            note("timing_cache", True, self._set_timing_cache(config))
        return applied

    def keep_timings(self, config: Any) -> None:
        """Write the timing cache of a finished build, if it has one."""
        if self._cache is None:
            return
        content = config.get_timing_cache().serialize()
        temporary = self._cache_file.with_name(self._cache_file.name + ".part")
        temporary.write_bytes(content)
        os.replace(temporary, self._cache_file)

    def set_capabilities(self, config: Any) -> None:
        """Build for these GPUs without asking for one."""
        config.num_compute_capabilities = len(self._capabilities)
        for index, capability in enumerate(self._capabilities):
            member = getattr(self._trt.ComputeCapability, "SM" + capability.replace(".", ""))
            config.set_compute_capability(member, index)

    def _set_hardware(self, config: Any, name: str) -> str | None:
        levels = getattr(self._trt, "HardwareCompatibilityLevel", None)
        if not hasattr(levels, name):
            return f"this version has no hardware compatibility level {name}"
        return _set(config, "hardware_compatibility_level", getattr(levels, name))

    def _set_timing_cache(self, config: Any) -> str | None:
        if not hasattr(config, "create_timing_cache"):
            return "this version has no timing cache"
        known = self._cache_file.read_bytes() if self._cache_file.is_file() else b""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            # One of another GPU or version is not taken; a new one is begun in its place.
            for content in dict.fromkeys((known, b"")):
                cache = config.create_timing_cache(content)
                if cache is not None and config.set_timing_cache(cache, False):
                    self._cache = cache  # the library needs it until the engine is built
                    break
            else:
                return "the library takes no timing cache"
        for warning in said:
            if issubclass(warning.category, DeprecationWarning):
                self._cache = None
                return f"the library says: {warning.message}"
        return None

    def _refusal(self, flag: str) -> str | None:
        """Why the library cannot build with a flag; None when it can, tried on one layer."""
        trt = self._trt
        member = getattr(trt.BuilderFlag, flag, None)
        if member is None:
            return f"this version has no flag {flag}"
        builder = self._make_builder()
        network = builder.create_network(network_flags(trt))
        layer = network.add_identity(network.add_input("x", trt.float32, (1,)))
        network.mark_output(layer.get_output(0))
        config = builder.create_builder_config()
        if self._capabilities:
            self.set_capabilities(config)
        config.set_flag(member)
        if builder.build_serialized_network(network, config) is None:
            return f"nothing builds with {flag} here (a part of the library may be missing)"
        return None


def _own_memory(config: Any, flag: Any, applied: AppliedOptions) -> str | None:
    """Set the flag where the others allow it; why not, or None."""
    if "weight_streaming" in applied.used:
        return "it does not go with weight streaming; no CUDA graph is captured"
    config.set_flag(flag)
    return None


def _set(config: Any, attribute: str, value: Any) -> str | None:
    """Set an attribute and see whether it stays; why not, or None."""
    if not hasattr(config, attribute):
        return f"this version has no {attribute}"
    setattr(config, attribute, value)
    if getattr(config, attribute) != value:
        return f"this version does not take {attribute}"
    return None
