"""Flows that look whether there is reason to train, and start ``train-metricgold`` if so.

``watch-sources`` compares what the sources offer now with what was ingested last;
``watch-quality`` evaluates the champion on data that it has not been trained on. The same finding
starts one run, however often it is made.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.states import Completed

from flows._process import die_with
from flows._stage import SERVED_BY, project_root
from flows.train_metricgold import NAME
from metricgold.config import (
    DatasetName,
    ProfileConfig,
    QualityConfig,
    load_config,
    load_orchestration,
)
from metricgold.errors import UserError
from metricgold.workspace import Workspace

SOURCES, QUALITY = "watch-sources", "watch-quality"
SOURCES_KEY, QUALITY_KEY = "metricgold-sources", "metricgold-quality"
UNCHANGED = "Unchanged"


@flow(name=SOURCES, persist_result=False)
def watch_sources() -> State[Any]:
    """Start a training run if a mirror offers other files than were ingested."""
    die_with(SERVED_BY)
    root = project_root()
    found = changed_sources(load_config(root / "params.yaml"), Workspace(root))
    if not found:
        return _told(SOURCES_KEY, "every source offers what was ingested", UNCHANGED)
    refresh = sorted(found)
    run = start_training("data", json.dumps(found, sort_keys=True), {"refresh": refresh})
    return _told(SOURCES_KEY, f"{', '.join(refresh)}: other files than were ingested; {run}")


@flow(name=QUALITY, persist_result=False)
def watch_quality() -> State[Any]:
    """Start a training run if the champion is worse than allowed on the data of params.yaml."""
    die_with(SERVED_BY)
    root = project_root()
    settings = load_orchestration(root / "params.yaml").quality
    if settings is None:
        return _told(QUALITY_KEY, "params.yaml has no orchestration.quality", UNCHANGED)
    value = measured(settings, root)
    figure = f"{settings.model} on {settings.data}: {settings.metric} {value:.4g}"
    if good_enough(settings, value):
        return _told(QUALITY_KEY, f"{figure}, which is allowed", UNCHANGED)
    refresh = list(mirrored(load_config(root / "params.yaml")))
    run = start_training("quality", figure, {"refresh": refresh})
    return _told(QUALITY_KEY, f"{figure}, which is worse than allowed; {run}")


def mirrored(config: ProfileConfig) -> list[DatasetName]:
    """Datasets that come from a mirror, so that there can be something new."""
    enabled = config.enabled_datasets().items()
    return [name for name, settings in enabled if settings.procedural is None]


def changed_sources(config: ProfileConfig, workspace: Workspace) -> dict[DatasetName, str]:
    """Datasets whose sources offer something new, each with a hash of it and of the last ingestion.

    Files are compared by name and size, and by what the dataset's own index says of them.

    Raises:
        UserError: a source cannot be reached.
    """
    from metricgold.data import source

    found: dict[DatasetName, str] = {}
    for name in mirrored(config):
        with tempfile.TemporaryDirectory() as folder:
            now = asdict(source.run(config, Workspace(Path(folder)), name))
        index = workspace.source(name) / source.INDEX_FILE
        before = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else None
        if now != before:
            ingested = index.stat().st_mtime_ns if before else 0
            listing = json.dumps([ingested, now], sort_keys=True)
            found[name] = hashlib.sha256(listing.encode()).hexdigest()
    return found


def measured(settings: QualityConfig, root: Path) -> float:
    """The metric of the model on the data, by ``metricgold evaluate``.

    Raises:
        UserError: it failed, or gives no such metric.
    """
    out = Workspace(root).scratch("watch_quality")
    command = [sys.executable, "-m", "metricgold", "evaluate", settings.data]
    command += ["--model", f"champion={settings.model}", "--out", str(out), "--force"]
    command += ["--pictures", "0", "--clouds", "0"]
    if settings.frames is not None:
        command += ["--frames", str(settings.frames)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError((done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    figures: dict[str, float] = results["models"]["champion"]["figures"]
    if settings.metric not in figures:
        raise UserError(f"quality.metric: no '{settings.metric}' among {', '.join(figures)}")
    return figures[settings.metric]


def good_enough(settings: QualityConfig, value: float) -> bool:
    """Whether the metric is within its bound."""
    if settings.at_most is not None:
        return value <= settings.at_most
    assert settings.at_least is not None
    return value >= settings.at_least


def start_training(trigger: str, finding: str, parameters: dict[str, Any]) -> str:
    """Ask for a run of ``train-metricgold``, unless this finding has one; a sentence on it."""
    key = f"{trigger}-{hashlib.sha256(finding.encode()).hexdigest()}"
    run = cast(
        FlowRun,
        run_deployment(
            f"{NAME}/{NAME}",
            parameters=parameters,
            timeout=0,
            as_subflow=False,
            idempotency_key=key,
            tags=[f"trigger:{trigger}"],
        ),
    )
    state = run.state.name if run.state is not None else "unknown"
    return f"its training run is '{run.name}' ({state})"


def _told(key: str, sentence: str, name: str | None = None) -> State[Any]:
    """A completed state with a sentence, also in the log and as an artifact."""
    get_run_logger().info("%s", sentence)
    create_markdown_artifact(sentence, key)
    return Completed(name=name, message=sentence)
