"""A stage on the page as if it had been started by itself: a flow run below its task run."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed, Running
from prefect.types._datetime import now

EVERY_S = 0.1
PATIENCE_S = 10.0


class ShownStage:
    """A context manager; call it now and then while the stage runs.

    The server learns of task runs a little later than it is asked, and takes nothing below one
    that it does not know, so it is asked again. What is only shown never makes a stage fail.
    """

    def __init__(self, stage: str, parent: UUID) -> None:
        self._stage, self._parent = stage, parent
        self._begin, self._next = now("UTC"), 0.0
        self._run: UUID | None = None
        self._client: Any = get_client(sync_client=True)

    def __enter__(self) -> ShownStage:
        self._client.__enter__()
        self()
        return self

    def __call__(self) -> None:
        """Make the flow run, unless it is there or was asked for a moment ago."""
        if self._run is not None or time.monotonic() < self._next:
            return

        def nothing() -> None:
            """The stage runs in a process of its own."""

        shown = flow(name=self._stage.replace("_", "-"))(nothing)
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # asked again here, sooner
                made = self._client.create_flow_run(
                    shown,
                    name=self._stage,
                    parent_task_run_id=self._parent,
                    state=Running(timestamp=self._begin),
                )
            self._run = made.id
        except httpx.HTTPError:
            self._next = time.monotonic() + EVERY_S

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        state: State[Any] = Completed() if error is None else Failed(message=str(error))
        deadline = time.monotonic() + PATIENCE_S
        try:
            self()
            while self._run is None and time.monotonic() < deadline:
                time.sleep(EVERY_S)
                self()
            if self._run is not None:
                self._client.set_flow_run_state(self._run, state, force=True)
        except httpx.HTTPError:
            pass  # the task run says the same
        finally:
            self._client.__exit__(None, None, None)
