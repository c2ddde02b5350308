"""Stage ``download``: fetch what ``index.json`` lists, verify it, and say what is there.

Files are fetched into the workspace's scratch folder, where they survive an interruption and
the clean-up that precedes a rerun; only a complete, verified set is published (by hard links)
together with ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data.archives import ArchiveError, verify_archive
from metricgold.data.files import fresh_folder, human_bytes, sha256_of
from metricgold.data.mirrors import Mirror, addresses, first_that_works, open_mirrors
from metricgold.data.remote_zip import fetch_members
from metricgold.data.source import SourceFile, SourceIndex
from metricgold.data.transfer import DownloadError, MissingUpstreamError, Transfer
from metricgold.files import write_json
from metricgold.progress import progress_bar
from metricgold.workspace import Workspace

_SPARE = 1.05
"""Disk space asked for beyond the byte budget."""


@dataclass(frozen=True)
class Fetched:
    """One verified file: how it is now, and what it was upstream and taken from it."""

    path: str
    url: str
    size: int
    sha256: str
    upstream: str
    missing_members: list[str]


def run(config: ProfileConfig, workspace: Workspace, dataset: str) -> dict[str, Any]:
    """Download ``dataset`` and publish it with ``manifest.json``; returns the manifest.

    Raises:
        DownloadError: a file cannot be fetched or verified, too much is missing upstream,
            or the disk is too small. What has been fetched stays; a rerun goes on.
    """
    index = SourceIndex.load(workspace.source(dataset))
    settings = config.datasets[dataset]  # type: ignore[index]
    rendered = workspace.source(dataset) if index.source == "procedural" else None
    store = _Store(workspace.scratch(f"download_{dataset}"), workspace.raw(dataset))
    with (
        open_mirrors(settings.mirrors, rendered) as mirrors,
        Transfer(config.download, store.log) as transfer,
    ):
        fetched, missing = _fetch_all(index, mirrors, transfer, store, config.download.parallel)
    _check_missing(index, missing, settings)
    return store.publish(index, fetched, missing)


class _Store:
    """The scratch folder: fetched files, a record of what has been verified, and a log."""

    def __init__(self, scratch: Path, raw: Path) -> None:
        self.folder, self._raw = scratch / "files", raw
        self._record_path, self._log_path = scratch / "verified.json", scratch / "log.txt"
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record = self._load_record()

    def _load_record(self) -> dict[str, Fetched]:
        """The record, or else what a published manifest says of files that can be linked."""
        for path, folder in ((self._record_path, None), (self._raw / "manifest.json", self._raw)):
            try:
                entries = json.loads(path.read_text(encoding="utf-8"))["files"]
                record = {entry["path"]: Fetched(**entry) for entry in entries}
            except (OSError, ValueError, KeyError, TypeError):
                continue
            for name in record if folder else ():
                if not (self.folder / name).exists() and (self._raw / name).exists():
                    _link(self._raw / name, self.folder / name)
            return record
        return {}

    def log(self, line: str) -> None:
        """Note a line with the time; volatile, hence in no output."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._lock, self._log_path.open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {line}\n")

    def known(self, file: SourceFile) -> Fetched | None:
        """The record of ``file`` if it is here, whole, and still what upstream has."""
        entry, path = self._record.get(file.path), self.folder / file.path
        if entry is None or not path.exists() or entry.upstream != _upstream(file):
            return None
        if path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
            self.log(f"{file.path}: changed on disk, fetching again")
            return None
        return entry

    def remember(self, entry: Fetched) -> None:
        """Add a verified file to the record, at once."""
        with self._lock:
            self._record[entry.path] = entry
            write_json(self._record_path, {"files": [asdict(e) for e in self._record.values()]})

    def publish(
        self, index: SourceIndex, fetched: list[Fetched], missing: list[str]
    ) -> dict[str, Any]:
        """Link every file into the output folder and write its manifest last."""
        fresh_folder(self._raw)
        for entry in fetched:
            _link(self.folder / entry.path, self._raw / entry.path)
        manifest = {
            "dataset": index.dataset,
            "source": index.source,
            "reason": index.reason,
            "total_bytes": sum(entry.size for entry in fetched),
            "files": [asdict(entry) for entry in fetched],
            "missing": missing,
        }
        write_json(self._raw / "manifest.json", manifest)
        self._forget_others({entry.path for entry in fetched})
        return manifest

    def _forget_others(self, used: set[str]) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in used:
                path.unlink()


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _upstream(file: SourceFile) -> str:
    """Fingerprint of what upstream has and which part of it is wanted."""
    what = [file.size, file.sha256, file.members]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _fetch_all(
    index: SourceIndex,
    mirrors: list[Mirror],
    transfer: Transfer,
    store: _Store,
    parallel: int,
) -> tuple[list[Fetched], list[str]]:
    """(verified files, missing upstream) in the order of the index."""
    done = {file.path: entry for file in index.files if (entry := store.known(file))}
    todo = [file for file in index.files if file.path not in done]
    budget = sum(file.budget_bytes for file in todo)
    _announce(index, done, budget)
    _check_disk(index.dataset, store.folder, todo, budget)
    missing: dict[str, list[str]] = {path: entry.missing_members for path, entry in done.items()}
    with progress_bar(description=f"downloading {index.dataset}", total=budget, unit="B") as bar:

        def work(file: SourceFile) -> None:
            """Fetch one file and remember it, or note that it is missing upstream."""
            try:
                entry = _fetch_one(file, mirrors, transfer, store, bar.update)
            except MissingUpstreamError as error:
                store.log(str(error))
                missing[file.path] = file.members or [""]
                return
            store.remember(entry)
            done[file.path], missing[file.path] = entry, entry.missing_members

        _run_threads(work, todo, parallel)
    gone = [
        f"{file.path}!{member}" if member else file.path
        for file in index.files
        for member in missing[file.path]
    ]
    return [done[file.path] for file in index.files if file.path in done], gone


