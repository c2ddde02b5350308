"""The server that ``flows.serve`` starts: again when it is killed, never after its end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import pytest

from flows._stage import server_answers
from flows.serve import OwnServer
from metricgold.errors import UserError


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_killed_server_comes_back_until_it_is_ended(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"]
    server = OwnServer(command)
    server.start()
    try:
        server.wait_until_up(url)
        assert server._process is not None
        os.killpg(server._process.pid, signal.SIGKILL)
        until(lambda: not server_answers(url))
        until(lambda: server_answers(url))
        assert "starting it again" in capsys.readouterr().out
    finally:
        server.end()
    time.sleep(1.5)  # longer than it takes to start it again
    assert not server_answers(url)


def test_a_server_that_cannot_start_is_not_tried_again(url: str) -> None:
    server = OwnServer([sys.executable, "-c", "raise SystemExit(3)"])
    server.start()
    with pytest.raises(UserError, match="ended with status 3 while starting"):
        server.wait_until_up(url)
    server.end()
    assert not server_answers(url)
