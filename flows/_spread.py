"""Where preprocessing and evaluation are done: on this machine, or by a Dask or Ray cluster.

One name says it, ``orchestration.runner`` in params.yaml or ``METRICGOLD_RUNNER``: ``threads`` of
this process, ``dask://HOST:PORT`` of a scheduler or ``ray://HOST:PORT`` of a cluster, ``dask`` or
``ray`` for a cluster on this machine while it is needed. A place to run decides no number, so DVC
does not see it. Every piece is a Prefect task, shown by the server at ``PREFECT_API_URL``; threads
do without one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from flows._stage import PARENT_TASK_RUN, server_answers
from metricgold.config import load_orchestration
from metricgold.errors import UserError
from metricgold.places import Place
from metricgold.spread import Item, Map, Result, Spread

RUNNER, SHARED = "METRICGOLD_RUNNER", "METRICGOLD_SHARED"
_FORM = re.compile(r"(threads)|(dask|ray)(?:://([\w.\-\[\]:]+:\d+))?")


def chosen_spread(stage: str, threads: int, runner: str = "", shared: str = "") -> Spread | None:
    """What is asked for, by arguments, the environment or params.yaml; None: by none of them.

    Raises:
        UserError: it is no runner, or something that it needs is missing.
    """
    settings = load_orchestration()
    runner = runner or os.environ.get(RUNNER) or settings.runner or ""
    if not runner:
        return None
    shared = shared or os.environ.get(SHARED) or settings.shared
    return Spread(
        mapper(runner, stage, threads),
        Place(shared),
        piece_bytes=int(settings.piece_mb * 10**6),
        piece_frames=settings.piece_frames,
    )


def mapper(runner: str, stage: str, threads: int) -> Map:
    """How ``runner`` maps pieces; ``stage`` names the flow run, ``threads`` are for ``threads``.

    Raises:
        UserError: it is no runner, a package is missing, or there is no Prefect server.
    """
    found = _FORM.fullmatch(runner)
    if found is None:
        raise UserError(
            f"{RUNNER}={runner}: no such runner; take threads, dask, dask://HOST:PORT, ray or "
            "ray://HOST:PORT"
        )
    served = server_answers(os.environ.get("PREFECT_API_URL"))
    if found[1] and not served:
        return _Threads(threads)
    if not served:
        raise UserError(
            f"{RUNNER}={runner}: its tasks are shown by a Prefect server, and none answers; start "
            "one with 'python -m flows.serve' and set PREFECT_API_URL to an address that all "
            "machines reach"
        )
    return _Tasks(lambda: _task_runner(runner, found[2], found[3], threads), stage)


def _task_runner(runner: str, kind: str | None, address: str | None, threads: int) -> Any:
    try:
        if kind == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            if address:
                return DaskTaskRunner(address=f"tcp://{address}")
            here = {"n_workers": threads, "threads_per_worker": 1, "dashboard_address": None}
            return DaskTaskRunner(cluster_kwargs=here)
        if kind == "ray":
            from prefect_ray import RayTaskRunner

            if address:
                return RayTaskRunner(address=f"ray://{address}")
            return RayTaskRunner(init_kwargs={"num_cpus": threads, "include_dashboard": False})
    except ImportError as error:
        raise UserError(
            f"{RUNNER}={runner}: needs a package that is missing ({error}); "
            f"pip install 'metricgold[{kind}]'"
        ) from None
    from prefect.task_runners import ThreadPoolTaskRunner

    return ThreadPoolTaskRunner(max_workers=threads)


class _Threads:
    """Threads of this process; no server, no Prefect."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: list[Item],
        take: Callable[[Result], None],
    ) -> None:
        """See :class:`metricgold.spread.Map`."""
        with ThreadPoolExecutor(self._threads) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                for future in futures:
                    take(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


class _Tasks:
    """Prefect tasks of a flow run of its own, which is a child of what runs here."""

    def __init__(self, task_runner: Callable[[], Any], stage: str) -> None:
        self._task_runner, self._stage = task_runner, stage

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: list[Item],
        take: Callable[[Result], None],
    ) -> None:
        """See :class:`metricgold.spread.Map`."""
        from prefect import flow, task
        from prefect.cache_policies import NO_CACHE

        work: Any = task(
            name="piece",
            task_run_name="{name}",
            cache_policy=NO_CACHE,
            persist_result=False,
            log_prints=True,
        )(_call)

        def body() -> None:
            """Submit all pieces, and take their results in order."""
            futures = [
                work.submit(_Work(function, item), getattr(item, "name", str(number)))
                for number, item in enumerate(items)
            ]
            for future in futures:
                take(future.result())

        token = _body.set(body)
        try:
            runner = self._task_runner()
            _run(flow(name="spread", persist_result=False, task_runner=runner)(spread), self._stage)
        finally:
            _body.reset(token)


_body: ContextVar[Callable[[], None]] = ContextVar("body")


def spread() -> None:
    """What the flow does. Prefect sends the flow to every machine, so it must hold nothing itself:
    its work lies beside it."""
    _body.get()()


class _Work:
    """A call that neither Prefect nor Dask looks into: both take tuples and dataclasses apart."""

    def __init__(self, function: Callable[[Any], Any], item: Any) -> None:
        self._function, self._item = function, item

    def __call__(self) -> Any:
        return self._function(self._item)


def _call(work: _Work, name: str) -> Any:
    return work()


def _run(made: Any, stage: str) -> None:
    """Run a flow as a child of the flow run that there is, or of the task run that shows us."""
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext
    from prefect.flow_engine import run_flow

    if FlowRunContext.get() is not None:
        made.with_options(flow_run_name=f"{stage} spread")()
        return
    parent = os.environ.get(PARENT_TASK_RUN)
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(
            made, name=f"{stage} spread", parent_task_run_id=UUID(parent) if parent else None
        )
    run_flow(made, flow_run=flow_run, parameters={})
