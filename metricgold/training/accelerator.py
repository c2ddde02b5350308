"""Where training runs: device, precision and processes, by Hugging Face Accelerate.

A stage started by ``accelerate launch`` or ``torchrun`` runs in several processes. All of them
compute, the main one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from metricgold.config import Precision, TrackingConfig
from metricgold.files import replaced_folder

Exact = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[Exact, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def precision_on(device: torch.device, precision: Precision) -> Exact:
    """What ``auto`` stands for on a device: bf16 where it has units for it, else fp32.

    A CPU has them with AMX or AVX-512's bf16 instructions (measured with the latter: 4 to 6 times
    the rate of fp32); one with AVX-512 alone was measured to multiply bf16 at 0.4 to 0.6 times it.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast else "fp32"


def make_accelerator(precision: Precision, tracking: TrackingConfig | None = None) -> Accelerator:
    """An accelerator of this precision; params decide it, not ``accelerate launch``.

    Accelerate keeps one state a process, but a stage may train twice with different precision:
    the state is made anew, the group of processes stays.
    """
    _process()
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=_MIXED[precision_on(default_device(), precision)],
        log_with=list(tracking.trackers) or None if tracking else None,
        project_dir=tracking.folder if tracking else None,
    )


def _process() -> PartialState:
    """This process among those that train; without a GPU they talk by gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def autocast(precision: Precision, device: torch.device) -> Any:
    """The autocast context of a precision name (fp32: none)."""
    exact = precision_on(device, precision)
    return torch.autocast(device.type, _DTYPES[exact], enabled=exact != "fp32")


def default_device() -> torch.device:
    """This process's GPU when there is one, else the CPU."""
    return torch.device(_process().device)


def use_all_cores() -> None:
    """Let torch use every core this process may run on, or its share of them."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return bool(_process().is_main_process)


def wait_for_everyone() -> None:
    """Go on when every process has come here."""
    _process().wait_for_everyone()


@contextmanager
def written_by_main(path: Path) -> Iterator[Path | None]:
    """As :func:`~metricgold.files.replaced_folder`, for the main process; None for the others.

    No process leaves the block before the folder is complete.
    """
    if is_main():
        with replaced_folder(path) as folder:
            yield folder
    else:
        yield None
    wait_for_everyone()
