"""What a mirror server was asked for."""

from __future__ import annotations

import time

from metricgold.data.mirror_server import Faults


def logged(faults: Faults, at_least: int = 1) -> list[tuple[str, str, str | None, int]]:
    """The requests, once there are ``at_least`` so many (or five seconds have passed).

    The server notes a request after its last byte was sent, so the client may be done before.
    """
    end = time.monotonic() + 5.0
    while len(faults.log) < at_least and time.monotonic() < end:
        time.sleep(0.01)
    return faults.log
