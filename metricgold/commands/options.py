"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metricgold.errors import UserError

CHECKPOINT = Path("artifacts/metricgold")

CheckpointOption = Annotated[
    str,
    typer.Option(
        "--checkpoint", help="A checkpoint's folder, or a repository of the Hugging Face hub."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")
]
DtypeOption = Annotated[
    str, typer.Option(help="float32, float16 or bfloat16; metres are float32 in any case.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what exists.")]


def usable_device(name: str | None) -> str:
    """What ``--device`` says; a GPU if there is one where it says nothing.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    from metricgold.training.accelerator import default_device

    device = name or str(default_device())
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: cannot be used here ({reason})") from None
    return device
