"""The exported modules compute what the model's own functions compute; exports are reproducible."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from toy import TOY, toy_model

from export import graphs
from export.components import build_components, example_inputs
from export.graphs import METADATA_KEY
from export.manifest import ExportError, read_manifest, sha256_of, verify_graphs
from export.onnx_export import check_sizes, export_checkpoint
from export.parity import ParityError, run
from export.runtime import InferenceError, open_session
from export.specs import (
    CHANNELS,
    COMPONENTS,
    DEPTH_DECODER,
    UNET_STEP,
    VAE_ENCODER,
    LatentGrid,
    Precision,
)
from metricgold import __version__
from metricgold.config import ExportConfig, ProfileConfig, load_config
from metricgold.model import (
    CheckpointError,
    decode_depth_norm,
    encode,
    predict_velocity,
)
from metricgold.random_weights import random_toy_pipeline
from metricgold.workspace import Workspace

ROOT = Path(__file__).parents[2]
GRID = LatentGrid(factor=2, channels=4)


def profile(export: ExportConfig) -> ProfileConfig:
    return load_config(ROOT / "params.yaml", "demo").model_copy(update={"export": export})


@torch.no_grad()
def test_modules_equal_the_models_functions() -> None:
    model = toy_model(fov_matters=True)
    modules = build_components(model)
    inputs = {n: example_inputs(s, (8, 12), GRID) for n, s in COMPONENTS.items()}
    rgb = inputs[VAE_ENCODER.name]["rgb"]
    torch.testing.assert_close(modules[VAE_ENCODER.name](rgb), encode(model.image_vae, rgb))
    step = inputs[UNET_STEP.name]
    expected = predict_velocity(
        model.unet,
        step["rgb_latent"],
        step["noisy_depth_latent"],
        step["timestep"],
        model.empty_text_embed,
        step["fov"],
    )
    torch.testing.assert_close(modules[UNET_STEP.name](*step.values()), expected)
    latent = inputs[DEPTH_DECODER.name]["depth_latent"]
    depth = model.codec.decode(decode_depth_norm(model.depth_vae, latent))
    torch.testing.assert_close(modules[DEPTH_DECODER.name](latent), depth)


@torch.no_grad()
def test_decoder_gives_metres_inside_the_codecs_range() -> None:
    decoder = build_components(toy_model())[DEPTH_DECODER.name]
    depth = decoder(1000.0 * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert depth.shape == (1, 1, 8, 8)
    assert depth.min() >= 0.1 - 1e-6
    assert depth.max() <= 80.0 + 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", list(COMPONENTS))
def test_half_precision_stays_close_and_keeps_float32_outside(name: str) -> None:
    model = toy_model(fov_matters=True)
    inputs = example_inputs(COMPONENTS[name], (8, 12), GRID).values()
    full = build_components(model)[name](*inputs)
    half = build_components(model, Precision.FP16)[name](*inputs)
    assert half.dtype == torch.float32
    assert torch.isfinite(half).all()
    assert 0 < (half - full).abs().max() / full.abs().max() < 2e-2
    assert next(model.unet.parameters()).dtype == torch.float32  # the model itself is untouched


@pytest.mark.parametrize("name", list(COMPONENTS))
def test_graphs_are_named_dynamic_and_carry_the_manifest(exported: Workspace, name: str) -> None:
    manifest = read_manifest(exported.onnx)
    model = onnx.load(exported.onnx / COMPONENTS[name].file)
    spec = COMPONENTS[name]
    assert [i.name for i in model.graph.input] == list(spec.inputs)
    assert [o.name for o in model.graph.output] == [spec.output_name]
    first = model.graph.input[0].type.tensor_type.shape.dim
    axes = next(iter(spec.inputs.values())).axes
    expected = [GRID.channels if axis == CHANNELS else axis for axis in axes]
    assert [d.dim_param or d.dim_value for d in first] == expected
    metadata = {p.key: p.value for p in model.metadata_props}
    expected = json.loads(json.dumps(manifest.metadata()))
    assert json.loads(metadata[METADATA_KEY]) == expected
    assert model.opset_import[0].version == 23
    assert (model.producer_name, model.producer_version) == ("metricgold", __version__)
    assert b'File "' not in (exported.onnx / spec.file).read_bytes(), "a stack trace was kept"


def test_manifest_says_what_a_runtime_needs(exported: Workspace) -> None:
    manifest = read_manifest(exported.onnx)
    assert (manifest.depth_min_m, manifest.depth_max_m) == (0.1, 80.0)
    assert manifest.size_multiple == 2
    assert manifest.grid == GRID
    assert manifest.num_inference_steps == 1
    assert set(manifest.versions) == {"metricgold", "torch", "diffusers", "onnx", "onnxscript"}
    for graph in manifest.components.values():
        assert graph.onnx_sha256 == sha256_of(exported.onnx / graph.onnx_file)
    assert list(exported.onnx.parent.glob("*.part")) == []


def test_the_same_checkpoint_gives_the_same_bytes(
    exported: Workspace, export_config: ExportConfig, tmp_path: Path
) -> None:
    export_checkpoint(exported.model, tmp_path / "again", export_config)
    for file in sorted(exported.onnx.iterdir()):
        assert sha256_of(file) == sha256_of(tmp_path / "again" / file.name), file.name


def test_missing_checkpoint_leaves_the_old_export(
    exported: Workspace, export_config: ExportConfig, tmp_path: Path
) -> None:
    shutil.copytree(exported.onnx, tmp_path / "onnx")
    with pytest.raises(CheckpointError, match="no MetricGold checkpoint"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "onnx", export_config)
    verify_graphs(tmp_path / "onnx", read_manifest(tmp_path / "onnx"))


def test_a_size_the_networks_cannot_take_is_named(export_config: ExportConfig) -> None:
    bad = export_config.model_copy(update={"parity_sizes": ((16, 24), (16, 25))})
    with pytest.raises(ExportError, match=r"parity_sizes has 16x25.*multiples of 4"):
        check_sizes(bad, 4)
    bad = export_config.model_copy(update={"engine_size": (15, 24)})
    with pytest.raises(ExportError, match=r"engine_size \(or --fixed\) has 15x24"):
        check_sizes(bad, 4)


def test_parity_passes_and_is_written(exported: Workspace, export_config: ExportConfig) -> None:
    results = run(profile(export_config), exported)
    assert {r.component for r in results} == {*COMPONENTS, "end_to_end", "one_step"}
    assert {r.size for r in results} == {(16, 24), (14, 26)}
    written = json.loads((exported.metrics / "parity.json").read_text())
    assert written["passed"] is True
    assert len(written["comparisons"]) == len(results) == 9
    assert max(written["worst_relative"].values()) < 1e-3


@pytest.mark.parametrize(
    ("name", "damage"), [*((name, 1.01) for name in COMPONENTS), (DEPTH_DECODER.name, math.nan)]
)
def test_a_damaged_graph_fails_by_name(
    exported: Workspace, export_config: ExportConfig, tmp_path: Path, name: str, damage: float
) -> None:
    ws = Workspace(tmp_path)
    shutil.copytree(exported.model, ws.model)
    shutil.copytree(exported.onnx, ws.onnx)
    path = ws.onnx / COMPONENTS[name].file
    graph = onnx.load(path)
    weight = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
    values = onnx.numpy_helper.to_array(weight) * np.float32(damage)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)
    manifest = read_manifest(ws.onnx)
    manifest.components[name].files[path.name] = sha256_of(path)
    manifest.write(ws.onnx)
    with pytest.raises(ParityError, match=rf"{name} at 16x24 differs from torch: max_relative"):
        run(profile(export_config), ws)
    written = json.loads((ws.metrics / "parity.json").read_text())
    assert written["passed"] is False


def test_graphs_of_another_checkpoint_are_refused(
    exported: Workspace, export_config: ExportConfig, tmp_path: Path
) -> None:
    ws = Workspace(tmp_path)
    toy_model(seed=5).save_pretrained(ws.model)
    shutil.copytree(exported.onnx, ws.onnx)
    with pytest.raises(ParityError, match="another checkpoint"):
        run(profile(export_config), ws)


def test_latents_of_another_width_are_exported_and_run(
    export_config: ExportConfig, tmp_path: Path
) -> None:
    """Newer autoencoders have 16 channels: all three graphs and the rays follow the checkpoint."""
    ws = Workspace(tmp_path)
    wide = TOY.model_copy(update={"latent_channels": 6})
    random_toy_pipeline(wide).save_pretrained(ws.model)
    manifest = export_checkpoint(ws.model, ws.onnx, export_config)
    assert manifest.grid == LatentGrid(factor=2, channels=6)
    assert manifest.components[VAE_ENCODER.name].output == {
        "rgb_latent": ["batch", 6, "height_out", "width_out"]
    }
    assert all(c.passed for c in run(profile(export_config), ws))


def test_static_export_with_fallback_opset_and_weights_beside_the_graph(
    exported: Workspace,
    export_config: ExportConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "EXTERNAL_DATA_BYTES", 10_000)
    static = export_config.model_copy(update={"dynamic": False, "opset": 20})
    manifest = export_checkpoint(exported.model, tmp_path / "onnx", static)
    assert manifest.static_size == [16, 24]
    assert manifest.components[VAE_ENCODER.name].inputs == {"rgb": [1, 3, 16, 24]}
    assert asdict(read_manifest(tmp_path / "onnx")) == asdict(manifest)
    unet = manifest.components[UNET_STEP.name]
    assert list(unet.files) == ["unet_step.onnx", "unet_step.onnx.data"]
    session = open_session(tmp_path / "onnx", "onnxruntime-cpu")
    rgb = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    expected = open_session(exported.onnx, "onnxruntime-cpu").infer(rgb, fov_deg=60.0).depth
    np.testing.assert_allclose(session.infer(rgb, fov_deg=60.0).depth, expected, rtol=1e-3)
    with pytest.raises(InferenceError, match="exported for 16x24 pixels only"):
        session.infer(rgb, processing_resolution=48)
    (tmp_path / "onnx" / "unet_step.onnx.data").write_bytes(b"other")
    with pytest.raises(ExportError, match=r"unet_step\.onnx\.data: differs"):
        open_session(tmp_path / "onnx", "onnxruntime-cpu")
