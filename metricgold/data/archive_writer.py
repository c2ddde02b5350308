"""Zip and tar files that come out the same byte for byte, and appear only when complete."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_ZIP_TIME = (2021, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Member:
    """One file to be put into ``archive`` (a path relative to the archives' folder)."""

    archive: str
    name: str
    data: bytes


class ArchiveSet:
    """Several archives below one folder, written side by side, member by member.

    Times, owners and modes are fixed, so equal members give equal bytes. On a clean exit
    every archive takes its final name; on an error nothing is left behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, _ZipSink | _TarSink] = {}

    def __enter__(self) -> ArchiveSet:
        return self

    def add(self, member: Member) -> None:
        """Append one member; its archive is opened when first named."""
        if member.archive not in self._open:
            sink = _ZipSink if member.archive.endswith(".zip") else _TarSink
            self._open[member.archive] = sink(self._folder / member.archive)
        self._open[member.archive].add(member.name, member.data)

    def finish(self, archive: str) -> None:
        """Close one archive and give it its final name."""
        self._open.pop(archive).close(keep=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for archive in list(self._open):
            self._open.pop(archive).close(keep=kind is None)


class _Sink:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._part = path.with_name(path.name + ".writing")
        self._file = self._part.open("wb")

    def _settle(self, keep: bool) -> None:
        if keep:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if keep:
            os.replace(self._part, self._path)
        else:
            self._part.unlink()


class _ZipSink(_Sink):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def add(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, _ZIP_TIME)
        info.external_attr = 0o644 << 16
        if not name.endswith((".png", ".jpg", ".hdf5")):
            info.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(info, data, compresslevel=1)

    def close(self, keep: bool) -> None:
        self._zip.close()
        self._settle(keep)


class _TarSink(_Sink):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._gzip: gzip.GzipFile | None = None
        target: Any = self._file
        if path.name.endswith(".gz"):
            target = self._gzip = gzip.GzipFile("", "wb", 6, self._file, mtime=0)
        self._tar = tarfile.TarFile(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def close(self, keep: bool) -> None:
        self._tar.close()
        if self._gzip is not None:
            self._gzip.close()
        self._settle(keep)
