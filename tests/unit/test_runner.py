"""An outage of the server is no reason to give up; a refusal is."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from flows._runner import PatientRunner, patient

REQUEST = httpx.Request("GET", "http://127.0.0.1/api/x")


def answered(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("x", request=REQUEST, response=httpx.Response(status))


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), answered(503)])
def test_an_outage_is_waited_for(error: Exception) -> None:
    asked = []

    async def ask(what: str) -> None:
        asked.append(what)
        raise error

    asyncio.run(patient(ask)("runs"))
    assert asked == ["runs"]


def test_what_is_refused_is_not_hidden() -> None:
    async def ask() -> None:
        raise answered(404)

    with pytest.raises(httpx.HTTPStatusError):
        asyncio.run(patient(ask)())


def test_both_loops_of_prefect_s_runner_are_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that they have in the pinned version, on the objects that it makes."""
    from prefect.runner import Runner

    class Loops:
        async def _get_and_submit_flow_runs(self) -> None:
            raise httpx.ConnectError("refused")

        _check_for_cancelled_flow_runs = _get_and_submit_flow_runs

    async def enter(self: Runner) -> Runner:
        self._scheduled_run_poller = self._cancelling_observer = Loops()
        return self

    monkeypatch.setattr(Runner, "__aenter__", enter)
    ended = []
    runner = PatientRunner(on_sigterm=lambda: ended.append(True), name="x")

    async def both() -> None:
        await runner.__aenter__()
        await runner._scheduled_run_poller._get_and_submit_flow_runs()
        await runner._cancelling_observer._check_for_cancelled_flow_runs()

    asyncio.run(both())
    runner.handle_sigterm()
    assert ended == [True]


def test_prefect_still_has_these_loops() -> None:
    from prefect._internal.observers import FlowRunCancellingObserver
    from prefect.runner._scheduled_run_poller import ScheduledRunPoller

    assert asyncio.iscoroutinefunction(ScheduledRunPoller._get_and_submit_flow_runs)
    assert asyncio.iscoroutinefunction(FlowRunCancellingObserver._check_for_cancelled_flow_runs)
