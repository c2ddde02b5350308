"""``python -m flows.serve``: a Prefect server if none is there, and the deployment on it.

Serves ``train-metricgold/train-metricgold`` from the current folder until it is ended; runs one
flow at a time, later ones wait. What it started, it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from flows._environment import SERVER_START_SECONDS, prepare_environment
from flows._process import end_group, exit_on_sigterm, supervised
from flows._stage import SERVED_BY, project_root, server_answers
from metricgold.errors import UserError, run_cli

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
LOOPBACK = {"127.0.0.1", "localhost"}


def server_command(api_url: str) -> list[str]:
    """How to start a server at ``api_url``.

    Raises:
        UserError: the address is another machine's, where nothing can be started from here.
    """
    parts = urlsplit(api_url)
    if parts.hostname not in LOOPBACK or parts.port is None:
        raise UserError(
            f"PREFECT_API_URL={api_url}: no Prefect server answers there, and one is started only "
            f"on this machine; start it there, or unset the variable to use {DEFAULT_API_URL}"
        )
    address = ["--host", "127.0.0.1", "--port", str(parts.port)]
    return [sys.executable, "-m", "prefect", "server", "start", *address]


@contextmanager
def running_server(api_url: str) -> Iterator[None]:
    """A server at ``api_url`` while the block runs: the one that is there, or a new one."""
    if server_answers(api_url):
        print(f"using the Prefect server at {api_url}", flush=True)
        yield
        return
    command = server_command(api_url)
    print(f"starting a Prefect server at {api_url}", flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    process = subprocess.Popen(
        supervised(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_up(process, api_url)
        yield
    finally:
        end_group(process)


def _wait_until_up(process: subprocess.Popen[bytes], api_url: str) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while not server_answers(api_url, timeout_s=1.0):
        if process.poll() is not None:
            raise UserError(
                f"the Prefect server ended with status {process.returncode} while starting; is "
                f"port {urlsplit(api_url).port} taken by another program?"
            )
        if time.monotonic() > deadline:
            raise UserError(f"the Prefect server was not up after {SERVER_START_SECONDS} s")
        time.sleep(0.5)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    prepare_environment()
    exit_on_sigterm()
    project_root()
    api_url = os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL
    with running_server(api_url):
        os.environ["PREFECT_API_URL"] = api_url  # read when Prefect is imported, hence here
        os.environ[SERVED_BY] = str(os.getpid())
        serve_deployment()


def serve_deployment() -> None:
    """Register the deployment and run what is asked of it, until SIGTERM or Ctrl-C."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner
    from prefect.types.entrypoint import EntrypointType

    from flows.train_metricgold import NAME, train_metricgold

    class QuietRunner(Runner):
        """Ends on SIGTERM by cancelling its task, so that it cleans up and shows no traceback."""

        def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
            loop.call_soon_threadsafe(serving.cancel)

    runner = QuietRunner(limit=1, pause_on_shutdown=False)
    deployment = train_metricgold.to_deployment(
        NAME,
        description="Every stale stage of the DVC pipeline, in order.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    runner.add_deployment(cast(RunnerDeployment, deployment))  # a coroutine only in async code
    print(f"serving {NAME}; start a run with: prefect deployment run {NAME}", flush=True)
    with asyncio.Runner() as asyncio_runner:
        loop = asyncio_runner.get_loop()
        serving = loop.create_task(runner.start())
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio_runner.run(asyncio.wait_for(serving, None))
    print("ended", flush=True)


if __name__ == "__main__":
    run_cli(main)
