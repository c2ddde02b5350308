"""``python -m flows.serve``: a Prefect server if none is there, all deployments, the schedule.

Serves them from the current folder until it is ended. Of the flows that run stages one runs at a
time; later ones wait and say for what. Those that only look whether to train have a place of their
own. What it started, it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from flows._environment import SERVER_START_SECONDS, prepare_environment
from flows._process import end_group, exit_on_sigterm, supervised
from flows._stage import SERVED_BY, project_root, server_answers
from metricgold.config import OrchestrationConfig, ScheduleConfig, load_orchestration
from metricgold.errors import UserError, run_cli

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
LOOPBACK = {"127.0.0.1", "localhost"}
SERVER_TOKEN, CLIENT_TOKEN = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
POLL_SECONDS = 2.0
"""From asking for a run to its start, at most."""
RESTART_SECONDS = 1.0
"""From the end of a server that was killed to its next start."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address that the server listens on")
    parser.add_argument("--cron", help="when to train anew, in place of params.yaml; '' never")
    parser.add_argument("--timezone", help="of --cron, as Europe/Zurich")
    return parser.parse_args(arguments)


def with_options(settings: OrchestrationConfig, options: argparse.Namespace) -> OrchestrationConfig:
    """The section of params.yaml with what the command line says of the schedule.

    Raises:
        UserError: a time zone without a schedule.
    """
    if options.cron == "":
        return settings.model_copy(update={"schedule": None})
    known = settings.schedule
    cron = options.cron or (known.cron if known else None)
    zone = options.timezone or (known.timezone if known else "UTC")
    if cron is None:
        if options.timezone:
            raise UserError("--timezone without --cron, and params.yaml has no schedule either")
        return settings
    return settings.model_copy(update={"schedule": ScheduleConfig(cron=cron, timezone=zone)})


def refuse_open_server(host: str) -> None:
    """Let others reach the server only if it asks them for a token.

    Raises:
        UserError: it does not.
    """
    if host not in LOOPBACK and not os.environ.get(SERVER_TOKEN):
        raise UserError(
            f"--host {host}: others could reach the server and run flows on this machine; set "
            f"{SERVER_TOKEN}=USER:PASSWORD first, which it then asks for, or leave --host out"
        )


def server_command(api_url: str, host: str = "127.0.0.1") -> list[str]:
    """How to start a server that is reached at ``api_url`` from here and listens on ``host``.

    Raises:
        UserError: the address is another machine's, where nothing can be started from here.
    """
    parts = urlsplit(api_url)
    if parts.hostname not in LOOPBACK or parts.port is None:
        raise UserError(
            f"PREFECT_API_URL={api_url}: no Prefect server answers there, and one is started only "
            f"on this machine; start it there, or unset the variable to use {DEFAULT_API_URL}"
        )
    address = ["--host", host, "--port", str(parts.port)]
    return [sys.executable, "-m", "prefect", "server", "start", *address]


@contextmanager
def running_server(api_url: str, host: str) -> Iterator[None]:
    """A server at ``api_url`` while the block runs: the one that is there, or a new one."""
    if server_answers(api_url):
        print(f"using the Prefect server at {api_url}", flush=True)
        yield
        return
    server = OwnServer(server_command(api_url, host))
    print(f"starting a Prefect server at {api_url}", flush=True)
    try:
        server.start()
        server.wait_until_up(api_url)
        yield
    finally:
        server.end()


class OwnServer:
    """A server as a process of this one; once it was up it is started again whenever it ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = supervised(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._turn = threading.Lock()

    def start(self) -> None:
        """Once, and again by itself."""
        self._process = subprocess.Popen(
            self._command,
            env={k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_up(self, api_url: str) -> None:
        """Return when it answers; from then on it is kept up.

        Raises:
            UserError: it ended, or does not answer.
        """
        assert self._process is not None
        deadline = time.monotonic() + SERVER_START_SECONDS
        while not server_answers(api_url, timeout_s=1.0):
            if self._process.poll() is not None:
                raise UserError(
                    f"the Prefect server ended with status {self._process.returncode} while "
                    f"starting; is port {urlsplit(api_url).port} taken by another program?"
                )
            if time.monotonic() > deadline:
                raise UserError(f"the Prefect server was not up after {SERVER_START_SECONDS} s")
            time.sleep(0.5)
        threading.Thread(target=self._keep_up, daemon=True).start()

    def _keep_up(self) -> None:
        assert self._process is not None
        while True:
            status = self._process.wait()
            self._ended.wait(RESTART_SECONDS)
            with self._turn:
                if self._ended.is_set():
                    return
                print(f"the Prefect server ended ({status}); starting it again", flush=True)
                self.start()

    def end(self) -> None:
        """End it for good."""
        with self._turn:
            self._ended.set()
        if self._process is not None:
            end_group(self._process)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    prepare_environment()
    exit_on_sigterm()
    options = parse()
    refuse_open_server(options.host)
    settings = with_options(load_orchestration(project_root() / "params.yaml"), options)
    api_url = os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL
    if token := os.environ.get(SERVER_TOKEN):
        os.environ.setdefault(CLIENT_TOKEN, token)
    with running_server(api_url, options.host):
        os.environ["PREFECT_API_URL"] = api_url  # read when Prefect is imported, hence here
        os.environ[SERVED_BY] = str(os.getpid())
        serve_deployments(settings, api_url.removesuffix("/api"))


def serve_deployments(settings: OrchestrationConfig, page: str) -> None:
    """Register the deployments and run what is asked of them, until SIGTERM or Ctrl-C."""
    from flows._queue import WaitingRuns
    from flows._runner import PatientRunner
    from flows.deployments import PIPELINE, pipeline_deployments, watch_deployments
    from flows.train_metricgold import NAME

    def stop() -> None:
        """Cancelled, it cleans up and shows no traceback."""
        loop.call_soon_threadsafe(serving.cancel)

    runners = []
    for offered in (pipeline_deployments(settings), watch_deployments(settings)):
        options = {"limit": 1, "pause_on_shutdown": False, "query_seconds": POLL_SECONDS}
        runners.append(PatientRunner(on_sigterm=stop, **options))
        for deployment in offered:
            runners[-1].add_deployment(deployment)
            print(f"  {deployment.name}: {deployment.description}", flush=True)
    if settings.schedule is not None:
        print(f"trains at {settings.schedule.cron} ({settings.schedule.timezone})", flush=True)
    print(f"page: {page}", flush=True)
    print(f"serving {NAME}; start a run with: prefect deployment run {NAME}", flush=True)

    waiting = WaitingRuns([flow.name for flow in PIPELINE])

    async def serve() -> None:
        """All at once; the end of one ends the others."""
        async with asyncio.TaskGroup() as group:
            for runner in runners:
                group.create_task(runner.start())
            group.create_task(waiting.watch())

    with asyncio.Runner() as asyncio_runner:
        loop = asyncio_runner.get_loop()
        serving = loop.create_task(serve())
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio_runner.run(asyncio.wait_for(serving, None))
    print("ended", flush=True)


if __name__ == "__main__":
    run_cli(main)
