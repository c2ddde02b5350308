"""Optimizers: AdamW for everything, or Muon for the hidden weights and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from metricgold.config import MuonConfig, OptimizerConfig
from metricgold.errors import UserError
from metricgold.training.sharding import divide_state

MIN_HIDDEN_CHANNELS = 16
"""A weight with fewer inputs or outputs touches pixels or latents: AdamW's, as Muon advises."""


class ConvMuon(torch.optim.Muon):
    """``torch.optim.Muon``, which takes matrices only, on convolutions too.

    A kernel [out, in, h, w] is seen as the matrix [out, in h w] that shares its memory.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], config: MuonConfig, weight_decay: float
    ) -> None:
        self._weights = list(parameters)
        self._matrices = [nn.Parameter(p.detach().view(len(p), -1)) for p in self._weights]
        super().__init__(
            self._matrices,
            lr=config.lr,
            momentum=config.momentum,
            ns_steps=config.ns_steps,
            weight_decay=weight_decay,
        )

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step from the gradients of the weights as they were given."""
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            matrix.data = weight.detach().view(len(weight), -1)  # DDP may have moved the weight
            matrix.grad = None if weight.grad is None else weight.grad.reshape(matrix.shape)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights and of the matrices."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None


class Optimizers:
    """What one training run steps with; learning rates follow one schedule.

    With ``config.muon``, every weight with at least :data:`MIN_HIDDEN_CHANNELS` inputs and
    outputs goes to Muon, everything else to AdamW.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig) -> None:
        trained = [p for p in network.parameters() if p.requires_grad]
        hidden = [p for p in trained if config.muon and _is_hidden(p)]
        ids = {id(p) for p in hidden}
        rest = [p for p in trained if id(p) not in ids]
        self._optimizers: list[torch.optim.Optimizer] = []
        if config.muon and hidden:
            self._optimizers.append(ConvMuon(hidden, config.muon, config.weight_decay))
        if rest:
            self._optimizers.append(_adam(rest, config))
        for group in self._groups():
            group["peak_lr"] = group["lr"]

    def prepare(
        self, accelerator: Accelerator, objective: nn.Module, divided: bool = False
    ) -> nn.Module:
        """Hand everything to ``accelerator``; returns the objective to call from now on.

        ``divided``: the network is, so that no process has a copy of it to keep the same.
        """
        self._optimizers = [accelerator.prepare_optimizer(o) for o in self._optimizers]
        return accelerator.prepare_model(objective, evaluation_mode=divided)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for o in self._optimizers for group in o.param_groups]

    def set_rate(self, share: float) -> None:
        """Set every learning rate to ``share`` of its peak."""
        for group in self._groups():
            group["lr"] = group["peak_lr"] * share

    def state_numbers(self) -> int:
        """Numbers of state once training goes on: two a weight for AdamW, one for Muon."""
        return sum(
            (1 if isinstance(optimizer, ConvMuon) else 2) * parameter.numel()
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        )

    def step(self) -> None:
        """One step, then the gradients are forgotten."""
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of each, for :meth:`load_state_dict` of the same network and config."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """What :meth:`state_dict` gave."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
            divide_state(optimizer)


def _adam(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    if not config.adam_8bit:
        return torch.optim.AdamW(
            parameters, config.lr, weight_decay=config.weight_decay, fused=True
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            f"'adam_8bit' needs the extra '8bit' (pip install 'metricgold[8bit]'): {error}"
        ) from None
    made: torch.optim.Optimizer = AdamW8bit(parameters, config.lr, weight_decay=config.weight_decay)
    return made


def _is_hidden(parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= MIN_HIDDEN_CHANNELS
