"""Flows that run a part of the pipeline: ingest a dataset, evaluate, export.

They run their own stages alone. What those need is taken as it is; where it is stale the run says
so in its log, and ``train-metricgold`` is what brings it up to date.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State

from flows import _artifacts
from flows._parameters import Datasets
from flows._process import die_with
from flows._run import OPTIONS, bring_up_to_date, skipped
from flows._stage import SERVED_BY, project_root
from flows._stages import UP_TO_DATE
from metricgold.config import DATASET_NAMES, DatasetName

EVALUATE, EXPORT, INGEST = "evaluate-metricgold", "export-metricgold", "ingest-dataset"
EXPORT_STAGES = ("export_onnx", "verify_onnx", "export_trt")
INGEST_STAGES = ("source", "download", "preprocess")


@flow(name=EVALUATE, **OPTIONS)
def evaluate_metricgold(
    datasets: Datasets | None = None, force: bool = False
) -> dict[str, str] | State[Any]:
    """Evaluate the present checkpoint on held-out frames.

    Args:
        datasets: whose held-out frames; none: all.
        force: also where nothing changed.
    """
    wanted = {f"evaluate@{name}" for name in datasets or DATASET_NAMES}
    return _part(EVALUATE, wanted.__contains__, force=force)


@flow(name=EXPORT, **OPTIONS)
def export_metricgold(force: bool = False) -> dict[str, str] | State[Any]:
    """Export the present checkpoint: ONNX graphs, their parity with torch, engines.

    Args:
        force: also where nothing changed.
    """
    return _part(EXPORT, EXPORT_STAGES.__contains__, force=force)


@flow(name=INGEST, **OPTIONS)
def ingest_dataset(
    dataset: DatasetName, refresh: bool = True, force: bool = False
) -> dict[str, str] | State[Any]:
    """Fetch a dataset's files, verify them, and convert them to shards.

    Args:
        dataset: which one.
        refresh: ask its source anew what files there are.
        force: fetch and convert also where nothing changed.
    """
    wanted = [f"{stage}@{dataset}" for stage in INGEST_STAGES]
    forced = wanted[:1] if refresh else []
    return _part(INGEST, wanted.__contains__, forced=forced, force=force)


def _part(
    name: str, wanted: Callable[[str], bool], *, forced: list[str] | None = None, force: bool
) -> dict[str, str] | State[Any]:
    die_with(SERVED_BY)
    root = project_root()
    get_run_logger().info("%s runs its own stages alone; what they need is taken as it is", name)
    done = bring_up_to_date(root, name, wanted, forced=forced or (), force=force)
    if set(done.values()) <= {UP_TO_DATE}:
        return skipped(done)
    if name == EVALUATE:
        _artifacts.publish_pictures(root)
    return done
