"""Zip and tar archives: safety, integrity, and quick reads of single members.

What :mod:`metricgold.data.archive_checks` refuses is refused before anything is inflated, and
nothing is inflated beyond what a checked header declares.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.data.archive_checks import ArchiveError as ArchiveError
from metricgold.data.archive_checks import (
    check_request,
    check_tar_member,
    check_total,
    check_zip,
    check_zip_sizes,
    note_name,
)

if TYPE_CHECKING:
    from metricgold.data.dataset import Part

_BLOCK = 1 << 20
_TAR_BLOCK = 512
_TAR_HEADERS = 1 << 18
"""Bytes that the headers of one tar member may take, its long name among them."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in an uncompressed tar and where its bytes lie."""

    name: str
    offset: int
    size: int


class _ZipReader(io.BufferedReader):
    """A file on disk for ``zipfile``, read in pieces of a bounded size."""

    def read(self, size: int | None = -1, /) -> bytes:
        check_request(size)
        return super().read(size)


class _TarReader(io.BufferedReader):
    """A file for ``tarfile``, which may read ``allowed`` bytes until more are allowed."""

    allowed = _TAR_HEADERS

    def read(self, size: int | None = -1, /) -> bytes:
        check_request(-2 if size == -1 else size, self.allowed)
        data = super().read(size)
        self.allowed -= len(data)
        return data


