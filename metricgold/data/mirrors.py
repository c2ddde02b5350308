"""Where a dataset's files come from: configured mirrors, or the archives that were rendered."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from metricgold.data.mirror_server import MirrorServer, file_url
from metricgold.data.transfer import DownloadError, MissingUpstreamError
from metricgold.errors import UserError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Mirror:
    """``label`` is what the configuration says (stable, no secrets), ``url`` where it is now."""

    label: str
    url: str


def expand(mirror: str) -> str:
    """Put in environment variables (``$NAME``, ``${NAME}``).

    Raises:
        UserError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        """The variable's value, or a sentence that it is missing."""
        name = match[1] or match[2]
        found = os.environ.get(name)
        if not found:
            raise UserError(
                f"the mirror '{mirror}' needs the environment variable {name}, which is not set; "
                "set it to a folder or a URL"
            )
        return found

    return _VARIABLE.sub(value, mirror)


@contextmanager
def open_mirrors(mirrors: Sequence[str], rendered: Path | None) -> Iterator[list[Mirror]]:
    """The mirrors in order; folders are served on the loopback while the context lasts.

    ``rendered`` is a folder of procedural archives, which then is the only mirror.

    Raises:
        UserError: a variable is not set, or a mirror is neither a URL nor a folder.
    """
    with ExitStack() as stack:
        if rendered is not None:
            server = stack.enter_context(MirrorServer(rendered))
            yield [Mirror("procedural", server.url)]
            return
        opened = []
        for label in mirrors:
            place = expand(label)
            if not place.startswith(("http://", "https://")):
                if not Path(place).is_dir():
                    raise UserError(f"the mirror '{label}' ({place}) is neither a URL nor a folder")
                place = stack.enter_context(MirrorServer(Path(place))).url
            opened.append(Mirror(label, place))
        yield opened


def addresses(mirrors: Sequence[Mirror], path: str, urls: Sequence[str]) -> list[Mirror]:
    """Where ``path`` can be had, in the order of trying: (stable address, address now)."""
    places = [Mirror(f"{m.label.rstrip('/')}/{path}", file_url(m.url, path)) for m in mirrors]
    return places + [Mirror(url, url) for url in urls]


def first_that_works(
    places: Sequence[Mirror], attempt: Callable[[str], _T], log: Callable[[str], None]
) -> tuple[Mirror, _T]:
    """Try each address in turn.

    Raises:
        MissingUpstreamError: every one says that the file is not there.
        DownloadError: none worked, and at least one for another reason.
    """
    errors: list[DownloadError] = []
    for place in places:
        try:
            return place, attempt(place.url)
        except DownloadError as error:
            errors.append(error)
            if len(places) > 1:
                log(f"{error}; trying the next mirror")
    if not errors:
        raise DownloadError("no mirror is configured")
    if all(isinstance(error, MissingUpstreamError) for error in errors):
        raise errors[-1]
    raise DownloadError("; ".join(map(str, errors))) from errors[-1]
