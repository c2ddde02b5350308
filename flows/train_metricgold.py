"""Flow ``train-metricgold``: the whole DVC pipeline, one task run a stage.

DVC decides what is stale; this flow shows the order, the logs and the figures, and ends the
running stage when it is cancelled. Without a server: ``python -m flows.train_metricgold``.
"""

from __future__ import annotations

import os
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from flows import _dvc
from flows._process import die_with
from flows._stage import PARENT_TASK_RUN, SERVED_BY, project_root, server_answers
from metricgold.errors import UserError, run_cli

NAME = "train-metricgold"
METRICS_KEY = "metricgold-metrics"
DOWNLOAD_RETRIES = 2


@task(name="stage", task_run_name="{stage}", persist_result=False, cache_policy=NO_CACHE)
def reproduce_stage(stage: str, stale: bool, force: bool) -> str:
    """Bring one stage up to date; returns 'up to date' or 'reproduced'."""
    logger = get_run_logger()
    if not stale:
        logger.info("%s: up to date", stage)
        return "up to date"
    context = TaskRunContext.get()
    parent = {PARENT_TASK_RUN: str(context.task_run.id)} if context else {}
    _dvc.reproduce(Path.cwd(), stage, logger.info, force=force, env=parent)
    return "reproduced"


def change_params(root: Path, profile: str | None, overrides: list[str] | None) -> None:
    """Write ``profile`` and ``overrides`` into params.yaml, as ``dvc exp run -S`` would."""
    wanted = [*([f"profile={profile}"] if profile else []), *(overrides or [])]
    if wanted:
        _dvc.apply_overrides(root / "params.yaml", wanted)
        get_run_logger().info("params.yaml: set %s", ", ".join(wanted))


def publish_metrics(root: Path) -> None:
    """The figures of the run as a table artifact of the flow run."""
    rows = _dvc.read_metrics(root)
    description = f"Metrics after {NAME}" if rows else "No stage of this pipeline writes metrics."
    create_table_artifact(key=METRICS_KEY, table=rows, description=description)


@flow(name=NAME, persist_result=False)
def train_metricgold(
    profile: str | None = None, force: bool = False, overrides: list[str] | None = None
) -> dict[str, str]:
    """Run every stage that is stale, in the order of the DAG, in the current folder.

    Args:
        profile: a profile of params.yaml; None keeps the one that is set there.
        force: run every stage, stale or not.
        overrides: ``key=value`` in the syntax of ``dvc exp run -S``; they stay in params.yaml.

    Returns:
        stage to 'up to date' or 'reproduced'.
    """
    die_with(SERVED_BY)
    root = project_root()
    change_params(root, profile, overrides)
    graph = _dvc.read_graph(root)
    order = _dvc.stage_order(graph)
    stale = set(order) if force else _dvc.with_followers(graph, _dvc.changed_stages(root))
    get_run_logger().info("%d of %d stages may have to run", len(stale), len(order))
    done: dict[str, str] = {}
    for stage in order:
        retries = DOWNLOAD_RETRIES if stage.startswith("download@") else 0
        run = reproduce_stage.with_options(retries=retries, retry_delay_seconds=10)
        done[stage] = run(stage, stale=stage in stale, force=force)
    publish_metrics(root)
    return done


def main() -> None:
    """Run the flow here and now: on the server of PREFECT_API_URL, else on a temporary one."""
    api_url = os.environ.get("PREFECT_API_URL")
    if api_url and not server_answers(api_url):
        raise UserError(
            f"PREFECT_API_URL={api_url}: no Prefect server answers there; start one with "
            "'python -m flows.serve', or unset the variable"
        )
    train_metricgold()


if __name__ == "__main__":
    run_cli(main)
