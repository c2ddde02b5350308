"""Command lines for NVIDIA's tools: the engines' own profiles, names and files."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from export import build_engine
from export.engine_manifest import profile_of
from export.manifest import read_manifest
from export.specs import GRAPHS, UNET_STEP
from export.trtexec import command_lines
from metricgold.config import load_config
from metricgold.workspace import Workspace

SIZE = (16, 24)


def options(line: str) -> dict[str, str]:
    """``--name=value`` of a command line."""
    words = [w.partition("=") for w in shlex.split(line) if "=" in w]
    return {name: value for name, _, value in words}


def test_trtexec_gets_the_profiles_of_the_engines(exported: Workspace) -> None:
    graphs = read_manifest(exported.onnx)
    lines = command_lines(exported.onnx, Path("engines"), graphs, SIZE)
    found = {Path(options(x)["--onnx"]).stem: options(x) for x in lines if x.startswith("trtexec")}
    assert list(found) == list(GRAPHS)
    unet = found[UNET_STEP.name]
    assert Path(unet["--onnx"]).is_file()
    assert unet["--saveEngine"] == "engines/trtexec/unet_step.engine"
    profile = profile_of(UNET_STEP.name, graphs, SIZE)
    for limit in ("min", "opt", "max"):
        given = dict(part.split(":") for part in unet[f"--{limit}Shapes"].split(","))
        shapes = {name: [int(n) for n in shape.split("x")] for name, shape in given.items()}
        assert shapes == {name: limits[limit] for name, limits in profile.items()}
    assert "--minShapes" not in found["one_step"]  # of one shape


def test_polygraphy_compares_with_onnx_runtime(exported: Workspace) -> None:
    lines = command_lines(exported.onnx, Path("engines"), read_manifest(exported.onnx), SIZE)
    line = next(x for x in lines if x.startswith("polygraphy") and "unet_step" in x)
    words = shlex.split(line)
    assert words[:2] == ["polygraphy", "run"]
    assert {"--trt", "--onnxrt", "--strongly-typed"} <= set(words)
    assert words[words.index("--rtol") + 1] == "0.0001"
    start = words.index("--trt-opt-shapes")
    assert "rgb_latent:[1,4,8,12]" in words[start : start + 5]
    assert "timestep:[1]" in words[start : start + 5]


def test_the_command_line_prints_them(
    exported: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines"
    assert build_engine.main(["--onnx", str(exported.onnx), "--out", str(out), "--commands"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * len(GRAPHS)
    assert not out.exists()
    size = load_config().export.engine_size
    assert printed == command_lines(exported.onnx, out, read_manifest(exported.onnx), size)
