"""Engines that are cut short, altered, exchanged, stale or foreign are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_engines import rewritten, tensors, write_engines
from fake_gpu import engine_bytes

from export import trt_library
from export.engine_checks import check_profile, find_engines, largest_batch
from export.engine_manifest import EngineSidecar, read_engine_manifest, read_sidecar
from export.manifest import (
    BackendUnavailableError,
    ExportError,
    ShapeError,
    read_manifest,
    sha256_of,
)
from export.specs import COMPONENTS, DDIM_UPDATE, ONE_STEP, UNET_STEP, VAE_ENCODER
from export.trt_library import TENSORRT_RTX
from metricgold.config import ExportConfig
from metricgold.workspace import Workspace

UNET = "tensorrt-rtx/unet_step"


@pytest.fixture
def engines(exported: Workspace, tmp_path: Path, export_config: ExportConfig) -> Path:
    return write_engines(tmp_path / "engines", exported.onnx, export_config)


def find(engines: Path, onnx: Path, **changed: str) -> dict[str, EngineSidecar]:
    asked = {"version": "1.0", "capability": "8.9"} | changed
    return find_engines(TENSORRT_RTX, engines, read_manifest(onnx).components, **asked)


def test_engines_of_these_graphs_are_found(exported: Workspace, engines: Path) -> None:
    assert list(find(engines, exported.onnx)) == [*COMPONENTS, DDIM_UPDATE.name]
    fused = {ONE_STEP.name: read_manifest(exported.onnx).graphs()[ONE_STEP.name]}
    assert list(find_engines(TENSORRT_RTX, engines, fused, "1.0", "8.9")) == [ONE_STEP.name]


def test_another_library_version_is_refused(exported: Workspace, engines: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"built with version 1\.0, installed is 2"):
        find(engines, exported.onnx, version="2")


def test_another_gpu_is_refused(exported: Workspace, engines: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"8\.6, 8\.9, this GPU has 9\.0"):
        find(engines, exported.onnx, capability="9.0")


def test_compatible_engines_load_with_later_versions_and_other_gpus(
    exported: Workspace, tmp_path: Path, export_config: ExportConfig
) -> None:
    options = {"version_compatible": True, "hardware_compatibility": "ampere_plus"}
    engines = write_engines(tmp_path / "e", exported.onnx, export_config, options=options)
    assert find(engines, exported.onnx, version="1.2", capability="12.0")
    with pytest.raises(BackendUnavailableError, match=r"installed is 0\.9"):
        find(engines, exported.onnx, version="0.9")
    with pytest.raises(BackendUnavailableError, match=r"this GPU has 7\.5"):
        find(engines, exported.onnx, capability="7.5")


def test_a_library_without_engines_is_told_why(exported: Workspace, engines: Path) -> None:
    graphs = read_manifest(exported.onnx).components
    with pytest.raises(BackendUnavailableError, match=r"no engines in .*no NVIDIA driver"):
        find_engines(trt_library.TENSORRT, engines, graphs, "1.0", "8.9")
    with pytest.raises(ExportError, match=r"no such file; run .*build_engine"):
        find(engines / "nowhere", exported.onnx)


def test_an_engine_cut_short_is_refused(exported: Workspace, engines: Path) -> None:
    path = engines / f"{UNET}.engine"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"unet_step\.engine: differs from what the manifest"):
        find(engines, exported.onnx)


def test_a_missing_engine_is_refused(exported: Workspace, engines: Path) -> None:
    (engines / f"{UNET}.engine").unlink()
    with pytest.raises(ExportError, match=r"unet_step\.engine: missing, though"):
        find(engines, exported.onnx)


@pytest.mark.parametrize("with_sidecars", [False, True])
def test_exchanged_engines_are_refused(
    exported: Workspace, engines: Path, with_sidecars: bool
) -> None:
    folder = engines / "tensorrt-rtx"
    for ending in (".engine", ".json") if with_sidecars else (".engine",):
        a, b, c = folder / f"unet_step{ending}", folder / f"vae_encoder{ending}", folder / "c"
        shutil.move(a, c)
        shutil.move(b, a)
        shutil.move(c, b)
    with pytest.raises(ExportError, match=r"vae_encoder\.(engine|json): differs"):
        find(engines, exported.onnx)


def test_a_sidecar_of_another_component_is_refused(exported: Workspace, engines: Path) -> None:
    manifest = read_engine_manifest(engines)
    made = manifest.builds["tensorrt-rtx"].engines
    made[UNET_STEP.name] = made[VAE_ENCODER.name]
    manifest.write(engines)
    told = r"vae_encoder\.engine: is the tensorrt-rtx engine of vae_encoder, not .* of unet_step"
    with pytest.raises(ExportError, match=told):
        find(engines, exported.onnx)


def test_an_altered_sidecar_is_refused(exported: Workspace, engines: Path) -> None:
    path = engines / f"{UNET}.json"
    path.write_text(path.read_text().replace('"8.9"', '"9.0"'))
    with pytest.raises(ExportError, match=r"unet_step\.json: differs"):
        find(engines, exported.onnx, capability="9.0")


def test_engines_of_another_graph_are_refused(exported: Workspace, engines: Path) -> None:
    manifest = read_manifest(exported.onnx)
    manifest.components["unet_step"].files["unet_step.onnx"] = "0" * 64
    with pytest.raises(ExportError, match=r"unet_step was built from another unet_step\.onnx"):
        find_engines(TENSORRT_RTX, engines, manifest.components, "1.0", "8.9")


def test_other_weights_beside_the_same_graph_are_refused(
    exported: Workspace, engines: Path
) -> None:
    manifest = read_manifest(exported.onnx)
    manifest.components["unet_step"].files["unet_step.onnx.data"] = "0" * 64
    with pytest.raises(ExportError, match="unet_step was built from another"):
        find_engines(TENSORRT_RTX, engines, manifest.components, "1.0", "8.9")


def test_a_folder_of_an_earlier_version_is_refused(exported: Workspace, engines: Path) -> None:
    path = engines / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(ExportError, match=r"format 1, this version reads 2; run"):
        find(engines, exported.onnx)


@pytest.mark.parametrize("content", ['{"format": 2}', '{"format": 2, "builds": [], "x": 1}', "["])
def test_a_damaged_manifest_is_refused(exported: Workspace, engines: Path, content: str) -> None:
    (engines / "manifest.json").write_text(content)
    with pytest.raises(ExportError, match=r"manifest\.json: (not an engine manifest|cannot be)"):
        find(engines, exported.onnx)


def test_an_incomplete_build_is_refused(exported: Workspace, engines: Path) -> None:
    manifest = read_engine_manifest(engines)
    del manifest.builds["tensorrt-rtx"].engines[DDIM_UPDATE.name]
    manifest.write(engines)
    with pytest.raises(ExportError, match="no engine of ddim_update; run"):
        find(engines, exported.onnx)


def sidecar_of(engines: Path, component: str) -> EngineSidecar:
    entry = read_engine_manifest(engines).builds["tensorrt-rtx"].engines[component]
    return read_sidecar(engines, entry)


def test_a_size_takes_the_first_profile_that_holds_it(engines: Path) -> None:
    sidecar = sidecar_of(engines, VAE_ENCODER.name)
    (small,) = sidecar.profiles
    assert small["rgb"] == {"min": [1, 3, 8, 8], "opt": [1, 3, 16, 24], "max": [1, 3, 24, 24]}
    wide: dict[str, Any] = {
        "rgb": {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 48], "max": [2, 3, 8, 96]}
    }
    sidecar.profiles.append(wide)
    assert check_profile("vae_encoder", sidecar, {"rgb": (1, 3, 24, 8)}) == 0
    assert check_profile("vae_encoder", sidecar, {"rgb": (2, 3, 8, 96)}) == 1
    told = r"rgb of shape \[1, 3, 24, 96\] lies outside the engine's range .* or \[1, 3, 8, 8\]"
    with pytest.raises(ShapeError, match=told):
        check_profile("vae_encoder", sidecar, {"rgb": [1, 3, 24, 96]})


def test_an_engine_takes_as_many_pictures_as_its_profile(engines: Path) -> None:
    sidecar = sidecar_of(engines, UNET_STEP.name)
    assert largest_batch([sidecar]) == 1
    (profile,) = sidecar.profiles
    profile["rgb_latent"]["max"][0] = 4
    assert largest_batch([sidecar]) == 1, "the other inputs take one"
    for limits in profile.values():
        limits["max"][0] = 4
    assert largest_batch([sidecar]) == 4
    assert largest_batch([sidecar, sidecar_of(engines, VAE_ENCODER.name)]) == 1
    sidecar.profiles.clear()
    assert largest_batch([sidecar]) == 1, "of fixed shape"


def test_an_engine_with_other_tensors_is_refused(
    exported: Workspace, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As only somebody could make who rewrites every hash."""
    from test_engine_execution import open_backend

    sidecar = sidecar_of(engines, UNET_STEP.name)
    path = engines / sidecar.file
    source = str(exported.onnx / VAE_ENCODER.file)
    path.write_bytes(engine_bytes(source, tensors(VAE_ENCODER)))
    rewritten(engines, sidecar, sha256=sha256_of(path))
    with pytest.raises(ExportError, match=r"unet_step: the engine has the tensors \['rgb', 'rgb_"):
        open_backend(monkeypatch, exported, engines)
