"""Other people's models behind one interface; tiny ones with random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, MarigoldDepthPipeline
from toy import TOY

from metricgold.errors import UserError
from metricgold.evaluation.other_models import (
    SMALLEST_M,
    FunctionPredictor,
    MarigoldPredictor,
    TransformersPredictor,
    _depth_pro_metres,
    _zoe_depth_metres,
)
from metricgold.evaluation.predictors import Invariance, Observation, Predictor
from metricgold.model import build_toy_unet, build_toy_vae, widen_conv_in

RGBS = list(np.random.default_rng(0).integers(0, 256, (2, 30, 46, 3), dtype=np.uint8))
CAMERAS = [np.diag([40.0, 40.0, 1.0]), None]


SHOWN = [Observation(str(i), rgb, k) for i, (rgb, k) in enumerate(zip(RGBS, CAMERAS, strict=True))]


def check(predictor: Predictor) -> None:
    found = [estimate.depth for estimate in predictor.predict(SHOWN)]
    assert len(found) == 2
    for depth in found:
        assert depth.shape == (30, 46)
        assert depth.dtype == np.float32
        assert np.isfinite(depth).all()
        if predictor.invariance is Invariance.METRIC:
            assert (depth >= SMALLEST_M).all()
    alone = predictor(RGBS[1], CAMERAS[1])
    assert np.median(np.abs(alone - found[1])) < 1e-3 * max(np.ptp(found[1]), 1e-6)


def test_a_function() -> None:
    check(FunctionPredictor(lambda rgb: 1.0 + rgb.mean(axis=-1)))
    seen: list[Any] = []

    def with_camera(rgb: Any, camera: Any) -> Any:
        seen.append(camera)
        return np.ones(rgb.shape[:2])

    FunctionPredictor(with_camera).predict(SHOWN)
    assert seen[0] is CAMERAS[0]
    assert seen[1] is None


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
    assert predictor.parameters is not None
    first, again = predictor.predict(SHOWN), predictor.predict(SHOWN)
    assert first[1].depth.shape == (30, 46)
    np.testing.assert_array_equal(first[1].depth, again[1].depth)


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


def test_zoedepth() -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.BeitConfig(
        image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=32, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False, use_relative_position_bias=True,
    )  # fmt: skip
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16,
        bottleneck_features=16, num_relative_features=8, bin_embedding_dim=16,
        num_attractors=[4, 2, 2, 2], num_patch_transformer_layers=1,
        patch_transformer_hidden_size=16, patch_transformer_intermediate_size=16,
        patch_transformer_num_attention_heads=2,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ZoeDepthForDepthEstimation(config)
    from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

    processor = ZoeDepthImageProcessorPil(
        size={"height": 32, "width": 32}, keep_aspect_ratio=False, ensure_multiple_of=32
    )
    predictor = TransformersPredictor(model, processor)
    assert predictor.invariance is Invariance.METRIC
    check(predictor)


def test_depth_pro() -> None:
    transformers = pytest.importorskip("transformers")
    vit = {
        "model_type": "dinov2", "num_hidden_layers": 2, "hidden_size": 16, "patch_size": 8,
        "num_attention_heads": 2, "image_size": 16, "mlp_ratio": 1, "num_labels": 2,
        "use_mask_token": False, "out_features": ["stage1", "stage2"],
    }  # fmt: skip
    config = transformers.DepthProConfig(
        patch_size=16, patch_embeddings_size=8, fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0], intermediate_feature_dims=[10, 8],
        scaled_images_ratios=[0.5, 1.0], scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[12, 12], use_fov_model=True, image_model_config=vit,
        patch_model_config=vit, fov_model_config=vit,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.DepthProForDepthEstimation(config)
    predictor = TransformersPredictor(model, None)
    assert predictor.invariance is Invariance.METRIC
    check(predictor)


class Outputs(NamedTuple):
    predicted_depth: torch.Tensor
    field_of_view: torch.Tensor | None = None


def test_zoedepth_without_padding_is_what_was_padded() -> None:
    """A map that is smooth where the picture is comes back at its place."""
    height, width = 48, 64
    up, left = int(3 * math.sqrt(height / 2)), int(3 * math.sqrt(width / 2))
    y, x = torch.meshgrid(
        torch.arange(-up, height + up), torch.arange(-left, width + left), indexing="ij"
    )
    padded = (2 + 0.01 * y + 0.02 * x).float()
    found = _zoe_depth_metres(Outputs(padded[None]), (height, width))[0]
    torch.testing.assert_close(found, padded[up : up + height, left : left + width])


def test_depth_pro_by_hand() -> None:
    """Inverse depth for a unit focal length, and a field of view of 90 degrees: f is half of W."""
    inverse = torch.full((1, 8, 8), 0.25)
    wide = _depth_pro_metres(Outputs(inverse, torch.tensor([90.0])), (4, 6))
    torch.testing.assert_close(wide, torch.full((1, 4, 6), 2.0))
    unknown = _depth_pro_metres(Outputs(inverse), (4, 6))
    torch.testing.assert_close(unknown, torch.full((1, 4, 6), 4.0))
