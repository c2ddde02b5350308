"""Options of a build on libraries that have them, have not, or have them under other names."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.engine_options import AppliedOptions, BuildOptions, network_flags
from metricgold.config import EnginesConfig

EVERYTHING = EnginesConfig(
    workspace_gib=2,
    optimization_level=4,
    version_compatible=True,
    hardware_compatibility="ampere_plus",
    weight_streaming=True,
)
FLAGS = ("WEIGHT_STREAMING", "VERSION_COMPATIBLE")


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class Config:
    """A TensorRT 10 or 11 builder configuration; a timing cache is of one GPU."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = "NONE"
        self.profiling_verbosity = "LAYER_NAMES_ONLY"
        self.cache: Cache | None = None

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pool = pool, size

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content or b"new")

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content.startswith(b"other GPU"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache


class DeprecatedCache(Config):
    def create_timing_cache(self, content: bytes) -> Cache:
        warnings.warn("timing caches are no-ops", DeprecationWarning, stacklevel=2)
        return super().create_timing_cache(content)


class Stubborn(Config):
    """Takes a level and forgets it, as TensorRT-RTX does."""

    @property
    def hardware_compatibility_level(self) -> str:
        return "NONE"

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, value: str) -> None: ...


def library(flags: tuple[str, ...] = FLAGS, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        BuilderFlag=SimpleNamespace(**{name: name for name in flags}),
        ProfilingVerbosity=SimpleNamespace(DETAILED="DETAILED"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS"),
        NetworkDefinitionCreationFlag=SimpleNamespace(),
        float32="float32",
        **more,
    )


class Builder:
    """Builds with any flag but those in ``refused``."""

    refused: tuple[str, ...] = ()

    def create_network(self, flags: int) -> Any:
        layer = SimpleNamespace(get_output=lambda index: "y")
        return SimpleNamespace(
            add_input=lambda *a: "x", add_identity=lambda x: layer, mark_output=lambda y: None
        )

    def create_builder_config(self) -> Config:
        return Config()

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        return None if set(config.flags) & set(self.refused) else b"engine"


def options(
    tmp_path: Path,
    wanted: EnginesConfig = EVERYTHING,
    trt: Any = None,
    builder: type[Builder] = Builder,
) -> BuildOptions:
    return BuildOptions(trt or library(), builder, wanted, (), tmp_path / "engines.timing")


def test_everything_is_set_where_it_is_there(tmp_path: Path) -> None:
    config = Config()
    applied = options(tmp_path).apply(config)
    assert applied.not_available == {}
    assert applied.used == {
        "strongly_typed": True,
        "workspace_gib": 2.0,
        "optimization_level": 4,
        "hardware_compatibility": "ampere_plus",
        "weight_streaming": True,
        "version_compatible": True,
        "profiling_verbosity": "detailed",
        "timing_cache": True,
    }
    assert config.pool == ("WORKSPACE", 2 * 2**30)
    assert config.builder_optimization_level == 4
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    assert config.profiling_verbosity == "DETAILED"
    assert set(config.flags) == set(FLAGS)
    assert config.cache is not None


def test_nothing_that_was_not_asked_for_is_set(tmp_path: Path) -> None:
    config = Config()
    applied = options(tmp_path, EnginesConfig(timing_cache=False)).apply(config)
    assert set(applied.used) == {"strongly_typed", "workspace_gib", "profiling_verbosity"}
    assert (config.flags, config.cache) == ([], None)
    assert config.builder_optimization_level == 3


def test_what_a_library_lacks_is_named(tmp_path: Path) -> None:
    class Refuses(Builder):
        refused = ("VERSION_COMPATIBLE",)

    trt = library(flags=("VERSION_COMPATIBLE",))
    config = Stubborn()
    del config.builder_optimization_level
    applied = options(tmp_path, trt=trt, builder=Refuses).apply(config)
    assert config.flags == []
    assert set(applied.described()) == {
        "optimization_level is not used: this version has no builder_optimization_level",
        "hardware_compatibility is not used: this version does not take "
        "hardware_compatibility_level",
        "weight_streaming is not used: this version has no flag WEIGHT_STREAMING",
        "version_compatible is not used: nothing builds with VERSION_COMPATIBLE here (a part of "
        "the library may be missing)",
    }


def test_memory_of_ones_own_gives_way_to_weight_streaming(tmp_path: Path) -> None:
    trt = library(flags=(*FLAGS, "REQUIRE_USER_ALLOCATION"))
    config = Config()
    applied = options(tmp_path, trt=trt).apply(config)
    assert "REQUIRE_USER_ALLOCATION" not in config.flags
    assert "no CUDA graph is captured" in applied.not_available["require_user_allocation"]
    config = Config()
    assert options(tmp_path, EnginesConfig(), trt).apply(config).used["require_user_allocation"]
    assert config.flags == ["REQUIRE_USER_ALLOCATION"]


def test_a_timing_cache_is_kept_and_used_again(tmp_path: Path) -> None:
    file = tmp_path / "engines.timing"
    for content in (b"new+", b"new++"):
        config = Config()
        opened = options(tmp_path)
        opened.apply(config)
        opened.keep_timings(config)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_timing_cache_of_another_gpu_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "engines.timing").write_bytes(b"other GPU")
    config, opened = Config(), options(tmp_path)
    assert "timing_cache" in opened.apply(config).used
    opened.keep_timings(config)
    assert (tmp_path / "engines.timing").read_bytes() == b"new+"


def test_a_timing_cache_that_does_nothing_is_not_kept(tmp_path: Path) -> None:
    config, opened = DeprecatedCache(), options(tmp_path)
    applied = opened.apply(config)
    opened.keep_timings(config)
    assert applied.not_available == {"timing_cache": "the library says: timing caches are no-ops"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flag", "expected"), [({"STRONGLY_TYPED": 1}, 2), ({}, 0)])
def test_strong_typing_is_a_flag_or_all_there_is(flag: dict[str, int], expected: int) -> None:
    trt = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(**flag))
    assert network_flags(trt) == expected


def test_only_what_could_not_be_had_is_described() -> None:
    applied = AppliedOptions()
    applied.note("one", 1, None)
    applied.note("two", 2, "of age")
    assert applied.described() == ["two is not used: of age"]
