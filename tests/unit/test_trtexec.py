"""Command lines for NVIDIA's tools: the engines' own profiles, names and files."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from export import build_engine
from export.engine_manifest import LIMITS
from export.engine_profiles import profiles_of
from export.manifest import read_manifest
from export.specs import GRAPHS, UNET_STEP
from export.trtexec import command_lines
from metricgold.config import ExportConfig, load_config
from metricgold.workspace import Workspace


def options(line: str) -> dict[str, str]:
    """``--name=value`` of a command line."""
    words = [w.partition("=") for w in shlex.split(line) if "=" in w]
    return {name: value for name, _, value in words}


def test_trtexec_gets_the_profiles_of_the_engines(
    exported: Workspace, export_config: ExportConfig
) -> None:
    graphs = read_manifest(exported.onnx)
    lines = command_lines(exported.onnx, Path("engines"), graphs, export_config)
    found = {Path(options(x)["--onnx"]).stem: options(x) for x in lines if x.startswith("trtexec")}
    assert list(found) == list(GRAPHS)
    unet = found[UNET_STEP.name]
    assert Path(unet["--onnx"]).is_file()
    assert unet["--saveEngine"] == "engines/trtexec/unet_step.engine"
    (profile,) = profiles_of(UNET_STEP.name, graphs, export_config)
    for limit in LIMITS:
        given = dict(part.split(":") for part in unet[f"--{limit}Shapes"].split(","))
        shapes = {name: [int(n) for n in shape.split("x")] for name, shape in given.items()}
        assert shapes == {name: limits[limit] for name, limits in profile.items()}
    assert "--minShapes" not in found["one_step"]  # of one shape


def test_polygraphy_compares_with_onnx_runtime(
    exported: Workspace, export_config: ExportConfig
) -> None:
    graphs = read_manifest(exported.onnx)
    lines = command_lines(exported.onnx, Path("engines"), graphs, export_config)
    line = next(x for x in lines if x.startswith("polygraphy") and "unet_step" in x)
    words = shlex.split(line)
    assert words[:2] == ["polygraphy", "run"]
    assert {"--trt", "--onnxrt", "--strongly-typed"} <= set(words)
    assert words[words.index("--rtol") + 1] == "0.0001"
    start = words.index("--trt-opt-shapes")
    assert "rgb_latent:[1,4,8,12]" in words[start : start + 5]
    assert "timestep:[1]" in words[start : start + 5]


def test_both_get_every_profile_and_option(
    exported: Workspace, export_config: ExportConfig
) -> None:
    asked = {
        "profiles": [
            {"min": [8, 8], "opt": [16, 24], "max": [24, 24], "batch": [1, 1, 2]},
            {"min": [8, 32], "opt": [8, 40], "max": [8, 48]},
        ],
        "workspace_gib": 2.5,
        "optimization_level": 4,
        "weight_streaming": True,
        "version_compatible": True,
        "hardware_compatibility": "same_compute_capability",
    }
    config = ExportConfig.model_validate(export_config.model_dump() | {"engines": asked})
    lines = command_lines(exported.onnx, Path("engines"), read_manifest(exported.onnx), config)
    first = shlex.split(lines[0])
    assert first[0] == "trtexec"
    at = [first.index(f"--profile={i}") for i in range(2)]
    assert first[at[0] + 1 : at[1]] == [
        "--minShapes=rgb:1x3x8x8",
        "--optShapes=rgb:1x3x16x24",
        "--maxShapes=rgb:2x3x24x24",
    ]
    assert first[at[1] + 3] == "--maxShapes=rgb:1x3x8x48"
    assert {
        "--memPoolSize=workspace:2560M",
        "--builderOptimizationLevel=4",
        "--timingCacheFile=engines/trtexec/timing.cache",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--allowWeightStreaming",
    } <= set(first)
    second = shlex.split(lines[1])
    assert second[0] == "polygraphy"
    shapes = [second[i + 1] for i, word in enumerate(second) if word == "--trt-max-shapes"]
    assert shapes == ["rgb:[2,3,24,24]", "rgb:[1,3,8,48]"]
    assert {"--weight-streaming", "--version-compatible", "workspace:2560M"} <= set(second)
    assert second[second.index("--hardware-compatibility-level") + 1] == "same_compute_capability"


def test_the_command_line_prints_them(
    exported: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines"
    assert build_engine.main(["--onnx", str(exported.onnx), "--out", str(out), "--commands"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * len(GRAPHS)
    assert not out.exists()
    config = load_config().export
    assert printed == command_lines(exported.onnx, out, read_manifest(exported.onnx), config)
