"""Where a set's files come from: the publisher, a mirror, or a folder of the user's.

Downloads go into a scratch folder, where what is verified survives an interruption and serves
the next run. A folder of the user's is read where it is and never written to.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricgold.config import DownloadConfig
from metricgold.data.archives import file_blocks
from metricgold.data.evaluation_sets.base import EvaluationSet, PublishedFile
from metricgold.data.evaluation_sets.tree import files_below
from metricgold.data.evaluation_sets.unpacking import is_packed, unpack
from metricgold.data.fetching import Fetched, Fetcher, Store
from metricgold.data.files import fresh_folder, human_bytes, sha256_of
from metricgold.data.mirrors import Mirror, addresses, expand, first_that_works, open_mirrors
from metricgold.data.source import SourceFile, SourceIndex
from metricgold.data.transfer import DownloadError, MissingUpstreamError, Transfer
from metricgold.errors import UserError
from metricgold.progress import progress_bar

BYTES_PER_PIXEL = 5
"""Of a shard: a PNG picture and lossless depth."""
_SPARE = 1.05


@dataclass(frozen=True)
class RawFiles:
    """Where the files are now, and what is known of the archives among them.

    Attributes:
        folder: every file of the set lies somewhere below it.
        archives: path, url, size and sha256 of each archive.
        missing: archives or members that the server does not have.
    """

    folder: Path
    archives: list[dict[str, Any]]
    missing: list[str]


def obtain(
    member: EvaluationSet, source: str | None, scratch: Path, config: DownloadConfig
) -> RawFiles:
    """Make the files of a set readable below one folder.

    Args:
        source: None for the publisher's addresses, a base URL, or a folder; ``$NAME`` is an
            environment variable.
        scratch: keeps downloads and what is unpacked.

    Raises:
        UserError: the publisher allows no download, the source is nothing, the disk is too
            small, or a file cannot be fetched or verified.
    """
    place = expand(source) if source is not None else None
    if place is None or place.startswith(("http://", "https://")):
        if not member.remote_files():
            raise UserError(f"{member.name} cannot be downloaded: {member.supply} as --source")
        return _download(member, source, scratch, config)
    if not Path(place).is_dir():
        raise UserError(f"the source '{source}' ({place}) is neither a URL nor a folder")
    return _local(member, Path(place).resolve(), scratch)


def check_disk(
    name: str, folder: Path, needed: int, here: int = 0, max_disk_gb: float | None = None
) -> None:
    """Refuse what the disk of ``folder`` (which need not exist) has no room for.

    Args:
        needed: bytes on disk in the end. here: those of them that are there already.
        max_disk_gb: at most so much of the disk, whatever is free.

    Raises:
        DownloadError: naming both figures.
    """
    if max_disk_gb is not None and needed > max_disk_gb * 1e9:
        raise DownloadError(
            f"{name}: {human_bytes(needed)} would be on disk, but download.max_disk_gb allows "
            f"{max_disk_gb:g} GB"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, wanted = shutil.disk_usage(there).free, int((needed - here) * _SPARE)
    if wanted > free:
        raise DownloadError(
            f"{name}: {human_bytes(wanted)} are needed but only {human_bytes(free)} are free at "
            f"{there}; free some space or name another --out"
        )


def shard_bytes(member: EvaluationSet, frames: int) -> int:
    """Rough size of the shards of so many frames."""
    return frames * member.frame_size[0] * member.frame_size[1] * BYTES_PER_PIXEL


def _download(
    member: EvaluationSet, source: str | None, scratch: Path, config: DownloadConfig
) -> RawFiles:
    files = member.remote_files()
    store = Store(scratch)
    with (
        open_mirrors([source] if source else [], None) as mirrors,
        Transfer(config, store.log) as transfer,
    ):
        index = _index(member.name, files, mirrors, transfer, config.parallel)
        known = store.known(index.files)
        _announce(member, index, known, scratch, config.max_disk_gb)
        left = sum(file.budget_bytes for file in index.files if file.path not in known)
        with progress_bar(description=f"downloading {member.name}", total=left, unit="B") as bar:
            fetcher = Fetcher(mirrors, transfer, config.parallel, False, bar.update)
            fetched, missing = fetcher.fetch(index.files, store, known)
    published = {file.path: file for file in files}
    for entry in fetched:
        _verify(store.folder / entry.path, published[entry.path], remove=True)
        _unpack_if_packed(store.folder / entry.path, scratch)
    archives = [{"path": e.path, "url": e.url, "size": e.size, "sha256": e.sha256} for e in fetched]
    if missing:
        print(f"{member.name}: {len(missing)} files are not at the server, such as {missing[0]}")
    return RawFiles(_joined(scratch, store.folder), archives, missing)


def _announce(
    member: EvaluationSet,
    index: SourceIndex,
    known: Mapping[str, Fetched],
    scratch: Path,
    max_disk_gb: float | None,
) -> None:
    """Print what will be fetched and written, and refuse what the disk has no room for."""
    here = sum(entry.size for entry in known.values())
    begun = [scratch / "files" / f"{file.path}.part" for file in index.files]
    here += sum(path.stat().st_size for path in begun if path.exists())
    unpacked = _unpacked_bytes(member.remote_files())
    shards = shard_bytes(member, member.expected_frames)
    print(
        f"{member.name}: {human_bytes(index.budget_bytes)} in {len(index.files)} files to "
        f"download, {human_bytes(here)} of it already here; {human_bytes(unpacked)} unpacked, "
        f"about {human_bytes(shards)} of shards"
    )
    needed = index.budget_bytes + unpacked + shards
    check_disk(member.name, scratch, needed, here, max_disk_gb)


def _index(
    name: str,
    files: Sequence[PublishedFile],
    mirrors: list[Mirror],
    transfer: Transfer,
    parallel: int,
) -> SourceIndex:
    """The files with their sizes upstream; a mirror, where there is one, is the only address."""

    def ask(file: PublishedFile) -> SourceFile:
        """What its server says of a file."""
        urls = [] if mirrors else list(file.urls)
        try:
            size = first_that_works(addresses(mirrors, file.path, urls), transfer.size, print)[1]
        except MissingUpstreamError:
            size = None
        members = None if file.members is None else list(file.members)
        known = [n for n in (size, file.expected_bytes) if n is not None]
        return SourceFile(file.path, size, None, min(known, default=0), members, urls)

    with ThreadPoolExecutor(parallel) as pool:
        listed = list(pool.map(ask, files))
    budget = sum(file.budget_bytes for file in listed)
    return SourceIndex(name, "mirrors", "", budget, listed)


def _local(member: EvaluationSet, folder: Path, scratch: Path) -> RawFiles:
    """The set's published archives in ``folder`` are verified, packed ones unpacked."""
    published = {Path(file.path).name: file for file in member.remote_files()}
    found = [path for path in files_below(folder) if path.name in published]
    packed = [published[path.name] for path in found if is_packed(path.name)]
    check_disk(member.name, scratch, _unpacked_bytes(packed))
    archives = []
    for path in found:
        file = published[path.name]
        if file.checksum or is_packed(path.name):
            _verify(path, file, remove=False)
            digest, size = sha256_of(path), path.stat().st_size
            name = path.relative_to(folder).as_posix()
            archives.append({"path": name, "url": "", "size": size, "sha256": digest})
        _unpack_if_packed(path, scratch)
    return RawFiles(_joined(scratch, folder) if packed else folder, archives, [])


def _unpacked_bytes(files: Sequence[PublishedFile]) -> int:
    return sum(file.unpacked_bytes for file in files)


def _unpack_if_packed(path: Path, scratch: Path) -> None:
    if is_packed(path.name):
        unpack(path, scratch / "unpacked")


def _joined(scratch: Path, folder: Path) -> Path:
    """A folder with links to ``folder`` and to what was unpacked."""
    if not (scratch / "unpacked").is_dir():
        return folder
    joined = fresh_folder(scratch / "joined")
    (joined / "files").symlink_to(folder.resolve())
    (joined / "unpacked").symlink_to((scratch / "unpacked").resolve())
    return joined


def _verify(path: Path, file: PublishedFile, remove: bool) -> None:
    """Compare with the published checksum.

    Raises:
        DownloadError: it differs; ``remove`` deletes the file, so that a rerun fetches anew.
    """
    if file.checksum is None:
        return
    algorithm, _, expected = file.checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for block in file_blocks(path):
        digest.update(block)
    if digest.hexdigest() != expected:
        if remove:
            path.unlink()
        raise DownloadError(
            f"{path}: its {algorithm.upper()} is not the published one ({expected}); "
            "download it again"
        )
