"""Take single members out of a zip on a server, by its central directory and Range requests.

Hypersim's scenes are 1 to 20 GB each, of which a sixth is needed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from metricgold.data.archive_checks import (
    ArchiveError,
    check_request,
    check_zip,
    check_zip_sizes,
)
from metricgold.data.archive_writer import ArchiveSet, Member
from metricgold.data.archives import read_zip_member
from metricgold.data.transfer import DownloadError, Transfer

_TAIL = 1 << 16
"""Read first: holds the end record and, in small zips, the whole directory."""
_GAP = 1 << 10
"""Unwanted bytes between two members that do not justify a second request."""
_RUN = 1 << 25
"""Longest single request for members, but for a longer one."""
_OVERHEAD = 3 << 16
"""More than a member's header and trailer can take."""


class _RangeFile(io.RawIOBase):
    """A remote file that ``zipfile`` can read: seekable, with one window kept in memory."""

    def __init__(self, transfer: Transfer, url: str, size: int) -> None:
        self._transfer, self._url, self._size = transfer, url, size
        self._position = 0
        self._window_start, self._window = 0, b""
        self.fetched_bytes = 0
        self.load(max(0, size - _TAIL), size)

    def load(self, start: int, stop: int) -> None:
        """Fetch bytes ``start`` to ``stop`` in one request."""
        self._window_start = start
        self._window = self._transfer.read_range(self._url, start, stop) if stop > start else b""
        self.fetched_bytes += len(self._window)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """As usual, in pieces of a bounded size."""
        check_request(size)
        return super().read(size)

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the position on; fetches what the window does not hold."""
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        window_stop = self._window_start + len(self._window)
        if self._position < self._window_start or stop > window_stop:
            self.load(self._position, stop)
        first = self._position - self._window_start
        data = self._window[first : first + stop - self._position]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def fetch_members(
    transfer: Transfer,
    url: str,
    wanted: Iterable[str],
    target: Path,
    advance: Callable[[int], None],
) -> list[str]:
    """Fetch the ``wanted`` members of the zip at ``url`` into a zip at ``target``.

    Each member's CRC32 is checked. Members wait in a folder beside ``target`` until all
    are there, so that an interrupted scene goes on where it stopped.

    Returns:
        The wanted members that the remote zip does not have.

    Raises:
        DownloadError: the server cannot be used, or the zip is damaged.
    """
    size = transfer.size(url)
    if size is None:
        raise DownloadError(f"{url}: the server does not tell the size; use another mirror")
    waiting = target.with_name(target.name + ".members")
    waiting.mkdir(parents=True, exist_ok=True)
    try:
        remote = _RangeFile(transfer, url, size)
        with zipfile.ZipFile(remote) as archive:
            known = {info.filename: info for info in archive.infolist()}
            check_zip(target.name, archive.infolist(), archive.start_dir)
            names = list(wanted)
            found = [known[name] for name in names if name in known]
            check_zip_sizes(target.name, found)
            _fetch_found(remote, archive, found, waiting, advance)
    except (DownloadError, OSError):
        raise
    except ArchiveError as error:
        raise DownloadError(f"{url}: {error}") from None
    except Exception as error:  # zipfile raises anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"{url}: damaged zip ({reason})") from None
    with ArchiveSet(target.parent) as archives:
        for info in found:
            data = _member_path(waiting, info).read_bytes()
            archives.add(Member(target.name, info.filename, data))
    shutil.rmtree(waiting)
    return [name for name in names if name not in known]


def _fetch_found(
    remote: _RangeFile,
    archive: zipfile.ZipFile,
    found: list[zipfile.ZipInfo],
    waiting: Path,
    advance: Callable[[int], None],
) -> None:
    missing = []
    for info in found:
        if _is_there(_member_path(waiting, info), info):
            advance(info.compress_size)
        else:
            missing.append(info)
    stops = _member_stops(archive)
    for run in _runs(missing, stops):
        remote.load(run[0].header_offset, stops[run[-1].header_offset])
        for info in run:
            path = _member_path(waiting, info)
            part = path.with_name(path.name + ".part")
            part.write_bytes(read_zip_member(archive, info))
            os.replace(part, path)
            advance(info.compress_size)


def _member_path(waiting: Path, info: zipfile.ZipInfo) -> Path:
    return waiting / hashlib.sha256(info.filename.encode()).hexdigest()[:24]


def _is_there(path: Path, info: zipfile.ZipInfo) -> bool:
    if not path.exists() or path.stat().st_size != info.file_size:
        return False
    return zlib.crc32(path.read_bytes()) == info.CRC


def _member_stops(archive: zipfile.ZipFile) -> dict[int, int]:
    """Header offset of each member to the offset where it surely ends."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    following = [*(info.header_offset for info in infos[1:]), archive.start_dir]
    return {
        info.header_offset: min(stop, info.header_offset + info.compress_size + _OVERHEAD)
        for info, stop in zip(infos, following, strict=True)
    }


def _runs(infos: list[zipfile.ZipInfo], stops: dict[int, int]) -> Iterable[list[zipfile.ZipInfo]]:
    """Neighbouring members, to be fetched by one request each run."""
    run: list[zipfile.ZipInfo] = []
    for info in sorted(infos, key=lambda i: i.header_offset):
        if run:
            gap = info.header_offset - stops[run[-1].header_offset]
            length = stops[info.header_offset] - run[0].header_offset
            if gap > _GAP or length > _RUN:
                yield run
                run = []
        run.append(info)
    if run:
        yield run
