"""Stage ``source``: what there is to download, and how much of it.

A procedural dataset is rendered here in its native archive format; a real one is asked for
its file list and sizes. Either way ``index.json`` says what ``download`` shall fetch.
"""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data.dataset import Dataset, RemoteFile
from metricgold.data.files import fresh_folder, human_bytes, read_json, sha256_of
from metricgold.data.mirrors import Mirror, addresses, first_that_works, open_mirrors
from metricgold.data.procedural_source import plan_scenes, render_archives
from metricgold.data.registry import get_dataset
from metricgold.data.transfer import MissingUpstreamError, Transfer
from metricgold.files import write_json
from metricgold.workspace import Workspace

INDEX_FILE = "index.json"
SourceKind = Literal["procedural", "mirrors", "none"]


@dataclass(frozen=True)
class SourceFile:
    """One file of ``index.json``.

    Attributes:
        size: bytes of the whole file upstream; None where the server does not tell.
        sha256: of the whole file, where it is known (procedural archives).
        budget_bytes: what will be transferred (less than ``size`` if only members are).
        members: members to take out of a zip; None takes the whole file.
        urls: absolute addresses besides the mirrors.
    """

    path: str
    size: int | None
    sha256: str | None
    budget_bytes: int
    members: list[str] | None
    urls: list[str]


@dataclass(frozen=True)
class SourceIndex:
    """``index.json``: where the files come from and which they are."""

    dataset: str
    source: SourceKind
    reason: str
    budget_bytes: int
    files: list[SourceFile]

    @classmethod
    def load(cls, folder: Path) -> SourceIndex:
        """Read ``index.json`` of a dataset's source folder."""
        raw: dict[str, Any] = read_json(folder / INDEX_FILE, made_by="source")
        return cls(**{**raw, "files": [SourceFile(**entry) for entry in raw["files"]]})


def run(config: ProfileConfig, workspace: Workspace, dataset: str) -> SourceIndex:
    """Render or list the files of ``dataset`` and write ``index.json``.

    ``procedural`` wins over ``mirrors`` where both are configured.

    Raises:
        UserError: a mirror names an unset variable, is no folder, or cannot be reached.
    """
    reader = get_dataset(dataset)
    settings = config.datasets[reader.name]
    folder = fresh_folder(workspace.source(dataset))
    kind: SourceKind = "none"
    files: list[SourceFile] = []
    reason = "" if settings.enabled else "weight 0 in this profile"
    if settings.enabled and settings.procedural is not None:
        kind = "procedural"
        render_archives(plan_scenes(dataset, settings.procedural, config.seed), folder)
        files = _rendered_files(reader, settings, folder)
    elif settings.enabled:
        kind = "mirrors"
        files = _mirrored_files(reader, settings, config)
    total = sum(file.budget_bytes for file in files)
    index = SourceIndex(dataset, kind, reason, total, files)
    write_json(folder / INDEX_FILE, asdict(index))
    print(f"{dataset}: {reason or f'{len(files)} files, {human_bytes(total)} to download'}")
    return index


def _rendered_files(reader: Dataset, settings: DatasetConfig, folder: Path) -> list[SourceFile]:
    listed = reader.remote_files(settings, lambda path: (folder / path).read_bytes())
    files = []
    for file in listed:
        path = folder / file.path
        if path.exists():
            size = path.stat().st_size
            budget = size if file.members is None else _member_bytes(path, file.members)
            files.append(_source_file(file, size, sha256_of(path), budget))
    return files


def _member_bytes(path: Path, members: tuple[str, ...]) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(archive.getinfo(name).compress_size for name in members)


def _source_file(
    file: RemoteFile, size: int | None, sha256: str | None, budget_bytes: int
) -> SourceFile:
    members = None if file.members is None else list(file.members)
    return SourceFile(file.path, size, sha256, budget_bytes, members, list(file.urls))


def _mirrored_files(
    reader: Dataset, settings: DatasetConfig, config: ProfileConfig
) -> list[SourceFile]:
    with open_mirrors(settings.mirrors, None) as mirrors, Transfer(config.download) as transfer:

        def ask(file: RemoteFile) -> SourceFile:
            """What its server says of a file."""
            size = _upstream_size(transfer, mirrors, file)
            known = [n for n in (size, file.expected_bytes) if n is not None]
            return _source_file(file, size, None, min(known, default=0))

        listed = reader.remote_files(
            settings, lambda path: _read_metadata(transfer, mirrors, reader, path)
        )
        with ThreadPoolExecutor(config.download.parallel) as pool:
            return list(pool.map(ask, listed))


def _read_metadata(transfer: Transfer, mirrors: list[Mirror], reader: Dataset, path: str) -> bytes:
    places = addresses(mirrors, path, reader.metadata_urls.get(path, ()))
    return first_that_works(places, transfer.read_all, print)[1]


def _upstream_size(transfer: Transfer, mirrors: list[Mirror], file: RemoteFile) -> int | None:
    """Size by HEAD; a file that is not there is left for ``download`` to count."""
    places = addresses(mirrors, file.path, file.urls)
    try:
        return first_that_works(places, transfer.size, print)[1]
    except MissingUpstreamError:
        return None
