"""Starting the page: what it may read, what a browser may load, and who is let in."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metricgold.demo.examples import render_examples
from metricgold.demo.results import Backend
from metricgold.errors import UserError
from metricgold.listening import LOOPBACK, port_taken
from metricgold.upload_limits import MAX_BYTES

SESSIONS = 64
"""Visitors whose last result is kept; the oldest is forgotten first."""

CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
"""A browser loads nothing from elsewhere for this page, whatever a library asks it to."""


class Guard:
    """ASGI middleware: the content policy on every answer, and no fetching of other addresses."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, but for Gradio's two routes that fetch an address on a visitor's behalf."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_policy(message: Any) -> None:
            """The answer's start with our headers."""
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", CONTENT_POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        path = scope["path"].lower()
        if "/proxy=" in path or "/file=http:" in path or "/file=https:" in path:
            await with_policy({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not allowed"})
            return
        await self.app(scope, receive, with_policy)


def parse_login(text: str | None) -> tuple[str, str] | None:
    """User and password of ``USER:PASSWORD``.

    Raises:
        UserError: one of them is missing.
    """
    if text is None:
        return None
    user, _, password = text.partition(":")
    if not user or not password:
        raise UserError("--auth: write USER:PASSWORD, both of them")
    return user, password


def warning(host: str, login: tuple[str, str] | None) -> str | None:
    """What to be warned of, if anything."""
    if host in LOOPBACK or login is not None:
        return None
    return (
        f"warning: whoever reaches {host} can use this page, there is no password; "
        "give one with --auth USER:PASSWORD"
    )


def serve(
    backends: Sequence[Backend],
    steps: int,
    *,
    host: str,
    port: int,
    max_megapixels: float,
    login: tuple[str, str] | None,
) -> None:
    """Serve the page until SIGINT or SIGTERM; its files are in a folder that goes with it.

    Raises:
        UserError: Gradio is not installed, or the port cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="metricgold-demo-") as name:
        folder = Path(name).resolve()
        _set_environment(folder)
        try:
            from starlette.middleware import Middleware

            from metricgold.demo import page
        except ModuleNotFoundError as error:
            if error.name not in ("gradio", "starlette"):
                raise
            raise UserError(
                "the page needs the extra 'demo' (pip install 'metricgold[demo]')"
            ) from None
        examples = folder / "examples"
        examples.mkdir()
        server = page.Server(backends, folder, max_megapixels)
        built = page.build(server, render_examples(examples), steps)
        try:
            built.launch(
                server_name=host,
                server_port=port,
                share=False,
                auth=login,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                allowed_paths=[],
                max_file_size=MAX_BYTES,
                state_session_capacity=SESSIONS,
                app_kwargs={"middleware": [Middleware(Guard)]},
                theme=page.theme(),
                css=page.style(),
                footer_links=["settings"],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
        except OSError:
            raise UserError(port_taken(host, port)) from None
        print(f"open http://{host}:{port}/ (Ctrl-C ends it)", flush=True)
        try:
            _wait()
        finally:
            built.close(verbose=False)


def _set_environment(folder: Path) -> None:
    """Gradio reads these when it is imported: no telemetry, and a folder of our own."""
    for name in [n for n in os.environ if n.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _wait() -> None:
    """Until somebody ends it."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        ended.wait()
    except KeyboardInterrupt:
        return
