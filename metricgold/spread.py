"""Work that is cut in pieces, which several machines may do: each piece is done once.

A piece leaves files and, last, a record (JSON) at a place that all machines reach; whoever is told
to do a piece whose record is there reads it instead. The folder's name is a hash of all that
decides what comes out, the code among it, so that nothing made by other code or data is taken.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

from metricgold.errors import UserError
from metricgold.places import Place

Item = TypeVar("Item")
Result = TypeVar("Result")
Record = dict[str, Any]

_LIBRARIES = ("numpy", "pillow", "h5py", "hdf5plugin", "isal", "torch", "diffusers", "scipy")


class Map(Protocol):
    """Calls a function for each item, somewhere, and ``take`` here with each result, in order."""

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: list[Item],
        take: Callable[[Result], None],
    ) -> None:
        """Returns when all is taken; raises what a function raised."""
        ...


@dataclass(frozen=True)
class Spread:
    """Machines to spread pieces over.

    Attributes:
        map: how they are given their pieces.
        shared: a folder that all of them reach, for what they make; a path of this machine says
            that they share its file system.
        origins: of files of this machine, where all machines reach the same.
        piece_bytes: archives of a piece have about so many bytes, where groups allow it.
        piece_frames: of an evaluation's piece, and a batch more at most.
    """

    map: Map
    shared: Place
    origins: Mapping[Path, Place] = field(default_factory=dict)
    piece_bytes: int = 250 * 10**6
    piece_frames: int = 64

    @property
    def one_file_system(self) -> bool:
        """Whether all machines find this one's files by their paths."""
        return self.shared.local is not None

    def reachable(self, place: Place, name: str) -> Place:
        """Where every machine finds a file: there, or its copy called ``name`` in ``shared``."""
        path = place.local
        if path is None:
            return place
        if path in self.origins:
            return self.origins[path]
        if self.one_file_system:
            return place.absolute
        copy = self.shared / name
        if copy.size() != path.stat().st_size:
            copy.put(path)
        return copy


def done_once(folder: Place, name: str, make: Callable[[Path], Record]) -> Record:
    """The record of a piece: the one that is there, or else of what ``make`` makes.

    ``make`` fills an empty folder, whose files then lie in ``folder/name/``.
    """
    known = (folder / f"{name}.json").read()
    if known is not None:
        return dict(json.loads(known))
    with tempfile.TemporaryDirectory(prefix="metricgold-") as scratch:
        record = make(Path(scratch))
        for path in sorted(p for p in Path(scratch).rglob("*") if p.is_file()):
            (folder / name / path.relative_to(scratch).as_posix()).put(path)
    (folder / f"{name}.json").write(json.dumps(record).encode())
    return record


def hashed(parts: Iterable[Any]) -> str:
    """Of whatever JSON can tell apart."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()


@functools.cache
def code_hash() -> str:
    """Of this package's modules, and the versions of the libraries that compute."""
    root = Path(__file__).parent
    modules = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.py"))
    }
    return hashed([modules, [_version(name) for name in _LIBRARIES]])


def _version(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def check_code(expected: str) -> None:
    """Refuse to work for a machine whose code is not the same.

    Raises:
        UserError: it is not.
    """
    if code_hash() != expected:
        raise UserError(
            f"{platform.node()}: MetricGold or a library that it computes with has another "
            "version here than on the machine that asks; install the same on all of them"
        )
