"""Losses against hand-computed numbers, and what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricgold.depth_codec import DepthCodec
from metricgold.losses import (
    kl_divergence,
    masked_l1,
    multiscale_gradient_l1,
    relative_depth_l1,
    scale_aware_log_loss,
)

LOG_RANGE = math.log(80.0 / 0.1)
LOSSES = {
    "l1": masked_l1,
    "gradient": multiscale_gradient_l1,
    "scale": lambda p, t, m: scale_aware_log_loss(p, t, m, LOG_RANGE, 0.15),
    "relative": lambda p, t, m: relative_depth_l1(p, t, m, LOG_RANGE),
}


def image(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def random_case(seed: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred, target = (torch.rand(batch, 1, 9, 12, generator=generator) * 2 - 1 for _ in range(2))
    return pred, target, torch.rand(batch, 1, 9, 12, generator=generator) > 0.3


def test_masked_l1_by_hand() -> None:
    pred, target = image([[1.0, 2.0], [3.0, 9.0]]), image([[0.0, 4.0], [3.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])[None, None]
    assert masked_l1(pred, target, mask).item() == pytest.approx((1 + 2 + 0) / 3)


def test_gradient_by_hand_one_scale() -> None:
    target = torch.zeros(1, 1, 2, 3)
    pred = image([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    # along x: 1, 2, 0, 0; along y: 0, 1, 3: seven pairs
    assert multiscale_gradient_l1(pred, target, ones(pred), scales=1).item() == pytest.approx(1.0)


def test_gradient_leaves_pairs_with_an_invalid_pixel_out() -> None:
    target = torch.zeros(1, 1, 1, 4)
    pred = image([[0.0, 1.0, 100.0, 4.0]])
    mask = torch.tensor([[True, True, False, True]])[None, None]
    assert multiscale_gradient_l1(pred, target, mask, scales=1).item() == pytest.approx(1.0)


def test_gradient_takes_the_mean_over_strided_scales() -> None:
    pred = image([[0.0, 1.0, 4.0, 9.0]])
    # stride 1: (1 + 3 + 5) / 3 = 3; stride 2: |4 - 0| = 4
    value = multiscale_gradient_l1(pred, torch.zeros_like(pred), ones(pred), scales=2)
    assert value.item() == pytest.approx(3.5)


def test_scale_loss_by_hand() -> None:
    pred, target = image([[0.1, -0.1, 0.3]]), torch.zeros(1, 1, 1, 3)
    # with L = 2, g = dx: mean g^2 = 0.11 / 3, mean g = 0.1
    value = scale_aware_log_loss(pred, target, ones(pred), log_range=2.0, lam=0.15)
    assert value.item() == pytest.approx(math.sqrt(0.11 / 3 - 0.15 * 0.01), rel=1e-5)


def test_scale_loss_is_the_mean_over_images_with_pixels() -> None:
    pred = torch.stack([torch.full((1, 2, 2), v) for v in (0.2, 0.4, 7.0)])
    mask = ones(pred)
    mask[2] = False
    value = scale_aware_log_loss(pred, torch.zeros_like(pred), mask, log_range=2.0, lam=0.75)
    assert value.item() == pytest.approx(0.5 * (0.2 + 0.4) / 2, rel=1e-5)


def test_full_lambda_forgives_a_common_scale_and_a_smaller_one_does_not() -> None:
    _, target, mask = random_case(0)
    pred = target + 0.25
    forgiven = scale_aware_log_loss(pred, target, mask, LOG_RANGE, 1.0)
    supervised = scale_aware_log_loss(pred, target, mask, LOG_RANGE, 0.15)
    assert forgiven.item() == pytest.approx(0.0, abs=1e-5)
    assert supervised.item() == pytest.approx(math.sqrt(0.85) * 0.25 * LOG_RANGE / 2, rel=1e-4)


def test_relative_loss_is_abs_rel() -> None:
    depth, truth = torch.tensor([[2.0, 3.0, 50.0, 9.0]]), torch.tensor([[4.0, 2.0, 50.0, 1.0]])
    codec = DepthCodec(0.1, 80.0)
    mask = torch.tensor([[True, True, True, False]])
    loss = relative_depth_l1(codec.encode(depth), codec.encode(truth), mask, codec.log_range)
    assert loss.item() == pytest.approx((0.5 + 0.5 + 0.0) / 3, rel=1e-5)


def test_relative_loss_beyond_its_limit_is_flat() -> None:
    pred = torch.tensor([[2.0]], requires_grad=True)  # a factor of e^(L / 2 * 2), far over e^4
    loss = relative_depth_l1(pred, torch.zeros(1, 1), torch.ones(1, 1, dtype=bool), LOG_RANGE)
    assert loss.item() == pytest.approx(math.expm1(4.0), rel=1e-5)
    loss.backward()
    assert pred.grad is not None
    assert pred.grad.item() == 0.0


def test_kl_by_hand() -> None:
    zeros = torch.zeros(2, 4, 3, 3)
    assert kl_divergence(zeros, zeros).item() == 0.0
    mean, log_variance = torch.full((1, 1, 1, 2), 2.0), torch.full((1, 1, 1, 2), math.log(3.0))
    expected = 2 * 0.5 * (4.0 + 3.0 - 1.0 - math.log(3.0))
    assert kl_divergence(mean, log_variance).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_invalid_pixels_have_no_influence(name: str, seed: int) -> None:
    pred, target, mask = random_case(seed)
    spoilt_pred = torch.where(mask, pred, torch.full_like(pred, math.nan)).requires_grad_()
    spoilt_target = torch.where(mask, target, torch.full_like(target, math.inf))
    spoilt = LOSSES[name](spoilt_pred, spoilt_target, mask)
    assert spoilt.item() == pytest.approx(LOSSES[name](pred, target, mask).item())
    (gradient,) = torch.autograd.grad(spoilt, spoilt_pred)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any()


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_zero_at_the_truth_and_positive_elsewhere(name: str, seed: int) -> None:
    pred, target, mask = random_case(seed)
    assert LOSSES[name](target, target, mask).item() == 0.0
    assert LOSSES[name](pred, target, mask).item() > 0.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-1, 1))
def test_gradient_ignores_a_common_shift(seed: int, shift: float) -> None:
    pred, target, mask = random_case(seed)
    moved = multiscale_gradient_l1(pred + shift, target, mask)
    assert moved.item() == pytest.approx(multiscale_gradient_l1(pred, target, mask).item(), 1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("offset", [0.0, 1e-7, 1e-4])
def test_gradient_is_finite_at_and_near_the_truth(name: str, offset: float) -> None:
    _, target, mask = random_case(3)
    pred = (target + offset).requires_grad_()
    LOSSES[name](pred, target, mask).backward()
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()
    assert pred.grad.abs().sum() < 10.0


@pytest.mark.parametrize("name", LOSSES)
def test_no_valid_pixel_gives_zero_with_a_zero_gradient(name: str) -> None:
    pred, target, mask = random_case(1)
    pred.requires_grad_()
    value = LOSSES[name](pred, target, torch.zeros_like(mask))
    value.backward()
    assert value.item() == 0.0
    assert pred.grad is not None
    assert (pred.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_one_pixel_wide_pictures_and_half_precision(name: str) -> None:
    pred, target = torch.rand(1, 1, 1, 1).bfloat16(), torch.rand(1, 1, 1, 1).bfloat16()
    value = LOSSES[name](pred, target, ones(pred))
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_must_agree(name: str) -> None:
    pred, target, mask = random_case(1)
    with pytest.raises(ValueError, match="shapes differ"):
        LOSSES[name](pred, target[:1], mask)


@pytest.mark.parametrize("lam", [-0.1, 1.1])
def test_lambda_out_of_range(lam: float) -> None:
    pred, target, mask = random_case(1)
    with pytest.raises(ValueError, match=str(lam)):
        scale_aware_log_loss(pred, target, mask, LOG_RANGE, lam)


def test_scales_out_of_range() -> None:
    pred, target, mask = random_case(1)
    with pytest.raises(ValueError, match="scales"):
        multiscale_gradient_l1(pred, target, mask, scales=0)
