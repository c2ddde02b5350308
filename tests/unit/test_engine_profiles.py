"""Shapes of engines: from params.yaml, for each component, or around one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.engine_checks import fitting
from export.engine_profiles import around, profiles_of, shape_profile
from export.manifest import ExportError, read_manifest
from export.specs import COMPONENTS, DDIM_UPDATE, ONE_STEP, UNET_STEP, VAE_ENCODER, LatentGrid
from metricgold.config import ConfigError, ExportConfig, load_config
from metricgold.workspace import Workspace

GRID = LatentGrid(factor=4, channels=4)
WIDE = {"min": [8, 32], "opt": [8, 40], "max": [8, 48], "batch": [1, 2, 4]}
TALL = {"min": [32, 8], "opt": [40, 8], "max": [48, 8]}


def with_engines(config: ExportConfig, **engines: Any) -> ExportConfig:
    return ExportConfig.model_validate(config.model_dump() | {"engines": engines})


def test_profile_covers_every_orientation_at_the_engines_long_side() -> None:
    wanted = around((64, 96), multiple=16)
    assert shape_profile(VAE_ENCODER, wanted, GRID) == {
        "rgb": {"min": [1, 3, 32, 32], "opt": [1, 3, 64, 96], "max": [1, 3, 96, 96]}
    }
    latent = shape_profile(UNET_STEP, wanted, GRID)
    assert latent["rgb_latent"]["opt"] == [1, 4, 16, 24]
    assert latent["timestep"] == {"min": [1], "opt": [1], "max": [1]}
    update = shape_profile(DDIM_UPDATE, wanted, GRID)
    assert update["velocity"] == latent["rgb_latent"]
    assert update["coefficients"]["min"] == update["coefficients"]["max"] == [2, 1, 1, 1]


def test_a_component_may_have_profiles_of_its_own(
    exported: Workspace, export_config: ExportConfig
) -> None:
    graphs = read_manifest(exported.onnx)
    config = with_engines(export_config, profiles=[WIDE, TALL], components={"unet_step": [TALL]})
    found = {name: profiles_of(name, graphs, config) for name in (*COMPONENTS, DDIM_UPDATE.name)}
    assert [len(profiles) for profiles in found.values()] == [2, 1, 2, 1]
    assert found["vae_encoder"][0]["rgb"] == {
        "min": [1, 3, 8, 32],
        "opt": [2, 3, 8, 40],
        "max": [4, 3, 8, 48],
    }
    assert found["unet_step"][0]["fov"]["max"] == [1, 32]
    assert profiles_of(ONE_STEP.name, graphs, config) == []


def test_graphs_of_one_size_have_none(exported: Workspace, export_config: ExportConfig) -> None:
    graphs = read_manifest(exported.onnx)
    fixed = type(graphs)(**vars(graphs) | {"dynamic": False, "static_size": [16, 24]})
    for name in (*COMPONENTS, DDIM_UPDATE.name):
        assert profiles_of(name, fixed, export_config) == []


@pytest.mark.parametrize("component", ["vae_encoder", "unet_step"])
def test_a_size_the_networks_cannot_take_is_named(
    exported: Workspace, export_config: ExportConfig, component: str
) -> None:
    odd = {"min": [8, 8], "opt": [11, 16], "max": [16, 16]}
    config = with_engines(export_config, profiles=[odd], components={"unet_step": [odd]})
    key = {"vae_encoder": "profiles", "unet_step": "components.unet_step"}[component]
    told = f"params.yaml: export.engines.{key} has 11x16; both sides must be multiples of 2"
    with pytest.raises(ExportError, match=told):
        profiles_of(component, read_manifest(exported.onnx), config)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"opt": [4, 40]}, "height needs min <= opt <= max, got 8, 4, 8"),
        ({"max": [8, 36]}, "width needs min <= opt <= max, got 32, 40, 36"),
        ({"batch": [2, 1, 4]}, "batch needs min <= opt <= max, got 2, 1, 4"),
        ({"batch": [0, 1, 4]}, "greater than 0"),
        ({"depth": 3}, "Extra inputs are not permitted"),
    ],
)
def test_ranges_out_of_order_are_refused(
    export_config: ExportConfig, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        with_engines(export_config, profiles=[WIDE | change])


def test_a_component_nobody_has_is_refused(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    wrong = text.replace("engines: {profiles:", "engines: {components: {unet: []}, profiles:")
    assert wrong != text
    (tmp_path / "params.yaml").write_text(wrong, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"engines\.components\.unet"):
        load_config(tmp_path / "params.yaml", "smoke")


def test_the_first_profile_that_holds_all_inputs_is_taken() -> None:
    one = {"a": {"min": [1], "opt": [1], "max": [2]}, "b": {"min": [1], "opt": [4], "max": [8]}}
    two = {"a": {"min": [1], "opt": [1], "max": [9]}, "b": {"min": [1], "opt": [4], "max": [8]}}
    assert fitting([one, two], {"a": (2,), "b": (8,)}) == 0
    assert fitting([one, two], {"a": (3,), "b": (8,)}) == 1
    assert fitting([one, two], {"a": (3,), "b": (9,)}) is None
    assert fitting([one], {"a": (1, 1), "b": (1,)}) is None
