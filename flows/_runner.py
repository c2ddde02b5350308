"""The runner of ``flows.serve``: it outlives an outage of its server.

Prefect's own gives up looking for runs after three failures, and looking for cancelled ones after
three more quickly; from then on it ends, or lets nobody cancel anything.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Self

import httpx
from prefect.runner import Runner

_SERVER_ERROR = 500


def patient(ask: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """``ask`` of the server, which may be away or busy: then nothing is done until the next time.

    Raises:
        httpx.HTTPStatusError: the server refuses what it is asked for.
    """

    @functools.wraps(ask)
    async def asked(*arguments: Any, **options: Any) -> None:
        """Asked, if the server answers."""
        try:
            await ask(*arguments, **options)
        except httpx.TransportError:
            pass
        except httpx.HTTPStatusError as error:
            if error.response.status_code < _SERVER_ERROR:
                raise

    return asked


class PatientRunner(Runner):
    """Calls ``on_sigterm`` in place of ending at once, so that its owner can clean up."""

    def __init__(self, *, on_sigterm: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._on_sigterm = on_sigterm

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """SIGTERM arrived."""
        self._on_sigterm()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        for owner, name in (
            (self._scheduled_run_poller, "_get_and_submit_flow_runs"),
            (self._cancelling_observer, "_check_for_cancelled_flow_runs"),
        ):
            setattr(owner, name, patient(getattr(owner, name)))
        return self
