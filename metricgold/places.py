"""Files by URI through fsspec: on this machine, ``s3://``, ``gs://`` and whatever else it knows.

What is written appears whole or not at all: by a rename here, by a single put on an object store.
Credentials and end points are those of the environment (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``); no URI holds any.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricgold.errors import UserError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol to the extra of this package that brings what it needs."""


class PlaceError(UserError):
    """A place cannot be read or written; the message names it."""


@dataclass(frozen=True)
class Place:
    """A file or folder. ``uri`` is a path of this machine (relative to the current folder, as
    everywhere) or a URI with a protocol."""

    uri: str

    def __truediv__(self, name: str) -> Place:
        """What lies below it."""
        return Place(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def local(self) -> Path | None:
        """Its path, if it is one of this machine."""
        protocol, separator, rest = self.uri.partition("://")
        if not separator:
            return Path(self.uri)
        return Path(rest) if protocol in ("file", "local") else None

    @property
    def absolute(self) -> Place:
        """The same, not relative to the current folder."""
        return self if self.local is None else Place(str(self.local.absolute()))

    def size(self) -> int | None:
        """Bytes of the file; None if there is none."""
        if (path := self.local) is not None:
            return path.stat().st_size if path.is_file() else None
        with self._told("looked for") as (files, path_there):
            try:
                found = files.info(path_there)
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

    def read(self) -> bytes | None:
        """All of the file; None if there is none."""
        if (path := self.local) is not None:
            return path.read_bytes() if path.is_file() else None
        with self._told("read") as (files, path_there):
            try:
                return bytes(files.cat_file(path_there))
            except FileNotFoundError:
                return None

    def write(self, data: bytes) -> None:
        """Replace the file by ``data``."""
        if (path := self.local) is not None:
            with _replaced(path) as part:
                part.write_bytes(data)
            return
        with self._told("written") as (files, path_there):
            files.pipe_file(path_there, data)

    def get(self, target: Path) -> None:
        """Copy the file to ``target``, which replaces what is there.

        Raises:
            PlaceError: there is none, or it cannot be read.
        """
        with _replaced(target) as part:
            if (path := self.local) is not None:
                try:
                    shutil.copyfile(path, part)
                except FileNotFoundError:
                    raise PlaceError(f"{self}: no such file") from None
                return
            with self._told("read") as (files, path_there):
                files.get_file(path_there, str(part))

    def put(self, source: Path) -> None:
        """Replace the file by a copy of ``source``."""
        if (path := self.local) is not None:
            with _replaced(path) as part:
                shutil.copyfile(source, part)
            return
        with self._told("written") as (files, path_there):
            files.put_file(str(source), path_there)

    @contextmanager
    def at_hand(self) -> Iterator[Path]:
        """Path of the file while the block runs: its own, or that of a copy."""
        if (path := self.local) is not None:
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="metricgold-") as folder:
            copy = Path(folder) / self.uri.rpartition("/")[2]
            self.get(copy)
            yield copy

    def names(self) -> list[str]:
        """Paths of all files below it, relative to it, sorted; none where it does not exist."""
        if (path := self.local) is not None:
            return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        with self._told("listed") as (files, path_there):
            try:
                found = files.find(path_there)
            except FileNotFoundError:
                return []
            return sorted(name.removeprefix(path_there).lstrip("/") for name in found)

    def remove(self) -> None:
        """Delete it and all below; nothing happens where there is nothing."""
        if (path := self.local) is not None:
            if path.is_file():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
            return
        with self._told("deleted") as (files, path_there), suppress(FileNotFoundError):
            files.rm(path_there, recursive=True)

    @contextmanager
    def _told(self, done: str) -> Iterator[tuple[Any, str]]:
        """(file system, path on it); what goes wrong is told in one sentence."""
        try:
            yield self._file_system()
        except UserError:
            raise
        except FileNotFoundError as error:
            reason = " ".join(str(error).split())
            raise PlaceError(f"{self}: no such file or bucket ({reason})") from error
        except Exception as error:  # each store raises what its client library does
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PlaceError(f"{self}: cannot be {done}: {reason}") from error

    def _file_system(self) -> tuple[Any, str]:
        import fsspec

        protocol = self.uri.partition("://")[0]
        try:  # what other machines write must be seen at once: no listing is kept
            return fsspec.url_to_fs(self.uri, use_listings_cache=False)
        except ImportError as error:
            extra = EXTRAS.get(protocol)
            advice = f"pip install 'metricgold[{extra}]'" if extra else f"install it ({error})"
            raise PlaceError(
                f"{self}: {protocol}:// needs a package that is missing: {advice}"
            ) from None
        except ValueError as error:
            raise PlaceError(f"{self}: cannot be opened ({error})") from None


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write, with a name that nobody else has; then it is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp's own is for its owner alone
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
