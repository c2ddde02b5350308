"""What is refused in zip and tar archives before a byte of them is inflated.

An archive is hostile until proven otherwise: names may point elsewhere, headers may lie, and
a small file may become a very large one.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import PurePosixPath

from metricgold.errors import UserError

MAX_MEMBERS = 1_000_000
"""Virtual KITTI, the fullest genuine archive, has 42,520 pictures in a tar."""
MAX_MEMBER_BYTES = 1 << 28
"""256 MiB. The files of a genuine frame have up to 5 MB, longer tables of text some tens."""
MAX_TOTAL_BYTES = 1 << 38
"""256 GiB. The longest genuine archives are plain tars of 15 GB and zips of 20 GB."""
MAX_RATIO = 200
"""Inflated over stored bytes. Genuine TartanAir depth reaches 35; a bomb of zeros 1,000."""
SMALL_MEMBER_BYTES = 1 << 26
"""64 MiB, up to which a member may shrink as it likes: an empty depth map shrinks 1,000 times."""
SMALL_TOTAL_BYTES = 1 << 30
"""The same for all members together."""

_LOCAL_HEADER = 30
_LINK_BITS = 0o120000
_ENCRYPTED = 0x2041  # ordinary, strong, masked directory
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ORDINARY = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*/?", re.ASCII)
"""Names without anything to look at; nearly all are, and this is three times as fast."""


class ArchiveError(UserError):
    """An archive is damaged, cut short or unsafe; the message names it and the member."""


def check_request(size: int | None, most: int = MAX_MEMBER_BYTES) -> None:
    """Refuse to take ``size`` bytes into memory at once; -1 means "all there is".

    The standard parsers take the size of a directory or of a long name from the file itself.

    Raises:
        ArchiveError: too much, or a negative number that comes from a header.
    """
    if size is None or not -1 <= size <= most:
        raise ArchiveError(f"refused, a header asks to read {size} bytes at once")


def check_member_name(archive: str, name: str) -> str:
    """Refuse absolute paths, drive letters, back-slashes and ``..`` in a member's name.

    Returns:
        The name in its normal form, without ``.`` and double slashes.

    Raises:
        ArchiveError: naming the archive and the member.
    """
    if _ORDINARY.fullmatch(name):
        return name.rstrip("/")
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name[:2]
    if unsafe or "\0" in name or not name:
        raise _refused(archive, name, "points outside the archive")
    return str(path)


def check_zip(archive: str, members: Iterable[zipfile.ZipInfo], stop: int) -> None:
    """Refuse a zip whose directory cannot be trusted; ``stop`` is where the directory begins.

    Raises:
        ArchiveError: unsafe names, links, encrypted members, other methods than deflate,
            the same name twice, or members that share bytes; naming archive and member.
    """
    seen: set[str] = set()
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        name = check_member_name(archive, info.orig_filename)
        if (info.external_attr >> 16) & 0o170000 == _LINK_BITS:
            raise _refused(archive, name, "is a link")
        if info.flag_bits & _ENCRYPTED:
            raise _refused(archive, name, "is encrypted")
        if info.compress_type not in _METHODS:
            raise _refused(archive, name, f"is compressed by method {info.compress_type}")
        note_name(archive, seen, name, info.is_dir())
        if info.header_offset < end:
            raise _refused(archive, name, "shares its bytes with another one")
        end = info.header_offset + _LOCAL_HEADER + len(info.orig_filename) + info.compress_size
    if end > stop:
        raise ArchiveError(f"{archive}: damaged or cut short (a member reaches into the directory)")


def check_zip_sizes(archive: str, members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse zip members that would inflate beyond all measure, each or together.

    Raises:
        ArchiveError: naming the archive and the member.
    """
    total = stored = 0
    for info in members:
        _check_size(archive, info.filename, info.file_size)
        small = max(SMALL_MEMBER_BYTES, MAX_RATIO * info.compress_size)
        if info.file_size > small:
            raise _refused(archive, info.filename, f"shrinks more than {MAX_RATIO} times")
        total, stored = total + info.file_size, stored + info.compress_size
    check_total(archive, total, stored)


def check_tar_member(archive: str, info: tarfile.TarInfo) -> str:
    """As :func:`check_member_name`; links, devices and files with holes are refused too."""
    name = check_member_name(archive, info.name)
    if not (info.isfile() or info.isdir()):
        raise _refused(archive, name, "is a link or a device")
    if info.issparse():
        raise _refused(archive, name, "is stored with holes")
    _check_size(archive, name, info.size)
    return name


def _refused(archive: str, name: str, why: str) -> ArchiveError:
    return ArchiveError(f"{archive}: refused, member {name[:200]!r} {why}")


def note_name(archive: str, seen: set[str], name: str, folder: bool) -> None:
    """Add ``name`` to those ``seen``; refuse a file that is there twice, and too many members."""
    if name in seen and not folder:
        raise _refused(archive, name, "is there twice")
    seen.add(name)
    if len(seen) > MAX_MEMBERS:
        raise ArchiveError(f"{archive}: refused, more than {MAX_MEMBERS:,} members")


def _check_size(archive: str, name: str, size: int) -> None:
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise _refused(archive, name, f"would have {size:,} bytes, {MAX_MEMBER_BYTES:,} at most")


def check_total(archive: str, total: int, stored: int) -> None:
    """Refuse an archive of ``stored`` bytes that becomes ``total`` or more: a bomb."""
    most = min(MAX_TOTAL_BYTES, max(SMALL_TOTAL_BYTES, MAX_RATIO * stored))
    if total > most:
        raise ArchiveError(
            f"{archive}: refused, {stored:,} bytes would become more than {most:,}: "
            "a decompression bomb"
        )
