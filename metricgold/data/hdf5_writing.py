"""New HDF5 files, on disks that may get full.

Where HDF5 itself finds that it cannot write, closing the file prints a dozen traces and often
crashes the process (seen with HDF5 2.0). So it writes through Python, which keeps the error.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class NewHdf5:
    """A file that is being written; ``options`` are those of :class:`h5py.File`.

    Attributes:
        file: what is written to; after a write has failed, nothing arrives any more.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        self._stream = _Stream(path)
        self.file = h5py.File(self._stream, "w", **options)

    @property
    def failure(self) -> OSError | None:
        """What the first write failed with that did; it names the file."""
        return self._stream.failure

    def check(self) -> None:
        """Raise ``failure``, if there is one."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """All of it is on disk, or ``OSError``."""
        self.file.close()
        self.check()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def abandon(self) -> None:
        """Close and remove it, whatever became of it."""
        self._stream.dead = True
        self.file.close()
        self._stream.close()
        self._stream.path.unlink(missing_ok=True)


@contextmanager
def new_hdf5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """A new file for the block; when it ends, all of it is on disk. None is left by an error.

    Raises:
        OSError: it cannot be written.
    """
    made = NewHdf5(path, **options)
    try:
        yield made.file
        made.close()
    except BaseException as error:
        made.abandon()
        if isinstance(error, Exception):
            made.check()  # the cause, where HDF5 stumbled over it later
        raise


class _Stream(io.FileIO):
    """Keeps the first error in place of telling it, and swallows what comes after it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.path = path
        self.dead = False
        self.failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and not self.dead:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self._keep(error)
        return size

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return size or 0 if self.dead else super().truncate(size)
        except OSError as error:
            self._keep(error)
            return size or 0

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        found = super().readinto(view) or 0
        if self.dead:  # it was never written
            view[found:] = bytes(len(view) - found)
            return len(view)
        return found

    def _keep(self, error: OSError) -> None:
        error.filename = str(self.path)
        self.failure, self.dead = error, True
