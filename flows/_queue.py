"""Says of runs whose turn has not come what they wait for.

In their own logs, and in the output of who serves them; Prefect shows them as late and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

EVERY_S = 3.0
BUSY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class WaitingRuns:
    """Looks every few seconds; each run is told once what it waits for.

    Args:
        deployments: names of those of which one run at a time is started.
    """

    def __init__(self, deployments: Collection[str]) -> None:
        self._served = DeploymentFilter(name=DeploymentFilterName(any_=sorted(deployments)))
        self._told: set[tuple[UUID, UUID]] = set()
        logging.getLogger("prefect.runner").addFilter(_says_something)

    async def watch(self) -> None:
        """Until cancelled; a server that is away or busy is asked again."""
        async with get_client() as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    await self._look(client)
                await asyncio.sleep(EVERY_S)

    async def _look(self, client: PrefectClient) -> None:
        busy = await self._runs(client, BUSY)
        if not busy:
            return
        before = datetime.now(UTC) - timedelta(seconds=EVERY_S)
        due = FlowRunFilterExpectedStartTime.model_validate({"before_": before})
        for run in await self._runs(client, [StateType.SCHEDULED], due):
            if (run.id, busy[-1].id) not in self._told:
                self._told.add((run.id, busy[-1].id))
                await _tell(client, run, busy[-1])

    async def _runs(
        self,
        client: PrefectClient,
        types: list[StateType],
        due: FlowRunFilterExpectedStartTime | None = None,
    ) -> list[FlowRun]:
        """Runs in one of these states, the one that was due first at the beginning."""
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=types))
        return await client.read_flow_runs(
            deployment_filter=self._served,
            flow_run_filter=FlowRunFilter(state=state, expected_start_time=due),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        )


async def _tell(client: PrefectClient, run: FlowRun, busy: FlowRun) -> None:
    message = f"'{run.name}' waits until '{busy.name}' has ended: one run at a time"
    print(message, flush=True)
    entry = {
        "name": "metricgold",
        "level": logging.INFO,
        "message": message,
        "timestamp": datetime.now(UTC),
        "flow_run_id": run.id,
    }
    await client.create_logs([LogCreate.model_validate(entry)])


def _says_something(record: logging.LogRecord) -> bool:
    """Not the runner's own line, every two seconds, that runs were 'skipped'."""
    return "(at capacity)" not in str(record.msg)
