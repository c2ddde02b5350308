"""The confidence head: what its loss asks for, and what the pipeline makes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_model

from metricgold.confidence import INITIAL_ERROR, ConfidenceHead, at_pixels
from metricgold.losses import laplace_nll
from metricgold.pipeline import MetricGoldPipeline


def picture(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)


@given(st.floats(0.01, 3.0), st.floats(-0.5, 0.5))
def test_the_expected_error_has_the_least_loss(error: float, away: float) -> None:
    errors, valid = torch.full((1, 1, 2, 2), error), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    best = laplace_nll(torch.full_like(errors, math.log(error)), errors, valid)
    other = laplace_nll(torch.full_like(errors, math.log(error) + away), errors, valid)
    assert float(best) <= float(other) + 1e-6
    assert float(best) == pytest.approx(1 + math.log(error), abs=1e-5)


def test_invalid_pixels_count_neither_in_loss_nor_in_gradient() -> None:
    errors = torch.tensor([0.1, math.nan]).view(1, 1, 1, 2)
    valid = torch.tensor([True, False]).view(1, 1, 1, 2)
    log_error = torch.zeros(1, 1, 1, 2, requires_grad=True)
    loss = laplace_nll(log_error, errors, valid)
    loss.backward()
    assert loss.item() == pytest.approx(0.1)
    assert log_error.grad is not None
    assert log_error.grad.flatten().tolist() == pytest.approx([0.9, 0.0])
    assert laplace_nll(log_error, errors, torch.zeros_like(valid)).item() == 0


def test_an_untrained_head_expects_the_same_everywhere() -> None:
    head = ConfidenceHead(latent_channels=4, width=16)
    log_error = head(torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7))
    assert log_error.shape == (2, 1, 5, 7)
    assert torch.allclose(log_error.exp(), torch.tensor(INITIAL_ERROR))
    assert at_pixels(log_error, (20, 28)).shape == (2, 1, 20, 28)


def test_a_head_learns_where_errors_are() -> None:
    torch.manual_seed(0)
    head = ConfidenceHead(latent_channels=4, width=16)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    valid = torch.ones(4, 1, 32, 32, dtype=torch.bool)
    for _ in range(150):
        rgb_latent, depth_latent = torch.randn(2, 4, 4, 8, 8)
        error = at_pixels(torch.where(rgb_latent[:, :1] > 0, 0.5, 0.05), (32, 32))
        loss = laplace_nll(at_pixels(head(rgb_latent, depth_latent), (32, 32)), error, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rgb_latent, depth_latent = torch.randn(2, 4, 4, 8, 8)
    expected = head(rgb_latent, depth_latent).exp().detach()
    high = rgb_latent[:, :1] > 0
    assert float(expected[high].mean()) > 2 * float(expected[~high].mean())


def test_a_checkpoint_keeps_its_head_and_the_pipeline_gives_metres(tmp_path: Path) -> None:
    model = toy_model()
    model.register_modules(confidence=ConfidenceHead(latent_channels=4, width=16))
    assert model.confidence is not None
    torch.nn.init.normal_(model.confidence.conv_out.weight, std=0.1)
    model.save_pretrained(tmp_path)
    pipeline = MetricGoldPipeline.from_pretrained(tmp_path)
    assert pipeline.confidence is not None
    assert pipeline.confidence.config.width == 16
    pictures = [picture(1), picture(2)]
    out = pipeline(pictures, fov_deg=[50.0, None], output_uncertainty=True)
    assert out.uncertainty is not None
    assert out.uncertainty.shape == out.prediction.shape
    assert (out.uncertainty > 0).all()
    alone = pipeline(pictures[1], output_uncertainty=True).uncertainty
    np.testing.assert_allclose(alone, out.uncertainty[1:], rtol=1e-4)
    without = toy_model()(pictures, fov_deg=[50.0, None])
    np.testing.assert_allclose(without.prediction, out.prediction, rtol=1e-4)
    assert without.uncertainty is None
