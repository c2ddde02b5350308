"""Micro-batches in order, read ahead by other processes while a training step runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metricgold.errors import UserError
from metricgold.processes import die_with_parent

Batch = dict[str, Tensor]

READ_AHEAD = 2
"""Micro-batches that every reading process keeps ready."""

MOST_WORKERS = 8


class MicroBatches(Protocol):
    """Micro-batches by number: item ``n`` depends on ``n`` alone, and instances can be pickled."""

    def __getitem__(self, number: int, /) -> Batch:
        """Micro-batch ``number``."""
        ...


def loader_workers(asked: int | None, device: torch.device) -> int:
    """Processes that read ahead: ``asked``, or by where training runs.

    On the CPU none: every core is busy with the step. On a GPU a core each but one, at most 8.
    """
    if asked is not None:
        return asked
    if device.type == "cpu":
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1)


class _Errors(Dataset[Batch | UserError]):
    """``batches`` with a user's error as a value: torch would wrap it into a page of traceback."""

    def __init__(self, batches: MicroBatches) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Batch | UserError:
        try:
            return self.batches[index]
        except UserError as error:
            return error


def _end_with_parent(_: int) -> None:
    """Once a stage is gone nothing may hold its lock; torch would notice after some seconds."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()


class BatchLoader:
    """Iterates over ``batches[n]`` for ``numbers``, in their order whatever ``workers`` is.

    Attributes:
        waited_s: seconds that the consumer has waited for batches so far.

    Raises:
        UserError: of a micro-batch, when its turn comes; or a reading process died.
    """

    def __init__(self, batches: MicroBatches, numbers: Sequence[int], workers: int = 0) -> None:
        self.waited_s = 0.0
        self._loader = DataLoader(
            _Errors(batches),
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=READ_AHEAD if workers else None,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # the default one would lose a number to the loader
        )

    def __iter__(self) -> Iterator[Batch]:
        items = iter(self._loader)
        while True:
            began = time.perf_counter()
            try:
                item = next(items, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error) or "Caught" in str(error):
                    raise
                raise UserError(
                    f"a process that reads training data died ({' '.join(str(error).split())}); "
                    "give the machine or container more (shared) memory or lower 'loader.workers'"
                ) from None
            self.waited_s += time.perf_counter() - began
            if item is None:
                return
            if isinstance(item, UserError):
                raise item
            yield item
