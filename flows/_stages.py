"""Stages as task runs: in the DAG's order, side by side where told, tried again where it may help.

DVC holds its lock only while it looks and records, not while a stage's command runs, so several
stages can run at once. Which of them may is said in params.yaml (``orchestration.parallel``).
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture

from flows._artifacts import Progress
from flows._dvc import Graph, Pipeline, StageError, TemporaryError
from flows._secrets import hider
from flows._shown import ShownStage
from flows._stage import PARENT_TASK_RUN
from metricgold.config import OrchestrationConfig, RetryConfig

Future = PrefectFuture[str]
REPRODUCED, UP_TO_DATE = "reproduced", "up to date"
MOST_AT_ONCE = 16


class Runner:
    """What all stages of a run share."""

    def __init__(
        self,
        pipeline: Pipeline,
        settings: OrchestrationConfig,
        secrets: Mapping[str, str],
        forced: Collection[str] = (),
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self._secrets = secrets
        self._forced = forced

    def run(self, stage: str, log: Callable[[str], None], parent: UUID) -> None:
        """Bring a stage up to date, its lines to ``log``, without secrets in them.

        Args:
            parent: the task run.
        """
        progress, hidden = Progress(stage), hider(self._secrets)

        def write(line: str) -> None:
            """One line of the stage."""
            log(hidden(line))
            progress(line)
            shown()

        with ShownStage(stage, parent) as shown:
            try:
                self.pipeline.reproduce(
                    stage,
                    write,
                    force=stage in self._forced,
                    env={**self._secrets, PARENT_TASK_RUN: str(parent)},
                    timeout_s=self.settings.timeout_s.get(kind_of(stage)),
                )
            except StageError as error:
                raise type(error)(hidden(str(error))) from None


@task(name="stage", task_run_name="{stage}", persist_result=False, cache_policy=NO_CACHE)
def reproduce_stage(stage: str, stale: bool, runner: Runner) -> str:
    """Bring one stage up to date; returns 'up to date' or 'reproduced'."""
    logger = get_run_logger()
    if not stale:
        logger.info("%s: up to date", stage)
        return UP_TO_DATE
    context = TaskRunContext.get()
    assert context is not None
    runner.run(stage, logger.info, context.task_run.id)
    return REPRODUCED


def kind_of(stage: str) -> str:
    """A stage's name without its dataset."""
    return stage.partition("@")[0]


def retries(settings: RetryConfig) -> dict[str, Any]:
    """Options of a task: again where the network failed, each time later; else never."""
    return {
        "retries": settings.attempts,
        "retry_delay_seconds": [settings.backoff_s * 2**n for n in range(settings.attempts)],
        "retry_condition_fn": _was_temporary,
    }


def _was_temporary(task: Any, task_run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), TemporaryError)


def run_stages(
    order: Sequence[str], graph: Graph, stale: set[str], runner: Runner
) -> dict[str, str]:
    """Run the stages of ``order``; each after what it needs of them. Stage to what was done.

    Once one has failed no other is started; those that run are waited for.

    Raises:
        StageError: of the first that failed.
    """
    configured = reproduce_stage.with_options(**retries(runner.settings.retry))

    def start(stage: str, needs: list[Future]) -> Future:
        """As a task run in a thread; ``needs`` are shown as its predecessors."""
        return configured.submit(stage, stage in stale, runner, wait_for=needs, return_state=False)

    return schedule(order, graph, start, runner.settings.parallel)


def schedule(
    order: Sequence[str],
    graph: Graph,
    start: Callable[[str, list[Future]], Future],
    parallel: Mapping[str, int],
) -> dict[str, str]:
    """Start every stage once its needs are done and a place of its kind is free.

    ``parallel``: places of a kind of stage; all other kinds share one.
    """
    waiting, running, done = list(order), set[str](), dict[str, Future]()
    ended: queue.SimpleQueue[tuple[str, Future]] = queue.SimpleQueue()
    failed: Future | None = None
    while running or (waiting and failed is None):
        for stage in list(waiting) if failed is None else []:
            needs = graph[stage] & set(order)
            if needs <= done.keys() and _has_place(stage, running, parallel):
                waiting.remove(stage)
                running.add(stage)
                future = start(stage, [done[need] for need in needs])
                future.add_done_callback(functools.partial(_report, ended, stage))
        stage, future = ended.get()
        running.remove(stage)
        future.wait()  # else its state is asked of the server, which may not know it yet
        if future.state.is_completed():
            done[stage] = future
        else:
            failed = failed or future
    if failed is not None:
        failed.result()  # raises what the stage raised
    return {stage: done[stage].result() for stage in order}


def _report(ended: queue.SimpleQueue[tuple[str, Future]], stage: str, future: Future) -> None:
    ended.put((stage, future))


def _has_place(stage: str, running: Collection[str], parallel: Mapping[str, int]) -> bool:
    kind = kind_of(stage)
    if kind in parallel:
        return sum(kind_of(other) == kind for other in running) < parallel[kind]
    return all(kind_of(other) in parallel for other in running)
