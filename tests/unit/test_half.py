"""Half precision: what overflows is found and named, and attention can stay in float32."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from onnx.reference import ReferenceEvaluator
from toy import toy_model

from export.components import build_components, example_inputs
from export.describe import describe
from export.graphs import export_graph
from export.half import (
    LARGEST,
    attention_in_float32,
    magnitudes,
    photo_like,
    to_half,
    widen_attention,
)
from export.manifest import ExportError, read_manifest
from export.onnx_export import export_checkpoint
from export.specs import COMPONENTS, UNET_STEP, Precision
from metricgold.config import ExportConfig
from metricgold.pipeline import MetricGoldPipeline

SIZE = (16, 24)


def with_large_attention() -> MetricGoldPipeline:
    """A model whose products of queries and keys exceed what float16 holds, and nothing else."""
    model = toy_model()
    for block in model.unet.modules():
        if isinstance(block, Attention):
            block.to_q.weight.mul_(400.0)
            block.to_k.weight.mul_(400.0)
    return model


def test_a_picture_like_a_photograph() -> None:
    picture = photo_like((48, 64))
    assert picture.shape == (48, 64, 3)
    assert picture.dtype == np.uint8
    assert (picture.min(), picture.max()) == (0, 255)
    grey = picture.mean(axis=2)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    assert power[:6, :6].sum() > 10 * power[18:24, 18:24].sum(), "large structures dominate"
    np.testing.assert_array_equal(picture, photo_like((48, 64)))


def test_magnitudes_are_those_of_the_layers() -> None:
    model = toy_model()
    seen: list[float] = []
    hook = model.unet.conv_in.register_forward_hook(
        lambda module, given, output: seen.append(float(output.abs().max()))
    )
    found = magnitudes(model, SIZE)
    hook.remove()
    assert 0 < found.attention < LARGEST
    assert found.layer >= seen[0]
    assert found.layer_name.split(".")[0] in ("image_vae", "unet", "depth_vae")


def test_where_nothing_overflows_attention_is_as_the_rest() -> None:
    assert attention_in_float32(toy_model(), SIZE, "auto") is False
    assert attention_in_float32(toy_model(), SIZE, "fp32") is True


def test_overflow_in_attention_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    assert attention_in_float32(with_large_attention(), SIZE, "auto") is True
    assert "attention falls back to fp32, the rest stays fp16" in capsys.readouterr().out


def test_overflow_elsewhere_is_refused_by_name() -> None:
    model = toy_model()
    model.depth_vae.decoder.conv_in.weight.mul_(1e6)
    with pytest.raises(ExportError, match=r"fp16 overflows at depth_vae\..*--precision fp32"):
        attention_in_float32(model, SIZE, "auto")


@torch.no_grad()
def test_widened_attention_computes_the_same() -> None:
    model, half = toy_model(), toy_model()
    noise = torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    given = (noise, torch.tensor([999]), model.empty_text_embed)
    expected = model.unet(*given, class_labels=torch.zeros(1, 32)).sample
    widen_attention(model.unet)
    found = model.unet(*given, class_labels=torch.zeros(1, 32)).sample
    torch.testing.assert_close(found, expected)
    to_half(half, float32_attention=True)
    halves = [g.half() if g.is_floating_point() else g for g in given]
    result = half.unet(*halves, class_labels=torch.zeros(1, 32).half()).sample
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("widened", [False, True])
def test_products_that_overflow_are_finite_in_float32(
    export_config: ExportConfig, tmp_path: Path, widened: bool
) -> None:
    """ONNX's reference computes float16 in float16, as opset 20 spells attention out."""
    config = export_config.model_copy(update={"opset": 20, "precision": "fp16", "dynamic": False})
    model, spec = with_large_attention(), COMPONENTS[UNET_STEP.name]
    to_half(model, widened)
    manifest = describe(model, config, attention="", licence="", checkpoint_sha256="")
    module = build_components(model, Precision.FP16)[spec.name]
    export_graph(module, spec, tmp_path, config, manifest)
    inputs = {
        name: tensor.numpy()
        for name, tensor in example_inputs(spec, SIZE, manifest.grid, batch=1).items()
    }
    with np.errstate(all="ignore"):
        (velocity,) = ReferenceEvaluator(str(tmp_path / spec.file)).run(None, inputs)
    assert np.isfinite(velocity).all() == widened


def test_an_export_falls_back_and_says_so(
    export_config: ExportConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_large_attention().save_pretrained(tmp_path / "model")
    config = export_config.model_copy(
        update={"precision": "fp16", "dynamic": False, "fused": False}
    )
    export_checkpoint(tmp_path / "model", tmp_path / "onnx", config)
    assert "attention falls back to fp32" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "onnx")
    assert (manifest.precision, manifest.attention) == ("fp16", "fp32")


def test_graphs_whose_values_are_not_finite_are_not_exported(
    export_config: ExportConfig, tmp_path: Path
) -> None:
    model = toy_model()
    model.unet.conv_out.bias.fill_(math.inf)
    model.save_pretrained(tmp_path / "model")
    config = export_config.model_copy(update={"dynamic": False, "fused": False})
    with pytest.raises(ExportError, match="unet_step: gives values that are not finite"):
        export_checkpoint(tmp_path / "model", tmp_path / "onnx", config)
    assert not (tmp_path / "onnx").exists()
