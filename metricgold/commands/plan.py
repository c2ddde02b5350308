"""``metricgold plan``: what training would take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    profile: Annotated[str | None, typer.Option(help="Else the one of params.yaml.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="GPUs that share the work.")] = 1,
    params: Annotated[Path, typer.Option(help="The file of profiles.")] = Path("params.yaml"),
) -> None:
    """Say what training a profile will take: parameters, memory, FLOPs, hours. Trains nothing."""
    from metricgold.config import load_config
    from metricgold.training.accelerator import default_device
    from metricgold.training.plan import describe, plan

    for line in describe(plan(load_config(params, profile)), default_device(), processes):
        print(line)
