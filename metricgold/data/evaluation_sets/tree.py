"""Files of a set wherever they lie: in folders, or inside the zips that were downloaded."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from metricgold.data.archives import zip_names
from metricgold.data.dataset import DatasetError, Part

_PAGE_STARTS = (b"<!doctype html", b"<html")


class FileTree:
    """Every file below ``root``, members of zips included, found by the end of its path.

    So it does not matter how deep a user has unpacked a set, or whether at all. Links to
    folders are followed.

    Raises:
        UserError: ``root`` is no folder, or one of its zips is damaged or no zip at all.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DatasetError(f"{root}: no such folder; name the one that holds the set's files")
        self.root = root
        self._places: dict[str, tuple[str, str]] = {}
        for path in files_below(root):
            archive = path.relative_to(root).as_posix()
            if path.suffix == ".zip":
                for member in _members(path):
                    self._places[f"{archive}/{member}"] = (archive, member)
            else:
                self._places[archive] = (archive, "")
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in self._places:
            self._by_name[name.rsplit("/", 1)[-1]].append(name)

    def find(self, path: str) -> Part | None:
        """The file whose path is ``path`` or ends in ``/path``, rather unpacked than zipped."""
        ends = [
            name
            for name in self._by_name.get(path.rsplit("/", 1)[-1], ())
            if name == path or name.endswith("/" + path)
        ]
        if not ends:
            return None
        return self.part(min(ends, key=lambda name: (bool(self._places[name][1]), len(name), name)))

    def part(self, name: str) -> Part:
        """Where a file of :meth:`matching` lies."""
        archive, member = self._places[name]
        if member:
            return Part(archive, member)
        return Part(archive, "", 0, (self.root / archive).stat().st_size)

    def matching(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Matches of ``pattern`` in every path, in the order of the paths."""
        return filter(None, map(pattern.search, sorted(self._places)))

    def gather(self, **wanted: str | tuple[str, ...]) -> tuple[dict[str, Part], tuple[str, ...]]:
        """(role to place, paths that are missing) of what one frame needs.

        Args:
            wanted: role to path, or to the paths it may have in order of preference.
        """
        parts: dict[str, Part] = {}
        missing = []
        for role, paths in wanted.items():
            choices = (paths,) if isinstance(paths, str) else paths
            found = next(filter(None, map(self.find, choices)), None)
            if found is None:
                missing.append(choices[0])
            else:
                parts[role] = found
        return parts, tuple(missing)


def files_below(root: Path) -> Iterator[Path]:
    """Every file below ``root``, folder by folder; a folder that is linked twice is seen once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name)


def part_name(part: Part) -> str:
    """How a file is called in messages."""
    return f"{part.archive}!{part.member}" if part.member else part.archive


def refuse_web_page(path: Path) -> None:
    """A log-in page that was saved under the name of an archive.

    Raises:
        DatasetError: the file is a web page.
    """
    with path.open("rb") as file:
        if file.read(64).lstrip().lower().startswith(_PAGE_STARTS):
            raise DatasetError(f"{path}: a web page instead of the file; download it again")


def _members(path: Path) -> list[str]:
    refuse_web_page(path)
    return [name for name in zip_names(path) if not name.endswith("/")]
