"""The VAE floor with a VAE whose loss is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import toy_model

from metricgold.depth_codec import DepthCodec
from metricgold.evaluation import floor

CODEC = DepthCodec(0.1, 80.0)


def maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(5, 1, 16, 24, generator=generator) * 10 + 1
    valid = torch.rand(5, 1, 16, 24, generator=generator) > 0.2
    return depth, valid


def replace_vae(monkeypatch: pytest.MonkeyPatch, norm_error: float) -> list[Tensor]:
    """Encoding keeps the map, decoding adds ``norm_error``; what was encoded is returned."""
    seen: list[Tensor] = []

    def encode(_: object, norm: Tensor) -> Tensor:
        seen.append(norm)
        return norm

    monkeypatch.setattr(floor, "encode_depth_norm", encode)
    monkeypatch.setattr(floor, "decode_depth_norm", lambda _, latent: latent + norm_error)
    return seen


def test_a_lossless_vae_has_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = replace_vae(monkeypatch, 0.0)
    depth, valid = maps()
    result = floor.vae_floor(toy_model().depth_vae, CODEC, depth, valid, batch_size=2)
    assert result["abs_rel"] == pytest.approx(0.0, abs=1e-5)
    assert result["delta1"] == 1.0
    assert result["boundary_f1"] > 0.99
    assert result["frames"] == 5
    assert [len(s) for s in seen] == [2, 2, 1]
    encoded = torch.cat(seen)
    assert (encoded[~valid] == 1).all()
    assert (encoded[valid] < 0.6).all()


def test_a_known_error_in_x_is_the_codecs_relative_error(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_vae(monkeypatch, 0.01)
    result = floor.vae_floor(toy_model().depth_vae, CODEC, *maps())
    assert result["abs_rel"] == pytest.approx(CODEC.relative_error(0.01), rel=0.02)
    assert result["abs_rel_edges"] == pytest.approx(result["abs_rel"], rel=0.01)


def test_images_without_valid_pixels_and_depth_out_of_range_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_vae(monkeypatch, 0.0)
    depth, valid = maps()
    valid[0] = False
    depth[1, :, :8] = 500.0
    result = floor.vae_floor(toy_model().depth_vae, CODEC, depth, valid)
    assert result["frames"] == 4
    assert result["abs_rel"] == pytest.approx(0.0, abs=1e-5)


def test_a_real_vae_keeps_its_training_mode_and_its_gradients() -> None:
    vae = toy_model().depth_vae.train().requires_grad_(True)
    depth, valid = maps()
    depth.requires_grad_(False)
    result = floor.vae_floor(vae, CODEC, depth, valid)
    assert vae.training
    assert all(p.grad is None for p in vae.parameters())
    assert result["abs_rel"] > 0.1  # random weights
    assert set(result) == {"abs_rel", "delta1", "boundary_f1", "abs_rel_edges", "frames"}
