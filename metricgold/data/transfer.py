"""HTTP with resume and retry: the only place of the library that talks to a network."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
import tenacity

from metricgold.config import DownloadConfig
from metricgold.errors import UserError

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$")
_LONGEST_WAIT_S = 60.0
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_GONE = {404, 410}
_PAGE_STARTS = (b"<!doctype html", b"<html")
_T = TypeVar("_T")


class DownloadError(UserError):
    """A file could not be fetched; the message names its address and the reason."""


class MissingUpstreamError(DownloadError):
    """The server says that the file is not there (404 or 410)."""


class _TransientError(Exception):
    """Worth another attempt. ``gained`` says whether this one brought any bytes."""

    def __init__(self, reason: str, gained: bool = False) -> None:
        super().__init__(reason)
        self.gained = gained


class _Patience(tenacity.stop.stop_base):
    """Give up after ``retries`` attempts in a row that brought nothing."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._fruitless = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        gained = isinstance(error, _TransientError) and error.gained
        self._fruitless = 0 if gained else self._fruitless + 1
        return self._fruitless >= self._retries


class Transfer:
    """One HTTP client with the retry policy of :class:`DownloadConfig`; safe to share by threads.

    ``log`` receives a line about everything that a user may want to know afterwards. No more than
    ``per_host`` requests are made to one host at a time.
    """

    def __init__(self, config: DownloadConfig, log: Callable[[str], None] = print) -> None:
        self._config = config
        self._log = log
        self._stopped = threading.Event()
        self._hosts: dict[str, threading.Semaphore] = {}
        self._lock = threading.Lock()
        self._client = httpx.Client(
            timeout=config.timeout_s,
            follow_redirects=True,
            headers={"Accept-Encoding": "identity", "User-Agent": "metricgold"},
            mounts={"all://127.0.0.1": None},  # never through a proxy
        )

    def __enter__(self) -> Transfer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def stop(self) -> None:
        """Break off the transfers of all threads with a :class:`DownloadError`, soon."""
        self._stopped.set()

    def size(self, url: str) -> int | None:
        """Content-Length by HEAD; None where the server does not say.

        Raises:
            MissingUpstreamError: the file is not there.
            DownloadError: the server cannot be reached.
        """

        def attempt() -> int | None:
            """One question for the size."""
            response = self._client.head(url)
            if response.status_code in (405, 501):
                return None
            _check_status(response, url)
            _refuse_page(url, response.headers.get("Content-Type", ""), b"")
            length = response.headers.get("Content-Length")
            return int(length) if length and length.isdigit() else None

        return self._retry(url, attempt)

    def read_all(self, url: str) -> bytes:
        """A small file's bytes."""

        def attempt() -> bytes:
            """One download of the whole file."""
            response = self._client.get(url)
            _check_status(response, url)
            _refuse_page(url, response.headers.get("Content-Type", ""), response.content)
            return response.content

        return self._retry(url, attempt)

    def read_range(self, url: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (exclusive); the server must answer exactly these.

        Raises:
            DownloadError: the server ignores Range or answers another one.
        """

        def attempt() -> bytes:
            """One download of the range."""
            headers = {"Range": f"bytes={start}-{stop - 1}"}
            with self._client.stream("GET", url, headers=headers) as response:
                _check_status(response, url)
                if response.status_code != 206:
                    raise DownloadError(
                        f"{url}: the server ignores Range requests, which are needed to take "
                        "single members out of a remote zip; use another mirror"
                    )
                if _content_range(response, url)[:2] != (start, stop):
                    raise DownloadError(f"{url}: the server answered another byte range")
                data = response.read()
            if len(data) != stop - start:
                raise _TransientError(f"got {len(data)} of {stop - start} bytes")
            return data

        return self._retry(url, attempt)

    def fetch(self, url: str, part: Path, advance: Callable[[int], None]) -> None:
        """Fetch a whole file into ``part``, going on from what is already there.

        ``advance`` is told the number of bytes as they arrive (negative when a server
        that ignores Range makes the file start over).
        """
        part.parent.mkdir(parents=True, exist_ok=True)
        self._retry(url, lambda: self._fetch_once(url, part, advance))

    def _fetch_once(self, url: str, part: Path, advance: Callable[[int], None]) -> None:
        offset = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._client.stream("GET", url, headers=headers) as response:
            if response.status_code == 416 and offset:
                self._settle_full(url, part, offset, response)
                return
            _check_status(response, url)
            if response.status_code == 206:
                start, _, total = _content_range(response, url)
                if start != offset:
                    raise DownloadError(f"{url}: asked to go on from {offset}, got {start}")
            else:
                if offset:
                    self._log(f"{url}: the server ignores Range, starting over")
                    advance(-offset)
                offset, length = 0, response.headers.get("Content-Length")
                total = int(length) if length else None
            self._write(url, response, part, offset, total, advance)

    def _settle_full(self, url: str, part: Path, offset: int, response: httpx.Response) -> None:
        """416: either everything is there, or what is there belongs to another file."""
        if _content_range(response, url)[2] != offset:
            part.unlink()
            raise _TransientError(f"{offset} bytes were there, which is not its size now")

    def _write(
        self,
        url: str,
        response: httpx.Response,
        part: Path,
        offset: int,
        total: int | None,
        advance: Callable[[int], None],
    ) -> None:
        kind, done = response.headers.get("Content-Type", ""), offset
        try:
            with part.open("ab" if offset else "wb") as file:
                for block in response.iter_raw():
                    self._check_stopped(url)
                    if done == 0:
                        _refuse_page(url, kind, block)
                    file.write(block)
                    done += len(block)
                    advance(len(block))
        except httpx.TransportError as error:
            raise _TransientError(_reason(error), gained=done > offset) from None
        if total is not None and done != total:
            raise _TransientError(f"got {done} of {total} bytes", gained=offset < done < total)

    def _retry(self, url: str, attempt: Callable[[], _T]) -> _T:
        def guarded() -> _T:
            """An attempt in its turn, unless all are to stop."""
            self._check_stopped(url)
            try:
                with self._turn(url):
                    return attempt()
            except httpx.TransportError as error:
                raise _TransientError(_reason(error)) from None
            except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
                raise DownloadError(f"{url}: {_reason(error)}") from None

        def note(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            self._log(f"{url}: {error}; trying again")

        retrying = tenacity.Retrying(
            stop=_Patience(self._config.retries),
            wait=tenacity.wait_exponential(multiplier=self._config.backoff_s, max=_LONGEST_WAIT_S)
            + tenacity.wait_random(0, self._config.backoff_s),
            retry=tenacity.retry_if_exception_type(_TransientError),
            before_sleep=note,
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )
        try:
            return retrying(guarded)
        except _TransientError as error:
            raise DownloadError(
                f"{url}: {error} (gave up after {self._config.retries} attempts)"
            ) from None

    def _turn(self, url: str) -> threading.Semaphore:
        """Entered for a request to the host of ``url``."""
        host = httpx.URL(url).host
        with self._lock:
            return self._hosts.setdefault(host, threading.Semaphore(self._config.per_host))

    def _check_stopped(self, url: str) -> None:
        if self._stopped.is_set():
            raise DownloadError(f"{url}: broken off; a rerun goes on from here")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in _GONE:
        raise MissingUpstreamError(f"{url}: not there (HTTP {status})")
    if status in _RETRIED:
        raise _TransientError(f"HTTP {status}")
    if status not in (200, 206):
        raise DownloadError(f"{url}: HTTP {status} {response.reason_phrase}".rstrip())


def _content_range(response: httpx.Response, url: str) -> tuple[int, int, int | None]:
    """(start, stop, total) of a 206 answer; stop exclusive, total None if not said."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        raise DownloadError(f"{url}: HTTP {response.status_code} without a usable Content-Range")
    total = None if match[3] == "*" else int(match[3])
    start, stop = (int(match[1]), int(match[2]) + 1) if match[1] else (0, 0)
    return start, stop, total


def _refuse_page(url: str, content_type: str, first: bytes) -> None:
    """An error or log-in page sent with status 200 instead of the file."""
    if "text/html" in content_type or first[:64].lstrip().lower().startswith(_PAGE_STARTS):
        raise DownloadError(f"{url}: the server sent a web page instead of the file")
