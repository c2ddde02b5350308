"""Surgery, conditioning and checkpoints of the networks."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import LONG_SIDE, TOY, toy_model

from metricgold.geometry import ray_latent
from metricgold.model import (
    FOV_FEATURES,
    CheckpointError,
    build_toy_unet,
    decode_depth_norm,
    encode,
    encode_depth_norm,
    fov_features,
    one_step_start,
    predict_velocity,
    widen_conv_in,
)
from metricgold.pipeline import MetricGoldPipeline
from metricgold.random_weights import random_toy_pipeline

TIMESTEPS = torch.tensor([10, 999])


def inputs(channels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, channels, 6, 8, generator=generator) for _ in range(2))


def velocity(model: MetricGoldPipeline, fov: Tensor) -> Tensor:
    rgb, depth = inputs()
    with torch.no_grad():
        return predict_velocity(model.unet, rgb, depth, TIMESTEPS, model.empty_text_embed, fov)


def test_widened_unet_fed_twice_equals_the_original() -> None:
    torch.manual_seed(0)
    unet = build_toy_unet(TOY).eval()
    latent, text, fov = inputs()[0], torch.randn(2, 2, 8), torch.zeros(2, FOV_FEATURES)
    with torch.no_grad():
        before = unet(latent, TIMESTEPS, text, class_labels=fov).sample
        widen_conv_in(unet)
        after = unet(torch.cat([latent, latent], 1), TIMESTEPS, text, class_labels=fov).sample
        rgb_only = torch.cat([latent, torch.zeros_like(latent)], 1)
        other = unet(rgb_only, TIMESTEPS, text, class_labels=fov).sample
    assert unet.config.in_channels == 8
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(other, before, atol=1e-3)
    assert widen_conv_in(unet).conv_in.in_channels == 8  # a second call changes nothing


def test_widening_refuses_another_unet() -> None:
    unet = widen_conv_in(build_toy_unet(TOY))
    unet.conv_in = torch.nn.Conv2d(9, 8, 3)
    with pytest.raises(CheckpointError, match="takes 9 channels and gives 4; 4 or 8 expected"):
        widen_conv_in(unet)


def test_fov_has_no_effect_before_training_and_one_after() -> None:
    wide, narrow = fov_features(torch.tensor([90.0, 90.0])), fov_features(torch.tensor([40.0, 40]))
    fresh = toy_model()
    torch.testing.assert_close(velocity(fresh, wide), velocity(fresh, narrow), rtol=0, atol=0)
    zeros = torch.zeros(2, FOV_FEATURES)
    torch.testing.assert_close(velocity(fresh, wide), velocity(fresh, zeros), rtol=0, atol=0)
    trained = toy_model(fov_matters=True)
    assert not torch.allclose(velocity(trained, wide), velocity(trained, narrow), atol=1e-3)


def test_fov_features_of_known_and_unknown_cameras() -> None:
    features = fov_features(torch.tensor([90.0, math.nan, 60.0]))
    assert features.shape == (3, FOV_FEATURES)
    assert (features[1] == 0).all()
    # tan 45 degrees = 1; the lowest frequency is pi / 4, the highest 8 pi
    assert features[0, 0].item() == pytest.approx(math.sin(math.pi / 4), abs=1e-5)
    assert features[0, 15].item() == pytest.approx(math.sin(8 * math.pi), abs=1e-4)
    assert features[0, 16].item() == pytest.approx(math.cos(math.pi / 4), abs=1e-5)
    assert not torch.allclose(features[0], features[2])


def test_one_step_starts_from_the_rays_in_the_type_of_the_latent() -> None:
    fov = torch.tensor([50.0, math.nan])
    start = one_step_start(fov, torch.zeros(2, 4, 6, 8, dtype=torch.float64))
    assert start.dtype == torch.float64
    assert start.shape == (2, 4, 6, 8)
    np.testing.assert_array_equal(start.numpy(), ray_latent(fov.numpy(), (6, 8)))


def test_encode_is_the_scaled_posterior_mean_and_decode_undoes_the_scale() -> None:
    model = toy_model()
    depth_norm = torch.linspace(-1, 1, 2 * 8 * 12).view(2, 1, 8, 12)
    with torch.no_grad():
        plain = encode_depth_norm(model.depth_vae, depth_norm)
        decoded = decode_depth_norm(model.depth_vae, plain)
        model.depth_vae.register_to_config(scaling_factor=0.25)
        scaled = encode_depth_norm(model.depth_vae, depth_norm)
        again = decode_depth_norm(model.depth_vae, scaled)
        by_hand = model.depth_vae.encode(depth_norm.expand(-1, 3, -1, -1)).latent_dist.mean
    assert plain.shape == (2, 4, 4, 6)
    assert decoded.shape == depth_norm.shape
    torch.testing.assert_close(scaled, 0.25 * by_hand)
    torch.testing.assert_close(again, decoded)


def test_save_and_load_give_identical_outputs(tmp_path: Path) -> None:
    model = toy_model(seed=5, fov_matters=True)
    model.save_pretrained(tmp_path / "model")
    loaded = MetricGoldPipeline.from_pretrained(tmp_path / "model")
    assert loaded.codec == model.codec
    assert loaded.default_denoising_steps == 1
    assert loaded.default_processing_resolution == LONG_SIDE
    for part in ("image_vae", "depth_vae", "unet"):
        saved, read = getattr(model, part).state_dict(), getattr(loaded, part).state_dict()
        assert saved.keys() == read.keys()
        assert all(torch.equal(saved[name], read[name]) for name in saved)
        assert not getattr(loaded, part).training
    assert torch.equal(loaded.empty_text_embed, model.empty_text_embed)
    fov = fov_features(torch.tensor([50.0, math.nan]))
    torch.testing.assert_close(velocity(loaded, fov), velocity(model, fov))
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(encode(loaded.image_vae, image), encode(model.image_vae, image))
    assert torch.equal(loaded.scheduler.alphas_cumprod, model.scheduler.alphas_cumprod)
    weights = [p for p in (tmp_path / "model").rglob("*") if p.is_file()]
    assert {p.suffix for p in weights} == {".json", ".safetensors", ".md"}
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "MetricGoldPipeline"
    assert str(tmp_path) not in json.dumps(index)


def test_random_model_is_reproducible_and_leaves_the_global_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = random_toy_pipeline(TOY, seed=7)
    assert torch.equal(torch.rand(1), expected)
    second = random_toy_pipeline(TOY, seed=7)
    fov = torch.zeros(2, FOV_FEATURES)
    assert torch.equal(velocity(first, fov), velocity(second, fov))


def test_a_missing_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        MetricGoldPipeline.from_pretrained(tmp_path / "nowhere")
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message
    assert "dvc pull" in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", ["no unet", "cut weights", "index is not json", "no part"])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    toy_model().save_pretrained(tmp_path)
    weights = next((tmp_path / "depth_vae").glob("*.safetensors"))
    if damage == "no unet":
        shutil.rmtree(tmp_path / "unet")
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "index is not json":
        (tmp_path / "model_index.json").write_text("{")
    else:
        index = json.loads((tmp_path / "model_index.json").read_text())
        del index["unet"]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        MetricGoldPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
