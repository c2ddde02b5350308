"""Stage ``download``: fetch what ``index.json`` lists, verify it, and say what is there.

Files are fetched into the workspace's scratch folder, where they survive an interruption and
the clean-up that precedes a rerun; only a complete, verified set is published (by hard links)
together with ``manifest.json``. With ``streaming`` this stage only checks that the disk is large
enough: the stage ``preprocess`` fetches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data import budget
from metricgold.data.dataset import Dataset
from metricgold.data.fetching import Fetched, Store, link, open_fetcher
from metricgold.data.files import fresh_folder, human_bytes, sha256_of
from metricgold.data.registry import get_dataset
from metricgold.data.source import INDEX_FILE, SourceIndex
from metricgold.data.transfer import DownloadError
from metricgold.files import write_json
from metricgold.progress import progress_bar
from metricgold.workspace import Workspace


def run(config: ProfileConfig, workspace: Workspace, dataset: str) -> dict[str, Any]:
    """Download ``dataset`` and publish it with ``manifest.json``; returns the manifest.

    Raises:
        DownloadError: a file cannot be fetched or verified, too much is missing upstream,
            or the disk is too small. What has been fetched stays; a rerun goes on.
    """
    index = SourceIndex.load(workspace.source(dataset))
    reader = get_dataset(dataset)
    settings = config.datasets[reader.name]
    store = Store(workspace.scratch(f"download_{dataset}"), workspace.raw(dataset))
    streaming = settings.streaming and index.source != "none"
    _announce(index, reader, streaming, config.download.parallel)
    fetched: list[Fetched] = []
    missing: list[str] = []
    if streaming:
        plan = budget.streaming_budget(reader, index.files)
        budget.check_disk(dataset, plan, 0, store.folder, config.download.max_disk_gb)
    else:
        fetched, missing = _fetch(config, workspace, reader, index, store)
        check_missing(index, missing, settings)
    raw = fresh_folder(workspace.raw(dataset))
    for entry in fetched:
        link(store.folder / entry.path, raw / entry.path)
    manifest = {
        **described(index, reader, fetched, missing),
        "streaming": streaming,
        "to_stream": sha256_of(workspace.source(dataset) / INDEX_FILE) if streaming else "",
    }
    write_json(raw / "manifest.json", manifest)
    store.forget_others({entry.path for entry in fetched})
    return manifest


def described(
    index: SourceIndex, reader: Dataset, fetched: Sequence[Fetched], missing: Sequence[str]
) -> dict[str, Any]:
    """What a manifest says: each file's address, size, hash and time, the licence, the gaps."""
    return {
        "dataset": index.dataset,
        "source": index.source,
        "reason": index.reason,
        "licence": reader.licence if index.source == "mirrors" else "",
        "total_bytes": sum(entry.size for entry in fetched),
        "files": [asdict(entry) for entry in fetched],
        "missing": list(missing),
    }


def check_missing(index: SourceIndex, missing: Sequence[str], settings: DatasetConfig) -> None:
    """Say what is missing upstream.

    Raises:
        DownloadError: it is more than ``max_missing_share``.
    """
    listed = sum(1 if file.members is None else len(file.members) for file in index.files)
    if not missing:
        return
    share = len(missing) / listed
    told = (
        f"{index.dataset}: {len(missing)} of {listed} listed files are missing upstream "
        f"({share:.1%}), the first is {missing[0]}"
    )
    if share > settings.max_missing_share:
        raise DownloadError(
            f"{told}; max_missing_share allows {settings.max_missing_share:.1%}, "
            "check the mirror or narrow 'include'"
        )
    print(f"{told}; tolerated")


def _announce(index: SourceIndex, reader: Dataset, streaming: bool, parallel: int) -> None:
    if index.source == "none":
        print(f"{index.dataset}: nothing to download ({index.reason})")
        return
    if index.source == "mirrors":
        print(f"{index.dataset}: licence {reader.licence}")
    plan = (
        budget.streaming_budget(reader, index.files)
        if streaming
        else budget.whole_budget(reader, index.files, parallel)
    )
    how = "streamed while it is converted, " if streaming else ""
    print(f"{index.dataset}: {how}{plan.sentence()} (shards estimated)")


def _fetch(
    config: ProfileConfig,
    workspace: Workspace,
    reader: Dataset,
    index: SourceIndex,
    store: Store,
) -> tuple[list[Fetched], list[str]]:
    settings, dataset = config.datasets[reader.name], index.dataset
    done = store.known(index.files)
    todo = [file for file in index.files if file.path not in done]
    left = sum(file.budget_bytes for file in todo)
    here = sum(entry.size for entry in done.values())
    if index.source != "none":
        print(
            f"{dataset}: {len(todo)} files, {human_bytes(left)} to fetch; "
            f"{len(done)} files, {human_bytes(here)} already here"
        )
    begun = [store.folder / f"{file.path}.part" for file in todo]
    here += sum(path.stat().st_size for path in begun if path.exists())
    plan = budget.whole_budget(reader, index.files, config.download.parallel)
    budget.check_disk(dataset, plan, here, store.folder, config.download.max_disk_gb)
    rendered = workspace.source(dataset)
    with (
        open_fetcher(index, settings, config.download, rendered, store.log) as fetcher,
        progress_bar(description=f"downloading {dataset}", total=left, unit="B") as bar,
    ):
        fetcher.advance = bar.update
        return fetcher.fetch(index.files, store, done)
