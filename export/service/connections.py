"""Connections over which nobody asks anything in time are closed."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_S = 10.0
"""For a request's header, from its first byte; of a new connection, from its beginning."""


class TimedProtocol(H11Protocol):
    """uvicorn's own, which waits for a header for ever; bodies are timed by the service."""

    header_s = HEADER_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """It sends; until a header is whole, the time runs."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._header_timer is None:
            handler = self.timeout_keep_alive_handler  # closes the connection
            self._header_timer = self.loop.call_later(self.header_s, handler)

    def _stop(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
