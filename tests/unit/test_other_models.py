"""Other people's models behind one interface; tiny ones with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, MarigoldDepthPipeline
from toy import TOY

from metricgold.errors import UserError
from metricgold.evaluation.other_models import (
    SMALLEST_M,
    FunctionPredictor,
    Invariance,
    MarigoldPredictor,
    TransformersPredictor,
)
from metricgold.model import build_toy_unet, build_toy_vae, widen_conv_in

RGBS = list(np.random.default_rng(0).integers(0, 256, (2, 30, 46, 3), dtype=np.uint8))
CAMERAS = [np.diag([40.0, 40.0, 1.0]), None]


def check(predictor: Any) -> None:
    together = predictor.predict_batch(RGBS, CAMERAS)
    assert together.shape == (2, 30, 46)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    assert (together >= SMALLEST_M).all()
    alone = predictor(RGBS[1], CAMERAS[1])
    assert np.median(np.abs(alone / together[1] - 1)) < 1e-3


def test_a_function() -> None:
    check(FunctionPredictor(lambda rgb: 1.0 + rgb.mean(axis=-1)))
    seen: list[Any] = []

    def with_camera(rgb: Any, camera: Any) -> Any:
        seen.append(camera)
        return np.ones(rgb.shape[:2])

    FunctionPredictor(with_camera).predict_batch(RGBS, CAMERAS)
    assert seen[0] is CAMERAS[0]
    assert seen[1] is None
    with pytest.raises(ValueError, match=r"gave \[3\] for a picture of \[30, 46\]"):
        FunctionPredictor(lambda rgb: np.ones(3))(RGBS[0])


def test_marigold() -> None:
    torch.manual_seed(0)
    unet = widen_conv_in(build_toy_unet(TOY))
    unet = type(unet).from_config(dict(unet.config) | {"class_embed_type": None})
    pipeline = MarigoldDepthPipeline(
        unet=unet.eval(),
        vae=build_toy_vae(TOY).eval(),
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        text_encoder=None,
        tokenizer=None,
        prediction_type="depth",
        default_denoising_steps=2,
        default_processing_resolution=24,
    )
    pipeline.empty_text_embedding = torch.zeros(1, 2, 8)
    predictor = MarigoldPredictor(pipeline)
    assert predictor.invariance is Invariance.AFFINE_DEPTH
    first = predictor.predict_batch(RGBS, CAMERAS)
    assert first.shape == (2, 30, 46)
    np.testing.assert_array_equal(first, predictor.predict_batch(RGBS, CAMERAS))


def depth_anything(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=14,
        reassemble_factors=[2, 1], neck_hidden_sizes=[8, 8], fusion_hidden_size=8,
        head_hidden_size=8, depth_estimation_type=kind, max_depth=20,
    )  # fmt: skip
    torch.manual_seed(0)
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    processor = DPTImageProcessorPil(
        size={"height": 28, "width": 42}, keep_aspect_ratio=False, ensure_multiple_of=14
    )
    return transformers.DepthAnythingForDepthEstimation(config), processor


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_depth_anything(kind: str) -> None:
    predictor = TransformersPredictor(*depth_anything(kind))
    expected = Invariance.METRIC if kind == "metric" else Invariance.AFFINE_DISPARITY
    assert predictor.invariance is expected
    check(predictor)


def test_depth_anything_from_a_folder(tmp_path: Path) -> None:
    model, processor = depth_anything("metric")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = TransformersPredictor(model, processor)(RGBS[0])
    found = TransformersPredictor.from_pretrained(str(tmp_path))(RGBS[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(UserError, match="none: model cannot be loaded"):
        TransformersPredictor.from_pretrained(str(tmp_path / "none"))
