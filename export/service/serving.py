"""Starting and ending the service (entry point ``metricgold.servers``)."""

from __future__ import annotations

import logging
import math
import signal
import socket
from pathlib import Path
from typing import Any

from export.service.limits import Limits
from metricgold.errors import UserError
from metricgold.listening import LOOPBACK, port_taken

logger = logging.getLogger(__name__)

BACKLOG = 128
LIBRARIES = (
    "h11",
    "fastapi",
    "uvicorn",
    "starlette",
    "multipart",
    "python_multipart",
    "prometheus_client",
)


def check_exposure(host: str, token: str | None) -> None:
    """Refuse to listen where others reach it without a token.

    Raises:
        UserError: says how to give one.
    """
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError("the token must be printable ASCII without spaces")
    if host not in LOOPBACK and not token:
        raise UserError(
            f"--host {host} can be reached by others; give a token with --token or "
            "METRICGOLD_SERVE_TOKEN, or leave --host out"
        )


def serve(
    model: Path,
    *,
    backend: str,
    engines: Path | None,
    threads: int | None,
    host: str,
    port: int,
    token: str | None,
    **limits: Any,
) -> None:
    """Answer requests until SIGINT or SIGTERM; what is being answered then is finished first.

    Args:
        model: folder of exported graphs; opened while the server answers already.
        port: 0 takes a free one; the log's line ``listening`` says which.
        limits: of :class:`Limits`.

    Raises:
        UserError: exposed without a token, a port that is taken, or a package missing.
        ExportError: the model cannot be opened.
    """
    token = token or None
    check_exposure(host, token)
    try:
        import uvicorn

        from export.service.app import create_app
        from export.service.connections import HEADER_S, TimedProtocol
        from export.service.metrics import Metrics
        from export.service.model import Model
        from export.service.service import Service
        from export.service.watching import Watched, log_in_json_lines
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise UserError(
            "the service needs the extra 'serve' (pip install 'metricgold[serve]')"
        ) from None
    metrics, bounds = Metrics(), Limits(**limits)
    opened = Model(
        model,
        backend,
        bounds,
        engines=engines,
        threads=threads,
        report=logger.info,
        counted=metrics.batch,
    )
    service = Service(opened, bounds, metrics)

    class Protocol(TimedProtocol):
        header_s = min(HEADER_S, bounds.timeout_s)

    listening = _listen(host, port)
    log_in_json_lines()
    server = uvicorn.Server(
        uvicorn.Config(
            Watched(create_app(service, token), metrics, bounds),
            http=Protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=math.ceil(bounds.timeout_s),
        )
    )
    service.on_failure = lambda: setattr(server, "should_exit", True)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has ended
        signal.signal(number, lambda *_: None)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}/"
    logger.info("listening", extra={"said": {"url": url, "token": token is not None}})
    server.run(sockets=[listening])
    if service.failure is not None:
        raise service.failure
    logger.info("ended")


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise UserError(port_taken(host, port)) from None
    return listening
