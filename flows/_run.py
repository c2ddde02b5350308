"""What the flows that run stages share: from 'what is stale' to what is left on the page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import _artifacts
from flows._dvc import Pipeline, needed_by, stage_order, with_followers
from flows._secrets import load_secrets
from flows._stages import MOST_AT_ONCE, UP_TO_DATE, Runner, run_stages
from metricgold.config import load_orchestration
from metricgold.errors import UserError
from metricgold.workspace import Workspace

SKIPPED = "Skipped"
NOTHING_CHANGED = "nothing changed since the last run: neither data, nor parameters, nor code"

OPTIONS: dict[str, Any] = {
    "persist_result": False,
    "task_runner": ThreadPoolTaskRunner(max_workers=MOST_AT_ONCE),
}
"""Of every flow that runs stages."""


def bring_up_to_date(
    root: Path,
    name: str,
    wanted: Callable[[str], bool],
    *,
    forced: Collection[str] = (),
    force: bool = False,
    resume: bool = True,
) -> dict[str, str]:
    """Reproduce the stale ones among the ``wanted`` stages, and ``forced`` ones in any case.

    Where nothing is stale no task run is made. Publishes metrics and what the run was made of.

    Args:
        name: of the flow.
        force: every wanted stage in any case.
        resume: go on from checkpoints of interrupted runs; else they are removed.

    Returns:
        stage to 'up to date' or 'reproduced'.

    Raises:
        UserError: no stage is wanted, or a forced one does not exist; a stage failed.
    """
    logger, settings = get_run_logger(), load_orchestration(root / "params.yaml")
    with Pipeline(root) as pipeline:
        graph = pipeline.graph()
        order = [stage for stage in stage_order(graph) if wanted(stage)]
        if not order or not set(forced) <= set(order):
            absent = ", ".join(sorted(set(forced) - set(order))) or "what this flow runs"
            raise UserError(f"{root / 'dvc.yaml'}: no stage is {absent}")
        always = set(order) if force else set(forced)
        stale = with_followers(graph, pipeline.changed() | always)
        if behind := stale & needed_by(graph, order):
            logger.warning("stale, but not run here: %s", ", ".join(sorted(behind)))
        stale &= set(order)
        logger.info("%d of %d stages may have to run", len(stale), len(order))
        if not stale:
            logger.info("%s", "\n".join(f"{stage}: {UP_TO_DATE}" for stage in order))
            return dict.fromkeys(order, UP_TO_DATE)
        if not resume:
            forget_checkpoints(root, stale)
        runner = Runner(pipeline, settings, load_secrets(settings.secrets), always)
        done = run_stages(order, graph, stale, runner)
        _artifacts.publish_metrics(pipeline.metrics(), name)
    tag_run(_artifacts.publish_origin(root))
    return done


def skipped(done: dict[str, str]) -> State[Any]:
    """A completed state that says that there was nothing to do, and an artifact alike."""
    _artifacts.publish_skipped(NOTHING_CHANGED)
    return Completed(name=SKIPPED, message=f"Skipped: {NOTHING_CHANGED}", data=done)


def forget_checkpoints(root: Path, stages: Collection[str]) -> None:
    """Remove what interrupted runs of ``stages`` left to go on from."""
    kinds = {stage.replace("@", "_") for stage in stages}
    for folder in sorted(Workspace(root).scratch("").glob("*")):
        if any(folder.name == kind or folder.name.startswith(f"{kind}_") for kind in kinds):
            shutil.rmtree(folder)
            get_run_logger().info("%s: removed, so that nothing goes on from there", folder)


def tag_run(tags: list[str]) -> None:
    """Add tags to the current flow run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not tags:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=[*context.flow_run.tags, *tags])
