"""A folder served over HTTP on the loopback interface, with Range support.

Procedural archives and mirrors that are plain folders go through it, so that every download
is an HTTP download. Tests make it misbehave with :class:`Faults`.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

LISTING = "files.txt"
"""Names every file of the folder, a path a line; made on the fly where there is no such file."""
_BLOCK = 1 << 18
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


@dataclass
class Faults:
    """Ways to misbehave, for tests.

    Attributes:
        drop_after: bytes of a body after which the connection is cut, ``drops`` times.
        errors: how many requests are answered 500 first.
        ignore_range: answer 200 with the whole file whatever was asked for.
        shift_range: answer 206 with a range that begins so many bytes too late.
        html: answer every file with a web page.
        log: (method, path, Range header, bytes sent) of every request.
    """

    drop_after: int | None = None
    drops: int = 1
    errors: int = 0
    ignore_range: bool = False
    shift_range: int = 0
    html: bool = False
    log: list[tuple[str, str, str | None, int]] = field(default_factory=list)


class MirrorServer:
    """Context manager; ``url`` is the base address while it runs."""

    def __init__(self, folder: Path, faults: Faults | None = None) -> None:
        self._folder = folder.resolve()
        self._faults = faults or Faults()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Address of the folder served; RuntimeError when the server does not run."""
        if self._server is None:
            raise RuntimeError("the mirror server is not running")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> MirrorServer:
        mirror = self

        class Handler(_Handler):
            owner = mirror

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
        self._server = self._thread = None

    def file_for(self, url_path: str) -> Path | None:
        """The file a request names, or None where there is none inside the folder."""
        relative = unquote(urlsplit(url_path).path).lstrip("/")
        path = (self._folder / relative).resolve()
        inside = path.is_relative_to(self._folder)
        return path if inside and path.is_file() else None

    def listing(self) -> str:
        """Path of every file below the folder, a line each; folders that are links included."""
        found = []
        for folder, _, names in os.walk(self._folder, followlinks=True):
            found += [(Path(folder) / name).relative_to(self._folder).as_posix() for name in names]
        return "".join(f"{path}\n" for path in sorted(found))

    def take_error(self) -> bool:
        """Whether this request is to be answered 500."""
        with self._lock:
            self._faults.errors -= 1
            return self._faults.errors >= 0

    def take_drop(self, length: int) -> int | None:
        """After how many bytes this body is to be cut off, if at all."""
        limit = self._faults.drop_after
        with self._lock:
            if limit is None or length <= limit or self._faults.drops <= 0:
                return None
            self._faults.drops -= 1
            return limit

    @property
    def faults(self) -> Faults:
        """What the server does wrong on purpose."""
        return self._faults


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is no news; anything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: MirrorServer
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed; :attr:`Faults.log` holds them."""

    def _answer(self, body: bool) -> None:
        faults = self.owner.faults
        path = self.owner.file_for(self.path)
        if body and self.owner.take_error():
            self._plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        elif path is None and urlsplit(self.path).path == f"/{LISTING}":
            self._plain(HTTPStatus.OK, self.owner.listing().encode())
        elif path is None:
            self._plain(HTTPStatus.NOT_FOUND)
        elif faults.html:
            self._plain(HTTPStatus.OK, b"<!DOCTYPE html><html>please log in</html>", "text/html")
        else:
            self._file(path, body)

    def _plain(self, status: HTTPStatus, text: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)
        self._note(len(text))

    def _file(self, path: Path, body: bool) -> None:
        size = path.stat().st_size
        start, stop = 0, size
        match = _RANGE.match(self.headers.get("Range", ""))
        if match and not self.owner.faults.ignore_range:
            start = int(match[1]) + self.owner.faults.shift_range
            stop = min(size, int(match[2]) + 1) if match[2] else size
            if start >= stop:
                self._unsatisfiable(size)
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            self.send_response(HTTPStatus.OK)
        if not self.owner.faults.ignore_range:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self._send(path, start, stop)
        else:
            self._note(0)

    def _unsatisfiable(self, size: int) -> None:
        self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: Path, start: int, stop: int) -> None:
        limit = self.owner.take_drop(stop - start)
        end = stop if limit is None else start + limit
        self._note(end - start)
        with path.open("rb") as file:
            file.seek(start)
            while start < end and (block := file.read(min(_BLOCK, end - start))):
                self.wfile.write(block)
                start += len(block)
        if limit is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _note(self, sent: int) -> None:
        entry = (self.command, self.path, self.headers.get("Range"), sent)
        self.owner.faults.log.append(entry)


def file_url(base: str, path: str) -> str:
    """Address of ``path`` below a mirror's base URL."""
    return f"{base.rstrip('/')}/{quote(path)}"
