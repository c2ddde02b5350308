"""Weights, gradients and optimizer state divided among the processes, by torch's FSDP2.

For a network that does not fit one GPU together with its optimizer. Checkpoints are those of an
undivided run: what is divided is put together to be saved, and divided again when it is read.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

UNITS = ("ResnetBlock2D", "Transformer2DModel", "Encoder", "Decoder")
"""Classes of diffusers' modules whose weights are put together when they run, and no sooner."""

OF_A_VAE = ("quant_conv", "post_quant_conv")
CALLED = ("encode", "decode")
"""What belongs to no part of a VAE, and the methods that are called in place of its ``forward``.

Its own weights must all lie in parts: ``encode`` gives a distribution, in which FSDP does not find
the tensors that it has to watch.
"""


def sharded_copy(network: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """A copy of ``network`` on ``device`` that is divided; ``network`` itself moves to the CPU."""
    network.to("cpu")
    divided = copy.deepcopy(network)
    mesh = init_device_mesh(device.type, (processes,))
    for name, module in reversed(list(divided.named_modules())):  # the innermost first
        if type(module).__name__ in UNITS or name in OF_A_VAE:
            fully_shard(module, mesh=mesh)
    fully_shard(divided, mesh=mesh)
    for name in CALLED:
        if hasattr(divided, name):
            register_fsdp_forward_method(divided, name)
    return divided.to(device)


def is_divided(network: nn.Module) -> bool:
    """Whether it is what :func:`sharded_copy` gave."""
    return isinstance(network, FSDPModule)


def synchronise(network: nn.Module, now: bool) -> None:
    """Whether the next backward pass of a divided network averages gradients over processes."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)


def whole(state: Any) -> Any:
    """``state`` (dictionaries, lists) with every divided tensor put together on the CPU.

    All processes must come here. Other tensors are left as they are.
    """
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def divided_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of ``like``, and divided if ``like`` is and the shapes agree."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


@torch.no_grad()
def load_whole(network: nn.Module, state: dict[str, Tensor]) -> None:
    """``load_state_dict`` of whole tensors into a network that may be divided."""
    own = network.state_dict()
    network.load_state_dict({n: divided_like(value, own[n]) for n, value in state.items()})


def divide_state(optimizer: torch.optim.Optimizer) -> None:
    """Divide the state that was read for divided weights."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim:
                state[name] = divided_like(value, parameter)
