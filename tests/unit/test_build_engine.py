"""Engines really built by TensorRT-RTX where it is installed, without a GPU; what is recorded."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export import build_engine, driver
from export.build_engine import EngineBuildError, build_engines
from export.engine_manifest import (
    EngineManifest,
    EngineSidecar,
    read_engine_manifest,
    read_sidecar,
)
from export.manifest import ExportError, read_manifest, sha256_of
from export.onnx_export import export_checkpoint
from export.specs import COMPONENTS, DDIM_UPDATE, GRAPHS, ONE_STEP, UNET_STEP
from export.trt_library import TENSORRT_RTX
from metricgold.config import ExportConfig
from metricgold.workspace import Workspace

NO_DRIVER = "no NVIDIA driver on this machine"
RTX = ["tensorrt-rtx"]


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "load_driver", lambda: NO_DRIVER)


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra 'rtx') is not installed")


@pytest.fixture(scope="module")
def rtx_engines(
    rtx: Any,
    exported: Workspace,
    tmp_path_factory: pytest.TempPathFactory,
    export_config: ExportConfig,
) -> Path:
    out = tmp_path_factory.mktemp("engines") / "engines"
    build_engines(exported.onnx, out, export_config, RTX)
    return out


def sidecars(engines: Path) -> dict[str, EngineSidecar]:
    build = read_engine_manifest(engines).builds["tensorrt-rtx"]
    return {name: read_sidecar(engines, entry) for name, entry in build.engines.items()}


def test_rtx_engines_are_built_without_a_gpu(
    rtx: Any, exported: Workspace, rtx_engines: Path
) -> None:
    build = read_engine_manifest(rtx_engines).builds["tensorrt-rtx"]
    graphs = read_manifest(exported.onnx)
    assert build.library_version == rtx.__version__
    assert build.compute_capabilities == ["8.0", "8.6", "8.9", "12.0", "12.1"]
    assert list(build.engines) == [*GRAPHS, DDIM_UPDATE.name]
    for name, engine in sidecars(rtx_engines).items():
        path = rtx_engines / engine.file
        assert sha256_of(path) == engine.sha256
        assert path.stat().st_size == engine.bytes == build.engines[name].bytes > 10_000
        assert engine.versions["tensorrt-rtx"] == rtx.__version__
        assert engine.compute_capabilities == build.compute_capabilities
        if name == DDIM_UPDATE.name:
            assert engine.graph == {}
        else:
            assert engine.graph == graphs.graphs()[name].files
        fixed = name == ONE_STEP.name
        spec = GRAPHS.get(name, DDIM_UPDATE)
        assert [set(p) for p in engine.profiles] == ([] if fixed else [set(spec.inputs)])
    assert list(rtx_engines.parent.glob("*.part")) == []


def test_a_sidecar_tells_options_time_memory_and_precision(rtx_engines: Path) -> None:
    for name, engine in sidecars(rtx_engines).items():
        assert engine.options["strongly_typed"] is True
        assert engine.options["workspace_gib"] == 4.0
        assert "no-ops in TensorRT-RTX" in engine.not_available["timing_cache"]
        assert 0 < engine.seconds < 300
        assert engine.peak_memory_mib is None or engine.peak_memory_mib > 10
        if name in GRAPHS:
            assert engine.audit["layers"]["convolution"].keys() == {"FLOAT"}
    assert not list(rtx_engines.parent.glob("*.timing")), "a cache nobody would read"


def test_a_log_lies_beside_each_engine(rtx_engines: Path) -> None:
    for engine in sidecars(rtx_engines).values():
        log = (rtx_engines / engine.log).read_text("utf-8")
        assert "metricgold: timing_cache is not used: the library says" in log
        assert "verbose: " in log


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_component_builds_in_its_precision(
    rtx: Any,
    exported: Workspace,
    tmp_path: Path,
    export_config: ExportConfig,
    rtx_engines: Path,
    precision: str,
    dynamic: bool,
) -> None:
    engines = rtx_engines
    if (precision, dynamic) != ("fp32", True):  # what the others use
        asked = {"precision": precision, "dynamic": dynamic, "fused": not dynamic}
        config = export_config.model_copy(update=asked)
        export_checkpoint(exported.model, tmp_path / "onnx", config)
        engines = tmp_path / "engines"
        build_engines(tmp_path / "onnx", engines, config, RTX)
    wanted = {"fp32": "FLOAT", "fp16": "HALF"}[precision]
    found = sidecars(engines)
    assert set(found) >= {*COMPONENTS, DDIM_UPDATE.name}
    for name, engine in found.items():
        if name == DDIM_UPDATE.name:
            continue
        layers = engine.audit["layers"]
        assert engine.precision == precision
        assert bool(engine.profiles) == (dynamic and name != ONE_STEP.name)
        for kind in ("convolution", "matrix_multiply", "attention_input"):
            assert layers.get(kind, {wanted: 0}).keys() == {wanted}
        if name in ("depth_decoder", ONE_STEP.name):
            assert layers["activation.clip"] == layers["unary.exp"] == {"FLOAT": 1}
            assert layers["reduce.avg"].keys() == {"FLOAT"}


def test_profiles_and_options_of_params_are_built(
    rtx: Any, exported: Workspace, tmp_path: Path, export_config: ExportConfig
) -> None:
    asked = {
        "profiles": [
            {"min": [8, 8], "opt": [16, 24], "max": [24, 24], "batch": [1, 1, 2]},
            {"min": [8, 32], "opt": [8, 40], "max": [8, 48]},
        ],
        "components": {"vae_encoder": [{"min": [8, 8], "opt": [16, 16], "max": [16, 24]}]},
        "optimization_level": 1,
        "workspace_gib": 1,
        "weight_streaming": True,
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
    }
    config = ExportConfig.model_validate(export_config.model_dump() | {"engines": asked})
    build_engines(exported.onnx, tmp_path / "engines", config, RTX)
    found = sidecars(tmp_path / "engines")
    assert [len(found[n].profiles) for n in (*COMPONENTS, DDIM_UPDATE.name)] == [1, 2, 2, 2]
    assert found["unet_step"].profiles[0]["timestep"]["max"] == [2]
    options = {"optimization_level": 1, "workspace_gib": 1.0, "weight_streaming": True}
    for engine in found.values():
        assert engine.options.items() >= options.items()
        assert set(engine.not_available) == {
            "timing_cache",
            "version_compatible",  # a part of the library that this wheel does not have
            "hardware_compatibility",
            "require_user_allocation",  # goes without weight streaming only
        }


def test_what_is_not_built_is_recorded(
    exported: Workspace,
    tmp_path: Path,
    no_driver: None,
    monkeypatch: pytest.MonkeyPatch,
    export_config: ExportConfig,
) -> None:
    absent = dataclasses.replace(TENSORRT_RTX, module="a_library_nobody_has")
    libraries = {**build_engine.LIBRARIES, "tensorrt-rtx": absent}
    monkeypatch.setattr(build_engine, "LIBRARIES", libraries)
    manifest = build_engines(exported.onnx, tmp_path / "engines", export_config)
    assert manifest.builds == {}
    written = json.loads((tmp_path / "engines" / "manifest.json").read_text())
    assert NO_DRIVER in written["not_built"]["tensorrt"]
    assert "a_library_nobody_has" in written["not_built"]["tensorrt-rtx"]
    assert "install the 'rtx' extra" in written["not_built"]["tensorrt-rtx"]


def test_a_graph_that_does_not_build_is_recorded_and_raised(
    rtx: Any, exported: Workspace, tmp_path: Path, export_config: ExportConfig
) -> None:
    onnx = tmp_path / "onnx"
    shutil.copytree(exported.onnx, onnx)
    graph = onnx / UNET_STEP.file
    graph.write_bytes(graph.read_bytes()[:1000])
    manifest = read_manifest(onnx)
    manifest.components[UNET_STEP.name].files[graph.name] = sha256_of(graph)
    manifest.write(onnx)
    engines = tmp_path / "engines"
    with pytest.raises(EngineBuildError, match=r"tensorrt-rtx: unet_step\.onnx does not build"):
        build_engines(onnx, engines, export_config, RTX)
    written = json.loads((engines / "manifest.json").read_text())
    assert "unet_step.onnx does not build" in written["not_built"]["tensorrt-rtx"]
    assert written["builds"] == {}
    assert "error: " in (engines / "tensorrt-rtx" / "unet_step.log").read_text("utf-8")


def test_stale_graphs_are_not_built(
    exported: Workspace, tmp_path: Path, export_config: ExportConfig
) -> None:
    onnx = tmp_path / "onnx"
    shutil.copytree(exported.onnx, onnx)
    (onnx / UNET_STEP.file).write_bytes(b"something else")
    with pytest.raises(ExportError, match=r"unet_step\.onnx: differs"):
        build_engines(onnx, tmp_path / "engines", export_config)


def test_command_line_fails_for_a_library_asked_for_in_vain(
    exported: Workspace, tmp_path: Path, no_driver: None
) -> None:
    arguments = ["--onnx", str(exported.onnx), "--out", str(tmp_path / "e"), "--backend"]
    assert build_engine.main([*arguments, "tensorrt"]) == 1


def test_a_manifest_comes_back_as_it_was_written(rtx_engines: Path, tmp_path: Path) -> None:
    manifest = read_engine_manifest(rtx_engines)
    manifest.not_built["tensorrt"] = NO_DRIVER
    manifest.write(tmp_path)
    assert read_engine_manifest(tmp_path) == manifest
    assert manifest != EngineManifest()


def test_driver_probe_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(library: str) -> Any:
        raise OSError(library)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert "libcuda" in str(driver.load_driver.__wrapped__()) or "nvcuda" in driver.LIBRARY
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 100))
    assert driver.load_driver.__wrapped__() == "the NVIDIA driver does not start (cuInit gave 100)"
    without_gpu = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=lambda count: 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: without_gpu)
    assert driver.load_driver.__wrapped__() == "the NVIDIA driver sees no GPU"
