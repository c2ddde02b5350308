"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
