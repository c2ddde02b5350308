"""What is noted of every request: a line in the log and figures. Never what a picture shows."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

from export.service.limits import Limits
from export.service.metrics import Metrics

logger = logging.getLogger(__name__)

SEND_S = 30.0
"""Beyond ``timeout_s``, for the answer's way to a slow client."""

GONE = 499
"""The status that is noted where a client did not wait for its answer."""


class Watched:
    """ASGI middleware, the outermost: notes each answer, and ends what takes for ever."""

    def __init__(self, app: Any, metrics: Metrics, limits: Limits) -> None:
        self.app = app
        self._metrics = metrics
        self._most_s = limits.timeout_s + SEND_S

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state, began, status = scope.setdefault("state", {}), time.monotonic(), GONE

        async def noted(message: Any) -> None:
            """Remember the status."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(self._most_s):
                await self.app(scope, receive, noted)
        except TimeoutError:
            status = GONE  # it reads its answer too slowly; the connection is closed
        finally:
            if "leave" in state:
                state["leave"]()
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, seconds)
            said = {"method": scope["method"], "route": route, "status": status}
            said |= {"seconds": round(seconds, 4)} | state.get("said", {})
            logger.info("request", extra={"said": said})


class JsonLines(logging.Formatter):
    """One JSON object a line; ``extra={"said": {...}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "said", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_in_json_lines() -> None:
    """This process's log, to stderr; of libraries only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("export.service").setLevel(logging.INFO)
