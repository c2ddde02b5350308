"""Training losses on ``depth_norm``: reconstruction, gradients, metric scale, KL.

Everything takes [B, 1, H, W] tensors and a bool mask of the same shape. A pixel that is
not valid has no influence on value or gradient, even if it holds NaN, and a batch
without a single valid pixel gives 0 rather than NaN. The means run in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _masked_difference(pred: Tensor, target: Tensor, valid_mask: Tensor) -> Tensor:
    """``pred - target`` in fp32, zero (value and gradient) where not valid."""
    if pred.shape != target.shape or pred.shape != valid_mask.shape:
        raise ValueError(
            f"shapes differ: prediction {tuple(pred.shape)}, target {tuple(target.shape)}, "
            f"mask {tuple(valid_mask.shape)}"
        )
    zero = torch.zeros((), device=pred.device)
    return torch.where(valid_mask, pred.float(), zero) - torch.where(
        valid_mask, target.float(), zero
    )


def masked_l1(pred: Tensor, target: Tensor, valid_mask: Tensor) -> Tensor:
    """Mean of ``|pred - target|`` over all valid pixels of the batch."""
    difference = _masked_difference(pred, target, valid_mask)
    return difference.abs().sum() / valid_mask.sum().clamp_min(1)


def _gradient_l1(difference: Tensor, valid_mask: Tensor) -> Tensor:
    """Mean absolute neighbour difference, both axes, over pairs whose two pixels are valid."""
    total = difference.new_zeros(())
    pairs = torch.zeros((), dtype=torch.long, device=difference.device)
    for axis in (-2, -1):
        length = difference.shape[axis] - 1
        if length < 1:
            continue
        step = difference.diff(dim=axis)
        both = valid_mask.narrow(axis, 1, length) & valid_mask.narrow(axis, 0, length)
        total = total + torch.where(both, step, torch.zeros_like(step)).abs().sum()
        pairs = pairs + both.sum()
    return total / pairs.clamp_min(1)


def multiscale_gradient_l1(
    pred: Tensor, target: Tensor, valid_mask: Tensor, scales: int = 4
) -> Tensor:
    """L1 between the gradients of prediction and target, mean over ``scales`` octaves.

    Octave ``i`` takes every ``2^i``-th row and column (no averaging, so that no depth is
    invented across an edge); a pair counts only if both its pixels are valid. Octaves in
    which the picture is smaller than two pixels add 0.
    Source: Li & Snavely 2018 (MegaDepth), there with a sum instead of the mean.
    """
    if scales < 1:
        raise ValueError(f"scales must be at least 1, got {scales}")
    difference = _masked_difference(pred, target, valid_mask)
    strides = [2**i for i in range(scales)]
    terms = [_gradient_l1(difference[..., ::s, ::s], valid_mask[..., ::s, ::s]) for s in strides]
    return torch.stack(terms).mean()


def scale_aware_log_loss(
    pred_norm: Tensor,
    target_norm: Tensor,
    valid_mask: Tensor,
    log_range: float,
    lam: float,
) -> Tensor:
    """``sqrt(mean g^2 - lam (mean g)^2)`` an image with ``g = ln(d_pred / d_true)``, then the mean.

    Args:
        pred_norm, target_norm: depth_norm of the log codec, hence ``g = dx L / 2``.
        log_range: the codec's ``L = ln(d_max / d_min)``.
        lam: share of a common scale error that is forgiven, in [0, 1]. At 1 the loss is
            scale-invariant (Eigen et al. 2014); below 1 the metric scale is supervised.

    Images without valid pixels are left out of the mean. The radicand is computed as
    ``var g + (1 - lam) (mean g)^2``, which never becomes negative by rounding, and is kept
    above 1e-12, so that the gradient at a perfect prediction is 0 rather than infinite.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    g = _masked_difference(pred_norm, target_norm, valid_mask) * (log_range / 2.0)
    axes = (1, 2, 3)
    count = valid_mask.sum(dim=axes)  # [B]
    mean = g.sum(dim=axes) / count.clamp_min(1)
    centred = torch.where(valid_mask, g - mean.view(-1, 1, 1, 1), torch.zeros_like(g))
    variance = centred.square().sum(dim=axes) / count.clamp_min(1)
    radicand = variance + (1.0 - lam) * mean.square()
    per_image = radicand.clamp_min(1e-12).sqrt() * (radicand > 1e-12)
    return per_image.sum() / (count > 0).sum().clamp_min(1)


def relative_depth_l1(
    pred_norm: Tensor, target_norm: Tensor, valid_mask: Tensor, log_range: float, limit: float = 4.0
) -> Tensor:
    """Mean of ``|d_pred / d_true - 1|`` over all valid pixels: AbsRel as a loss.

    ``ln(d_pred / d_true)`` is clipped to ``[-limit, limit]``, beyond which the gradient is 0:
    a pixel that is wrong by more than a factor of 55 is left to the losses in log-depth.
    """
    g = _masked_difference(pred_norm, target_norm, valid_mask) * (log_range / 2.0)
    return g.clamp(-limit, limit).expm1().abs().sum() / valid_mask.sum().clamp_min(1)


def laplace_nll(log_error: Tensor, error: Tensor, valid_mask: Tensor) -> Tensor:
    """Mean of ``error / exp(log_error) + log_error`` over all valid pixels.

    Least where ``exp(log_error)`` is the expected ``error``: the negative log-likelihood of a
    Laplace distribution, less ln 2. Source: Kendall & Gal 2017.
    """
    error = torch.where(valid_mask, error.float(), torch.zeros_like(error, dtype=torch.float32))
    log_error = log_error.float()
    value = torch.where(valid_mask, error * (-log_error).exp() + log_error, 0.0)
    return value.sum() / valid_mask.sum().clamp_min(1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)), [B, C, h, w], from N(0, 1): nats an image, mean over B."""
    mean, log_variance = mean.float(), log_variance.float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return kl.sum(dim=(1, 2, 3)).mean()