def _run_threads(work: Callable[[SourceFile], None], todo: list[SourceFile], parallel: int) -> None:
    """Stop at the first error; the files that are under way are finished first."""
    with ThreadPoolExecutor(parallel) as pool:
        futures: list[Future[None]] = [pool.submit(work, file) for file in todo]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for future in futures:
        if not future.cancelled():
            future.result()


def _fetch_one(
    file: SourceFile,
    mirrors: list[Mirror],
    transfer: Transfer,
    store: _Store,
    advance: Callable[[int], None],
) -> Fetched:
    target = store.folder / file.path
    missing: list[str] = []

    def attempt(url: str) -> None:
        if file.members is None:
            _fetch_whole(transfer, url, file, target, advance)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            missing[:] = fetch_members(transfer, url, file.members, target, advance)

    place, _ = first_that_works(addresses(mirrors, file.path, file.urls), attempt, store.log)
    size, digest = target.stat().st_size, sha256_of(target)
    return Fetched(file.path, place.label, size, digest, _upstream(file), missing)


def _fetch_whole(
    transfer: Transfer, url: str, file: SourceFile, target: Path, advance: Callable[[int], None]
) -> None:
    """Fetch, verify, rename; a file that fails is removed, so that a rerun starts anew."""
    part = target.with_name(target.name + ".part")
    if part.exists():
        advance(part.stat().st_size)
    transfer.fetch(url, part, advance)
    try:
        if file.size is not None and part.stat().st_size != file.size:
            raise ArchiveError(f"{part.stat().st_size} bytes instead of {file.size}")
        if file.sha256 is not None and sha256_of(part) != file.sha256:
            raise ArchiveError("its SHA-256 is not the expected one")
        verify_archive(part, name=target.name)
    except ArchiveError as error:
        advance(-part.stat().st_size)
        part.unlink()
        raise DownloadError(f"{url}: {error}") from None
    os.replace(part, target)


def _announce(index: SourceIndex, done: dict[str, Fetched], budget: int) -> None:
    if index.source == "none":
        print(f"{index.dataset}: nothing to download ({index.reason})")
        return
    here = sum(entry.size for entry in done.values())
    print(
        f"{index.dataset}: {len(index.files) - len(done)} files, {human_bytes(budget)} to fetch; "
        f"{len(done)} files, {human_bytes(here)} already here"
    )


def _check_disk(dataset: str, folder: Path, todo: list[SourceFile], budget: int) -> None:
    begun = [folder / f"{file.path}.part" for file in todo]
    here = sum(path.stat().st_size for path in begun if path.exists())
    needed = int((budget - here) * _SPARE)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{dataset}: {human_bytes(needed)} are needed but only {human_bytes(free)} are free "
            f"at {folder}; free some space or narrow datasets.{dataset}.include"
        )


def _check_missing(index: SourceIndex, missing: list[str], settings: DatasetConfig) -> None:
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
