"""Fetching a dataset's files into a folder where they survive an interruption.

Every file is verified and written down before it counts as there; a rerun fetches only what is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from metricgold.config import DatasetConfig, DownloadConfig
from metricgold.data.archives import ArchiveError, verify_archive
from metricgold.data.files import sha256_of
from metricgold.data.mirrors import Mirror, addresses, first_that_works, open_mirrors
from metricgold.data.remote_zip import fetch_members
from metricgold.data.source import SourceFile, SourceIndex
from metricgold.data.transfer import DownloadError, MissingUpstreamError, Transfer
from metricgold.files import write_json


@dataclass(frozen=True)
class Fetched:
    """One verified file: how it is now, and what it was upstream and taken from it.

    ``fetched_at`` is the time in UTC; empty for rendered archives, so that rendering again gives
    the same manifest.
    """

    path: str
    url: str
    size: int
    sha256: str
    upstream: str
    missing_members: list[str]
    fetched_at: str = ""


class Store:
    """A scratch folder: fetched files, a record of what has been verified, and a log.

    ``published`` is where such files were linked to before, with a ``manifest.json``: what it
    still has need not be fetched again.
    """

    def __init__(self, scratch: Path, published: Path | None = None) -> None:
        self.folder, self._published = scratch / "files", published
        self._record_path, self._log_path = scratch / "verified.json", scratch / "log.txt"
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record = self._load_record()

    def _load_record(self) -> dict[str, Fetched]:
        """The record, or else what a published manifest says of files that can be linked."""
        record = _read_record(self._record_path)
        if record is None and self._published is not None:
            record = _read_record(self._published / "manifest.json")
            for name in record or ():
                here, there = self.folder / name, self._published / name
                if not here.exists() and there.exists():
                    link(there, here)
        return record or {}

    def log(self, line: str) -> None:
        """Note a line with the time; volatile, hence in no output."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._lock, self._log_path.open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {line}\n")

    def known(self, files: Sequence[SourceFile]) -> dict[str, Fetched]:
        """The records of those ``files`` that are here, whole, and still what upstream has."""
        return {file.path: entry for file in files if (entry := self._known(file))}

    def _known(self, file: SourceFile) -> Fetched | None:
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

    def forget_others(self, used: set[str]) -> None:
        """Delete every file that is not ``used``."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in used:
                path.unlink()


def _read_record(path: Path) -> dict[str, Fetched] | None:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {entry["path"]: Fetched(**entry) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def link(source: Path, target: Path) -> None:
    """Put ``source`` at ``target`` too, by a hard link where the file system has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _upstream(file: SourceFile) -> str:
    """Fingerprint of what upstream has and which part of it is wanted."""
    what = [file.size, file.sha256, file.members]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


class Fetcher:
    """Fetches the files of one dataset; made by :func:`open_fetcher`.

    ``advance`` is told the bytes that arrive.
    """

    def __init__(
        self,
        mirrors: list[Mirror],
        transfer: Transfer,
        parallel: int,
        rendered: bool,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._mirrors, self._transfer, self._parallel = mirrors, transfer, parallel
        self._rendered = rendered
        self.advance = advance

    def fetch(
        self, files: Sequence[SourceFile], store: Store, known: Mapping[str, Fetched]
    ) -> tuple[list[Fetched], list[str]]:
        """(verified files, what is missing upstream), in the order of ``files``.

        ``known`` is what ``store`` has already (:meth:`Store.known`).

        Raises:
            DownloadError: a file cannot be fetched or verified; those under way are finished.
        """
        done = dict(known)
        missing = {path: entry.missing_members for path, entry in done.items()}

        def work(file: SourceFile) -> None:
            """Fetch one file and remember it, or note that it is missing upstream."""
            try:
                entry = self._fetch_one(file, store)
            except MissingUpstreamError as error:
                store.log(str(error))
                missing[file.path] = file.members or [""]
                return
            store.remember(entry)
            done[file.path], missing[file.path] = entry, entry.missing_members

        todo = [file for file in files if file.path not in done]
        _run_threads(work, todo, self._parallel, self.stop)
        gone = [
            f"{file.path}!{member}" if member else file.path
            for file in files
            for member in missing[file.path]
        ]
        return [done[file.path] for file in files if file.path in done], gone

    def stop(self) -> None:
        """Break off what is under way in other threads; what has arrived is kept."""
        self._transfer.stop()

    def _fetch_one(self, file: SourceFile, store: Store) -> Fetched:
        target = store.folder / file.path
        missing: list[str] = []

        def attempt(url: str) -> None:
            """Fetch from one address."""
            if file.members is None:
                _fetch_whole(self._transfer, url, file, target, self.advance)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                missing[:] = fetch_members(self._transfer, url, file.members, target, self.advance)

        places = addresses(self._mirrors, file.path, file.urls)
        place, _ = first_that_works(places, attempt, store.log)
        size, digest = target.stat().st_size, sha256_of(target)
        now = "" if self._rendered else datetime.now(UTC).isoformat(timespec="seconds")
        return Fetched(file.path, place.label, size, digest, _upstream(file), missing, now)


@contextmanager
def open_fetcher(
    index: SourceIndex,
    settings: DatasetConfig,
    config: DownloadConfig,
    rendered: Path,
    log: Callable[[str], None],
) -> Iterator[Fetcher]:
    """A fetcher from the mirrors of ``settings``, or from the folder ``rendered`` where the
    index says so; folders are served on the loopback while the context lasts."""
    is_rendered = index.source == "procedural"
    with (
        open_mirrors(settings.mirrors, rendered if is_rendered else None) as mirrors,
        Transfer(config, log) as transfer,
    ):
        yield Fetcher(mirrors, transfer, config.parallel, is_rendered)


def _run_threads(
    work: Callable[[SourceFile], None],
    todo: list[SourceFile],
    parallel: int,
    stop: Callable[[], None],
) -> None:
    """Begin no file after the first error; an interruption breaks off those under way."""
    with ThreadPoolExecutor(parallel) as pool:
        futures: list[Future[None]] = [pool.submit(work, file) for file in todo]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for future in futures:
        if not future.cancelled():
            future.result()


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