@contextmanager
def _damage_told(prefix: str = "") -> Iterator[None]:
    """Turn whatever the parsers raise on damaged data into one sentence."""
    try:
        yield
    except (ArchiveError, FileNotFoundError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArchiveError(f"{prefix}damaged or cut short ({reason})") from None


# --- whole archives -------------------------------------------------------------------------


def verify_archive(path: Path, name: str | None = None) -> None:
    """Read an archive to its end; other files pass. ``name`` tells the kind (default: its own).

    Zip members are checked against their CRC32, gzip against its own, and a plain tar
    must be as long as its headers say.

    Raises:
        ArchiveError: the archive is damaged, cut short or unsafe.
    """
    name = name or path.name
    with _damage_told():
        if name.endswith(".zip"):
            with _Zip(path, name) as archive:
                _read_all(archive)
        elif name.endswith((".tar.gz", ".tgz", ".tar")):
            for _ in _tar_members(path, name, zipped=not name.endswith(".tar")):
                pass


def _read_all(archive: zipfile.ZipFile) -> None:
    """Inflate every member to its end, which compares its CRC32."""
    for info in archive.infolist():
        try:
            with archive.open(info) as handle:
                while handle.read(_BLOCK):
                    pass
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ArchiveError(
                f"damaged or cut short (member {info.filename!r}: {error or 'it ends too early'})"
            ) from None


class _Zip(zipfile.ZipFile):
    """A zip on disk whose directory has been checked."""

    def __init__(self, path: Path, name: str) -> None:
        self._reader = _ZipReader(io.FileIO(path))
        try:
            super().__init__(self._reader)
            check_zip(name, self.infolist(), self.start_dir)
            check_zip_sizes(name, self.infolist())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        self._reader.close()


def _tar_members(
    path: Path, name: str, zipped: bool
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Every member, checked; then the end mark, and that nothing but zeros follows it."""
    size = path.stat().st_size
    raw: Any = gzip.GzipFile(path) if zipped else io.FileIO(path)
    with (
        raw,
        _TarReader(raw) as reader,
        _open_tar(reader) as archive,
    ):
        seen: set[str] = set()
        end = 0
        while (info := archive.next()) is not None:
            _forget(archive)
            member = check_tar_member(name, info)
            note_name(name, seen, member, info.isdir())
            data = info.size if info.isfile() else 0
            if not end <= info.offset < info.offset_data <= archive.offset - data:
                raise tarfile.ReadError(f"{member!r} has a header that contradicts itself")
            if not zipped and info.offset_data + data > size:
                raise tarfile.ReadError(f"{member!r} reaches beyond the end of the file")
            end = archive.offset
            check_total(name, end, size)
            reader.allowed = data
            yield archive, info
            reader.allowed = _TAR_HEADERS
        _check_tar_end(reader, archive.offset, name, size)


def _open_tar(reader: _TarReader) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=reader, mode="r:")
    except tarfile.ReadError as error:  # a first header that some Pythons forgive, some do not
        if "invalid header" not in str(error):
            raise
        raise tarfile.ReadError("the header at byte 0 is damaged") from None


def _forget(archive: Any) -> None:
    """``tarfile`` keeps every member's header and all global ones; a hostile tar has many."""
    archive.members.clear()
    archive.pax_headers.clear()


def _check_tar_end(reader: _TarReader, end: int, name: str, size: int) -> None:
    reader.seek(end)
    mark = reader.read(_TAR_BLOCK)
    if len(mark) < _TAR_BLOCK:
        raise tarfile.ReadError("no end-of-archive mark")
    if any(mark):
        raise tarfile.ReadError(f"the header at byte {end} is damaged")
    while True:
        reader.allowed = _BLOCK
        if not (block := reader.read(_BLOCK)):
            return
        end += len(block)
        if block.count(0) != len(block):
            raise tarfile.ReadError("it goes on after its end mark")
        check_total(name, end, size)


def tar_index(path: Path) -> list[TarMember]:
    """Name, offset and size of every regular file in an uncompressed tar.

    Raises:
        ArchiveError: the archive is damaged, cut short or unsafe.
    """
    with _damage_told(f"{path}: "):
        found = _tar_members(path, path.name, zipped=False)
        return [TarMember(i.name, i.offset_data, i.size) for _, i in found if i.isfile()]


def tar_texts(path: Path, suffix: str) -> dict[str, str]:
    """Every text member of a tar.gz whose name ends in ``suffix``.

    Raises:
        ArchiveError: the archive is damaged, cut short or unsafe, or a text is not UTF-8.
    """
    texts: dict[str, str] = {}
    with _damage_told(f"{path}: "):
        for archive, info in _tar_members(path, path.name, zipped=True):
            handle = archive.extractfile(info) if info.name.endswith(suffix) else None
            if handle is not None:
                texts[info.name] = handle.read().decode("utf-8")
    return texts


# --- single members -------------------------------------------------------------------------


def zip_names(path: Path) -> list[str]:
    """Member names of a zip.

    Raises:
        ArchiveError: the archive is damaged, cut short or unsafe.
    """
    with _damage_told(f"{path}: "):
        return _open_zip(*_identity(path)).namelist()


def read_part(folder: Path, part: Part) -> bytes:
    """The bytes of one archive member; a zip member's CRC32 is checked on the way.

    Raises:
        FileNotFoundError: the archive is not there.
        ArchiveError: the member is missing, damaged or cut short.
    """
    path = folder / part.archive
    with _damage_told(f"{part.archive}: "):
        if part.missing:
            raise ArchiveError(f"{part.archive}: has no such member")
        if part.offset < 0:
            archive = _open_zip(*_identity(path))
            if part.member not in archive.NameToInfo:
                raise ArchiveError(f"{part.archive}: has no member {part.member!r}")
            return read_zip_member(archive, archive.getinfo(part.member))
        data = os.pread(_open_file(*_identity(path)).number, part.size, part.offset)
        if len(data) != part.size:
            raise ArchiveError(f"{part.archive}: cut short inside {part.member!r}")
        return data


def read_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes, inflated no further than its header declares; CRC32 checked.

    Raises:
        zipfile.BadZipFile, zlib.error, EOFError: damaged.
    """
    with archive.open(info) as handle:
        data = handle.read(info.file_size)
    if len(data) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename!r} is shorter than its header says")
    return data


def _identity(path: Path) -> tuple[str, int, int, int]:
    """What a cached handle stands for: a file put in its place since must be opened anew, and
    one handle a process, for a handle shared over fork would read from a shared position."""
    status = os.stat(path)
    return str(path), os.getpid(), status.st_ino, status.st_mtime_ns


@lru_cache(maxsize=8)
def _open_zip(path: str, *identity: int) -> zipfile.ZipFile:
    return _Zip(Path(path), Path(path).name)


class _Descriptor:
    """A file that is open as long as this object lives."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=8)
def _open_file(path: str, *identity: int) -> _Descriptor:
    return _Descriptor(path)


def close_archives() -> None:
    """Close the cached handles of this process."""
    _open_zip.cache_clear()
    _open_file.cache_clear()


def file_blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a megabyte at a time."""
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            yield block
