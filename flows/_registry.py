"""The registry of champions: annotated git tags in the format of GTO, DVC's model registry.

``metricgold@v1.2.0`` is a version, ``metricgold#champion#3`` the third appointment of a champion;
the latest one counts. ``gto show``, ``gto history`` and ``dvc artifacts get`` read them. They are
made here and not by ``gto register`` and ``gto assign``, because GTO orders tags by their date in
whole seconds and dates them by the clock: two in one second, or a clock that was put back, would
leave the old champion in office. Here every tag is later than the one before.

A tag's commit has the run's ``dvc.lock`` and, in ``registry/``, the entry and the model card.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flows import _git
from metricgold.errors import UserError

NAME, STAGE = "metricgold", "champion"
ENTRY_FILE, CARD_FILE = "registry/entry.json", "registry/README.md"
FIRST_VERSION = "v1.0.0"

Bump = Literal["major", "minor", "patch"]

_VERSION = re.compile(rf"^{NAME}@(?P<version>v(\d+)\.(\d+)\.(\d+))$")
_APPOINTMENT = re.compile(rf"^{NAME}#{STAGE}#(?P<number>\d+)$")
_COUNTED = re.compile(rf"^{NAME}[#@].*#(?P<number>\d+)$")
_FIELDS = "%(refname:strip=2)%00%(*objectname)%00%(taggerdate:unix)%00%(contents:subject)"


@dataclass(frozen=True)
class Version:
    """A registered model; ``commit`` holds its entry and the hashes of its files."""

    name: str
    commit: str

    @property
    def tag(self) -> str:
        """Its git tag."""
        return f"{NAME}@{self.name}"

    @property
    def number(self) -> tuple[int, ...]:
        """Major, minor, patch."""
        return tuple(int(n) for n in self.name[1:].split("."))


@dataclass(frozen=True)
class Appointment:
    """The moment a version became the champion, and why."""

    number: int
    version: Version
    date: datetime
    reason: str

    @property
    def tag(self) -> str:
        """Its git tag."""
        return f"{NAME}#{STAGE}#{self.number}"


@dataclass(frozen=True)
class Registry:
    """What the tags say.

    Attributes:
        versions: in the order of their numbers.
        appointments: in the order of time.
        last_second: date of the latest tag (Unix time).
        last_number: of the tags that are counted.
    """

    root: Path
    versions: list[Version]
    appointments: list[Appointment]
    last_second: int
    last_number: int

    @property
    def line(self) -> list[Appointment]:
        """The champion (last) and before it those it goes back to, without the withdrawn."""
        line: list[Appointment] = []
        for one in self.appointments:
            names = [known.version.name for known in line]
            if one.version.name in names:
                del line[names.index(one.version.name) + 1 :]
            else:
                line.append(one)
        return line

    @property
    def champion(self) -> Version | None:
        """The version in office."""
        return self.appointments[-1].version if self.appointments else None

    @property
    def withdrawn(self) -> list[Version]:
        """Versions that were champion until somebody went back to an earlier one."""
        kept = {one.version.name for one in self.line}
        were = {one.version.name: one.version for one in self.appointments}
        return [version for name, version in were.items() if name not in kept]

    @property
    def waiting(self) -> list[Version]:
        """Versions that never were champion: a promotion was broken off after the first tag."""
        were = {one.version.name for one in self.appointments}
        return [version for version in self.versions if version.name not in were]

    def find(self, name: str | None) -> Version:
        """A version by its name (``v1.2.0``); None: the champion.

        Raises:
            UserError: there is none.
        """
        if name is None:
            if self.champion is None:
                raise UserError("there is no champion yet; run 'python -m flows.promotion promote'")
            return self.champion
        for version in self.versions:
            if version.name == name:
                return version
        known = ", ".join(v.name for v in self.versions) or "none"
        raise UserError(f"no version '{name}' is registered; there are: {known}")

    def next_version(self, bump: Bump = "minor") -> str:
        """The number of the version to be registered next."""
        if not self.versions:
            return FIRST_VERSION
        major, minor, patch = self.versions[-1].number
        return {
            "major": f"v{major + 1}.0.0",
            "minor": f"v{major}.{minor + 1}.0",
            "patch": f"v{major}.{minor}.{patch + 1}",
        }[bump]

    def next_second(self) -> int:
        """Date of the next tag: now, but later than every tag there is."""
        return max(int(time.time()), self.last_second + 1)

    def entry(self, version: Version) -> dict[str, Any]:
        """The registry entry of a version; empty for one that was not registered here."""
        if _git.resolve(self.root, f"{version.commit}:./{ENTRY_FILE}") is None:
            return {}
        found: dict[str, Any] = json.loads(_git.file_at(self.root, version.commit, ENTRY_FILE))
        return found

    def register(self, name: str, commit: str) -> Version:
        """Give a commit a version; the champion stays who it is."""
        version = Version(name, commit)
        self._tag(version.tag, commit, f"{NAME} {name}")
        return version

    def appoint(self, version: Version, reason: str) -> str:
        """Make a registered version the champion, by the creation of one tag; returns its name."""
        tag = f"{NAME}#{STAGE}#{self.last_number + 1}"
        self._tag(tag, version.commit, reason)
        return tag

    def _tag(self, name: str, commit: str, message: str) -> None:
        tag = _git.tag_object(self.root, name, commit, message, self.next_second())
        _git.create_refs(self.root, {f"refs/tags/{name}": tag})


def read_registry(root: Path) -> Registry:
    """The registry of the repository around ``root``; empty outside of git."""
    if _git.head(root) is None:
        return Registry(root, [], [], 0, 0)
    patterns = (f"refs/tags/{NAME}@*", f"refs/tags/{NAME}#*")
    listed = _git.git(root, "for-each-ref", f"--format={_FIELDS}", *patterns)
    rows = [line.split("\0") for line in listed.splitlines()]
    annotated = [(name, commit, int(date), text) for name, commit, date, text in rows if commit]
    versions = sorted(
        (Version(match["version"], c) for n, c, _, _ in annotated if (match := _VERSION.match(n))),
        key=lambda version: version.number,
    )
    return Registry(
        root,
        versions,
        _appointments(annotated, versions),
        max((date for _, _, date, _ in annotated), default=0),
        max((int(m["number"]) for n, *_ in annotated if (m := _COUNTED.match(n))), default=0),
    )


def _appointments(
    tags: Sequence[tuple[str, str, int, str]], versions: Sequence[Version]
) -> list[Appointment]:
    by_commit = {version.commit: version for version in versions}
    found = [
        Appointment(int(match["number"]), by_commit[c], datetime.fromtimestamp(date, UTC), text)
        for name, c, date, text in tags
        if (match := _APPOINTMENT.match(name)) and c in by_commit
    ]
    return sorted(found, key=lambda one: (one.date, one.number))
