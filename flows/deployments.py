"""What ``python -m flows.serve`` offers: every deployment with its schedule."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from prefect import Flow
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule
from prefect.types.entrypoint import EntrypointType

from flows.parts import evaluate_metricgold, export_metricgold, ingest_dataset
from flows.train_metricgold import train_metricgold
from flows.watch import watch_quality, watch_sources
from metricgold.config import OrchestrationConfig
from metricgold.errors import UserError

SLUG = "weekly"
"""Names the schedule of the retraining, so that serving it again, or a worker, replaces it."""

PIPELINE: list[Flow[Any, Any]] = [
    train_metricgold,
    evaluate_metricgold,
    export_metricgold,
    ingest_dataset,
]
WATCHES: list[Flow[Any, Any]] = [watch_sources, watch_quality]


def pipeline_deployments(settings: OrchestrationConfig) -> list[RunnerDeployment]:
    """The flows that run stages; ``train-metricgold`` with its schedule.

    Raises:
        UserError: the cron line or the time zone cannot be read.
    """
    schedules = {}
    if settings.schedule is not None:
        try:
            cron = Cron(settings.schedule.cron, timezone=settings.schedule.timezone, slug=SLUG)
            schedules[train_metricgold.name] = [checked(cron)]
        except ValueError as error:
            raise UserError(f"orchestration.schedule: {' '.join(str(error).split())}") from None
    return [deployment(each, schedules.get(each.name, [])) for each in PIPELINE]


def watch_deployments(settings: OrchestrationConfig) -> list[RunnerDeployment]:
    """The flows that look for a reason to train; by themselves if ``watch_minutes`` is given."""
    every = settings.watch_minutes
    timed = [] if every is None else [Interval(timedelta(minutes=every), slug="watch")]
    active = {watch_sources.name: timed, watch_quality.name: timed if settings.quality else []}
    return [deployment(each, active[each.name]) for each in WATCHES]


def checked(schedule: Schedule) -> Schedule:
    """``schedule`` if the server will take it.

    Raises:
        ValueError: it will not.
    """
    from prefect.client.schemas.schedules import CronSchedule

    CronSchedule(cron=str(schedule.cron), timezone=schedule.timezone)
    return schedule


def deployment(each: Flow[Any, Any], schedules: list[Schedule]) -> RunnerDeployment:
    """A flow under its own name; its docstring's first line is what the page says of it."""
    made = each.to_deployment(
        each.name,
        description=(each.fn.__doc__ or "").strip().partition("\n")[0],
        schedules=schedules,
        entrypoint_type=EntrypointType.MODULE_PATH,
        enforce_parameter_schema=True,
    )
    return cast(RunnerDeployment, made)  # a coroutine only in async code
