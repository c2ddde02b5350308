"""How many bytes a dataset will take on the way and in the end, told before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from metricgold.data.dataset import Dataset
from metricgold.data.files import human_bytes
from metricgold.data.shard_writer import SHARD_BYTES
from metricgold.data.source import SourceFile
from metricgold.data.transfer import DownloadError

_SPARE = 1.05
"""Disk space asked for beyond the byte budget."""


@dataclass(frozen=True)
class Budget:
    """Bytes: to download, most on disk at once, on disk in the end.

    The shards' part of it is an estimate (``Dataset.shard_share``).
    """

    download: int
    peak: int
    final: int

    def sentence(self) -> str:
        """The budget in words."""
        download, peak, final = map(human_bytes, (self.download, self.peak, self.final))
        return f"{download} to download, at most {peak} on disk at once, {final} in the end"


def whole_budget(reader: Dataset, files: Sequence[SourceFile], parallel: int) -> Budget:
    """Archives and shards are on disk together, and both stay.

    A zip that is made of single members lies there twice for a moment, ``parallel`` at once.
    """
    download = sum(file.budget_bytes for file in files)
    shards = int(download * reader.shard_share)
    twice = sorted((f.budget_bytes for f in files if f.members is not None), reverse=True)
    return Budget(download, download + max(shards, sum(twice[:parallel])), download + shards)


def streaming_budget(reader: Dataset, files: Sequence[SourceFile]) -> Budget:
    """Of the archives only two groups at once (the second one twice while zips are made of single
    members); of the shards, one twice while it is packed."""
    groups = grouped(reader, files)
    sizes = [sum(file.budget_bytes for file in group) for group in groups.values()]
    ways = [
        sum(file.budget_bytes * (1 if file.members is None else 2) for file in group)
        for group in groups.values()
    ]
    shared = sum(file.budget_bytes for file in files if reader.group_of(file.path) is None)
    largest = max((a + b for a, b in zip([0, *sizes], [*ways, 0], strict=True)), default=0)
    final = int(sum(sizes) * reader.shard_share)
    packed = min(final, SHARD_BYTES + int(max(sizes, default=0) * reader.shard_share))
    return Budget(sum(sizes) + shared, 3 * shared + largest + final + packed, final)


class Named(Protocol):
    """A file of a dataset."""

    @property
    def path(self) -> str:
        """As in the dataset's layout."""
        ...


_File = TypeVar("_File", bound=Named)


def grouped(reader: Dataset, files: Sequence[_File]) -> dict[str, list[_File]]:
    """The groups of files that are streamed one after the other, in the order of their names."""
    groups: dict[str, list[_File]] = {}
    for file in files:
        name = reader.group_of(file.path)
        if name is not None:
            groups.setdefault(name, []).append(file)
    return dict(sorted(groups.items()))


def check_disk(
    dataset: str, budget: Budget, here: int, folder: Path, max_disk_gb: float | None
) -> None:
    """Refuse a budget that the disk of ``folder`` or ``max_disk_gb`` has no room for.

    Args:
        here: bytes of the budget that are on disk already.

    Raises:
        DownloadError: there is too little room.
    """
    advice = (
        f"free some space, set datasets.{dataset}.streaming or narrow datasets.{dataset}.include"
    )
    if max_disk_gb is not None and budget.peak > max_disk_gb * 1e9:
        raise DownloadError(
            f"{dataset}: {human_bytes(budget.peak)} would be on disk at once, but "
            f"download.max_disk_gb allows {max_disk_gb:g} GB; {advice}"
        )
    needed, free = int((budget.peak - here) * _SPARE), shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{dataset}: {human_bytes(needed)} are needed but only {human_bytes(free)} are free "
            f"at {folder}; {advice}"
        )
