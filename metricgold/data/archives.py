"""Zip and tar archives: safety, integrity, and quick reads of single members."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from metricgold.errors import UserError

if TYPE_CHECKING:
    from metricgold.data.dataset import Part

_BLOCK = 1 << 20
_LINK_BITS = 0o120000


class ArchiveError(UserError):
    """An archive is damaged, cut short or unsafe; the message names it and the member."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in an uncompressed tar and where its bytes lie."""

    name: str
    offset: int
    size: int


def check_member_name(archive: Path | str, name: str) -> None:
    """Refuse absolute paths, drive letters, back-slashes and ``..`` in a member's name.

    Raises:
        ArchiveError: naming the archive and the member.
    """
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name[:2]
    if unsafe or "\0" in name or not name:
        raise ArchiveError(f"{archive}: refused, member '{name}' points outside the archive")


def check_zip_member(archive: Path | str, info: zipfile.ZipInfo) -> None:
    """As :func:`check_member_name`, and symbolic links are refused too."""
    check_member_name(archive, info.filename)
    if (info.external_attr >> 16) & 0o170000 == _LINK_BITS:
        raise ArchiveError(f"{archive}: refused, member '{info.filename}' is a link")


def check_tar_member(archive: Path | str, info: tarfile.TarInfo) -> None:
    """As :func:`check_member_name`; links and device files are refused too."""
    check_member_name(archive, info.name)
    if not (info.isfile() or info.isdir()):
        raise ArchiveError(f"{archive}: refused, member '{info.name}' is a link or a device")


def verify_archive(path: Path, name: str | None = None) -> None:
    """Read an archive to its end; other files pass. ``name`` tells the kind (default: its own).

    Zip members are checked against their CRC32, gzip against its own, and a plain tar
    must be as long as its headers say.

    Raises:
        ArchiveError: the archive is damaged, cut short or unsafe.
    """
    name = name or path.name
    try:
        if name.endswith(".zip"):
            _verify_zip(path)
        elif name.endswith((".tar.gz", ".tgz")):
            for _ in _tar_members(path, "r:gz"):
                pass
        elif name.endswith(".tar"):
            tar_index(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ArchiveError(f"damaged or cut short ({reason})") from None


def _verify_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            check_zip_member(path.name.removesuffix(".part"), info)
        bad = archive.testzip()
    if bad is not None:
        raise ArchiveError(f"member '{bad}' fails its CRC32")


def _tar_members(path: Path, mode: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    size = path.stat().st_size
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info in archive:
            check_tar_member(path.name.removesuffix(".part"), info)
            if mode == "r:" and info.isfile() and info.offset_data + info.size > size:
                raise tarfile.ReadError(f"'{info.name}' reaches beyond the end of the file")
            yield archive, info
        if mode == "r:" and archive.offset + 512 > size:
            raise tarfile.ReadError("no end-of-archive mark")


def tar_index(path: Path) -> list[TarMember]:
    """Name, offset and size of every regular file in an uncompressed tar."""
    found = _tar_members(path, "r:")
    return [TarMember(i.name, i.offset_data, i.size) for _, i in found if i.isfile()]


def tar_texts(path: Path, suffix: str) -> dict[str, str]:
    """Every text member of a tar.gz whose name ends in ``suffix``."""
    texts: dict[str, str] = {}
    for archive, info in _tar_members(path, "r:gz"):
        handle = archive.extractfile(info) if info.name.endswith(suffix) else None
        if handle is not None:
            texts[info.name] = handle.read().decode("utf-8")
    return texts


def zip_names(path: Path) -> list[str]:
    """Member names of a zip."""
    return _open_zip(str(path), os.getpid()).namelist()


def read_part(folder: Path, part: Part) -> bytes:
    """The bytes of one archive member; a zip member's CRC32 is checked on the way.

    Raises:
        OSError, ValueError, KeyError: the member is missing, damaged or cut short.
    """
    path = str(folder / part.archive)
    if part.offset < 0:
        try:
            return _open_zip(path, os.getpid()).read(part.member)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{part.archive}: {error}") from None
    data = os.pread(_open_file(path, os.getpid()).fileno(), part.size, part.offset)
    if len(data) != part.size:
        raise ValueError(f"{part.archive}: cut short inside '{part.member}'")
    return data


@lru_cache(maxsize=8)
def _open_zip(path: str, process_id: int) -> zipfile.ZipFile:
    """One handle a process: a handle shared over fork would read from a shared position."""
    return zipfile.ZipFile(path)


@lru_cache(maxsize=8)
def _open_file(path: str, process_id: int) -> BinaryIO:
    return open(path, "rb")


def close_archives() -> None:
    """Close the cached handles of this process."""
    _open_zip.cache_clear()
    _open_file.cache_clear()


def file_blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a megabyte at a time."""
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            yield block
