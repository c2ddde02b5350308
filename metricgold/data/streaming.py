"""Scene streaming: download a group of files, convert it, delete it, and go on to the next.

While one group is converted the next is downloaded; all others are on disk only as shards. A
group that is converted is written down, so that an interrupted run goes on with the next one.
Shards of groups are packed into larger ones as soon as there are enough.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metricgold.config import DatasetName, ProfileConfig
from metricgold.data import budget
from metricgold.data.conversion import Tally, convert, settings_that_matter, worker_pool
from metricgold.data.dataset import SPLITS, Split
from metricgold.data.download import check_missing, described
from metricgold.data.fetching import Fetched, Fetcher, Store, link, open_fetcher
from metricgold.data.registry import get_dataset
from metricgold.data.shard_writer import SHARD_BYTES, merge_shards
from metricgold.data.shards import SUFFIX, shard_paths
from metricgold.data.source import SourceFile, SourceIndex
from metricgold.files import replaced_folder, write_json, write_text
from metricgold.progress import progress_bar
from metricgold.workspace import Workspace

_GROUP = "group.pickle"
"""What is known of a converted group besides its shards; read by nobody but this module."""


def stream(
    config: ProfileConfig, workspace: Workspace, dataset: DatasetName, folder: Path
) -> tuple[dict[Split, Tally], dict[str, Any]]:
    """Download and convert ``dataset`` group by group into shards in ``folder``.

    ``folder`` also gets ``manifest.json``, as the stage ``download`` writes it otherwise.

    Returns:
        What was counted, and the manifest.

    Raises:
        DownloadError: a file cannot be fetched or verified, too much is missing upstream, or
            the disk is too small. Finished groups stay; a rerun goes on.
        DatasetError: the frames do not fit the configuration.
    """
    index = SourceIndex.load(workspace.source(dataset))
    reader, settings = get_dataset(dataset), config.datasets[dataset]
    groups = budget.grouped(reader, index.files)
    shared = [file for file in index.files if reader.group_of(file.path) is None]
    state = _State(workspace.scratch(f"stream_{dataset}"), _fingerprint(config, dataset, index))
    plan = budget.streaming_budget(reader, index.files)
    print(f"{dataset}: {plan.sentence()} (shards estimated)")
    budget.check_disk(dataset, plan, state.size(), state.folder, config.download.max_disk_gb)
    todo = [name for name in groups if not state.has(name)]
    left = sum(file.budget_bytes for name in todo for file in groups[name])
    common_store = state.store("")
    with (
        open_fetcher(
            index, settings, config.download, workspace.source(dataset), common_store.log
        ) as fetcher,
        progress_bar(description=f"streaming {dataset}", total=left, unit="B") as bar,
        worker_pool(config.preprocess.workers) as pool,
    ):
        common = _fetch(fetcher, common_store, shared)
        fetcher.advance = bar.update
        for name, store, got in _fetched_ahead(fetcher, state, todo, groups):
            for entry in common.files:
                if not (store.folder / entry.path).exists():
                    link(common_store.folder / entry.path, store.folder / entry.path)
            with replaced_folder(state.converted(name)) as part:
                hashes = {entry.path: entry.sha256 for entry in got.files}
                tallies = convert(config, dataset, store.folder, part, pool, hashes, False)
                (part / _GROUP).write_bytes(pickle.dumps((got, tallies)))
            state.drop(name)
            state.pack(groups, SHARD_BYTES)
    total: dict[Split, Tally] = {split: Tally() for split in SPLITS}
    for name in groups:
        got, tallies = pickle.loads((state.converted(name) / _GROUP).read_bytes())
        common.add(got)
        for split in SPLITS:
            total[split].merge(tallies[split])
    check_missing(index, common.missing, settings)
    state.pack(groups, 0)
    for path in state.shards():
        link(path, folder / path.name)
    manifest = {**described(index, reader, common.files, common.missing), "streaming": True}
    write_json(folder / "manifest.json", manifest)
    shutil.rmtree(state.folder)
    return total, manifest


@dataclass
class _Got:
    """What was fetched of some files, and what is missing upstream."""

    files: list[Fetched]
    missing: list[str]

    def add(self, other: _Got) -> None:
        self.files += other.files
        self.missing += other.missing


def _fetch(fetcher: Fetcher, store: Store, files: Sequence[SourceFile]) -> _Got:
    return _Got(*fetcher.fetch(files, store, store.known(files)))


def _fetched_ahead(
    fetcher: Fetcher, state: _State, names: Sequence[str], groups: Mapping[str, list[SourceFile]]
) -> Iterator[tuple[str, Store, _Got]]:
    """Each group as it is there; the next one is fetched meanwhile."""
    with ThreadPoolExecutor(1) as thread:

        def begin(name: str) -> tuple[str, Store, Future[_Got]]:
            """Start to fetch a group."""
            store = state.store(name)
            return name, store, thread.submit(_fetch, fetcher, store, groups[name])

        waiting = deque(map(begin, names[:1]))
        try:
            for following in range(1, len(names) + 1):
                name, store, future = waiting.popleft()
                got = future.result()
                waiting.extend(map(begin, names[following : following + 1]))
                yield name, store, got
        except BaseException:
            fetcher.stop()
            raise


class _State:
    """The scratch folder: groups being fetched, converted groups, packed shards.

    It is begun anew where ``fingerprint`` differs from that of its last use.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        stamp, self._packed_path = folder / "fingerprint", folder / "packed.json"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(stamp, fingerprint)

    def size(self) -> int:
        """Bytes that are on disk already."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def store(self, name: str) -> Store:
        """Where the files of a group are fetched to."""
        return Store(self.folder / "fetched" / _short(name))

    def drop(self, name: str) -> None:
        """Delete the files of a converted group."""
        shutil.rmtree(self.folder / "fetched" / _short(name))

    def converted(self, name: str) -> Path:
        """Folder of a converted group: its shards until they are packed, and ``_GROUP``."""
        return self.folder / "converted" / _short(name)

    def has(self, name: str) -> bool:
        """Whether a group is converted."""
        return (self.converted(name) / _GROUP).exists()

    def shards(self) -> list[Path]:
        """The packed shards."""
        packed = self._packed()
        folder = self.folder / "packed"
        return [
            folder / f"{split}-{number:03d}{SUFFIX}"
            for split in SPLITS
            for number in range(packed[split])
        ]

    def pack(self, names: Iterable[str], at_least: int) -> None:
        """Put the shards of converted groups together once they have ``at_least`` bytes.

        The record is written when the new shards are complete, and only then are the old ones
        deleted, so that a crash at any point loses nothing.
        """
        packed = self._packed()
        parts = {
            split: [p for n in names if self.has(n) and n not in packed["groups"]
                    for p in shard_paths(self.converted(n), split)]
            for split in SPLITS
        }  # fmt: skip
        everything = [path for paths in parts.values() for path in paths]
        if not everything or sum(path.stat().st_size for path in everything) < at_least:
            return
        for split, paths in parts.items():
            if paths:
                name = f"{split}-{packed[split]:03d}{SUFFIX}"
                merge_shards(paths, self.folder / "packed" / name)
                packed[split] += 1
        packed["groups"] += [n for n in names if self.has(n) and n not in packed["groups"]]
        write_json(self._packed_path, packed)
        for path in everything:
            path.unlink()

    def _packed(self) -> dict[str, Any]:
        if not self._packed_path.exists():
            return {"groups": [], **dict.fromkeys(SPLITS, 0)}
        return json.loads(self._packed_path.read_text(encoding="utf-8"))


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def _fingerprint(config: ProfileConfig, dataset: DatasetName, index: SourceIndex) -> str:
    """Of everything that decides what a group becomes."""
    parts = [*settings_that_matter(config, dataset), asdict(index)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
