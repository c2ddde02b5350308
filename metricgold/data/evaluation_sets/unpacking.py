"""Archives that cannot be read in place: gzipped tars and 7-Zip, unpacked once."""

from __future__ import annotations

import gzip
import importlib
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

from metricgold.data.archive_checks import (
    ArchiveError,
    check_member_name,
    check_tar_member,
    check_total,
    note_name,
)
from metricgold.data.evaluation_sets.tree import refuse_web_page
from metricgold.files import replaced_folder

_BLOCK = 1 << 20
PACKED = (".tar.gz", ".tgz", ".tar", ".7z")


def is_packed(name: str) -> bool:
    """Whether a file of this name has to be unpacked."""
    return name.endswith(PACKED)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack ``archive`` into a folder of its own below ``folder``; what is done already stays.

    Nothing is seen half-unpacked: the folder takes its name at the end. Members that point
    outside, links and devices are refused; checksums are verified on the way.

    Raises:
        ArchiveError: the archive is damaged or unsafe, or no program for it is installed.
    """
    target = folder / f"{archive.name}-{archive.stat().st_size}"
    if target.is_dir():
        return target
    refuse_web_page(archive)
    for stale in folder.glob(f"{archive.name}-*"):
        shutil.rmtree(stale)
    print(f"unpacking {archive.name}")
    with replaced_folder(target) as part:
        if archive.name.endswith(".7z"):
            _unpack_7z(archive, part)
        else:
            _unpack_tar(archive, part)
    return target


def _unpack_tar(archive: Path, folder: Path) -> None:
    name, stored, total = archive.name, archive.stat().st_size, 0
    seen: set[str] = set()
    raw: Any = archive.open("rb") if name.endswith(".tar") else gzip.GzipFile(archive)
    try:
        with raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for info in tar:
                member = check_tar_member(name, info)
                note_name(name, seen, member, info.isdir())
                check_total(name, total := total + info.size, stored)
                source = tar.extractfile(info)
                if source is not None:
                    path = folder / member
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with source, path.open("wb") as file:
                        shutil.copyfileobj(source, file, _BLOCK)
            while raw.read(_BLOCK):  # to the checksum behind the last member
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _damaged(archive, error) from None


def _unpack_7z(archive: Path, folder: Path) -> None:
    try:
        py7zr = importlib.import_module("py7zr")
    except ImportError:
        raise ArchiveError(
            f"{archive}: reading 7-Zip archives needs py7zr; run 'pip install py7zr', or unpack "
            "the archives yourself and name their folder as --source"
        ) from None
    try:
        with py7zr.SevenZipFile(archive) as packed:
            members = packed.list()
            for info in members:
                check_member_name(archive.name, info.filename)
            total = sum(info.uncompressed for info in members)
            check_total(archive.name, total, archive.stat().st_size)
            packed.extractall(folder)
    except ArchiveError:
        raise
    except Exception as error:  # py7zr raises a dozen kinds on damaged data
        raise _damaged(archive, error) from None
    if any(path.is_symlink() for path in folder.rglob("*")):
        raise ArchiveError(f"{archive}: refused, it holds links")


def _damaged(archive: Path, error: Exception) -> ArchiveError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ArchiveError(f"{archive}: damaged or cut short ({reason}); download it again")
