"""prefect.yaml and its variants for containers, against Prefect's own models and templates."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import prefect
import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.client.schemas.schedules import construct_schedule
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.settings.models.flows import FlowsSettings

from flows import _run, watch
from flows.deployments import PIPELINE, WATCHES
from metricgold.config import load_orchestration

ROOT = Path(__file__).parents[2]
FILES = {
    "process": "prefect.yaml",
    "docker": "docker/prefect.docker.yaml",
    "kubernetes": "docker/prefect.kubernetes.yaml",
}
POOL = json.loads((ROOT / "docker" / "kubernetes_pool.json").read_text(encoding="utf-8"))


def prefect_template(kind: str) -> dict[str, Any]:
    """The job template of a kind of work pool, as this Prefect carries it."""
    folder = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    views = json.loads((folder / "aggregate-worker-metadata.json").read_text(encoding="utf-8"))
    (found,) = [w for package in views.values() for name, w in package.items() if name == kind]
    template: dict[str, Any] = found["default_base_job_configuration"]
    return template


def template(kind: str) -> dict[str, Any]:
    return POOL if kind == "kubernetes" else prefect_template(kind)


@pytest.fixture(params=FILES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def deployments(kind: str) -> PrefectYamlModel:
    return PrefectYamlModel.model_validate(
        yaml.safe_load((ROOT / FILES[kind]).read_text(encoding="utf-8"))
    )


def test_every_deployment_is_there_with_its_flow(kind: str) -> None:
    found = deployments(kind).deployments
    assert [d.name for d in found] == [flow.name for flow in (*PIPELINE, *WATCHES)]
    for deployment, flow in zip(found, (*PIPELINE, *WATCHES), strict=True):
        path, name = str(deployment.entrypoint).split(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        assert getattr(module, name) is flow
        assert deployment.work_pool is not None
        assert deployment.work_pool.name is not None
        queue = "watch" if flow in WATCHES else "stages"
        assert deployment.work_pool.work_queue_name == queue


def test_the_schedule_is_that_of_params(kind: str) -> None:
    (train, *others) = deployments(kind).deployments
    assert train.schedules is not None
    (schedule,) = train.schedules
    ours = load_orchestration(ROOT / "params.yaml")
    assert ours.schedule is not None
    read = construct_schedule(cron=schedule.cron, timezone=schedule.timezone)
    assert (read.cron, read.timezone) == (ours.schedule.cron, ours.schedule.timezone)
    assert schedule.slug == "weekly"
    (watch,) = [s for d in others for s in d.schedules or []]
    assert ours.watch_minutes is not None
    assert watch.interval.total_seconds() == ours.watch_minutes * 60


def test_job_variables_are_the_templates(kind: str) -> None:
    schema = {**template(kind)["variables"], "additionalProperties": False}
    for deployment in deployments(kind).deployments:
        assert deployment.work_pool is not None
        jsonschema.validate(deployment.work_pool.job_variables, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"imagge": "x"}, schema)


def test_pull_steps_exist(kind: str) -> None:
    steps = deployments(kind).pull or []
    assert bool(steps) == (kind != "process")
    for step in steps:
        ((name, arguments),) = step.items()
        module, function = name.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), function))
        assert arguments == {"directory": "/project"}


def test_the_kubernetes_pool_adds_a_volume_and_gpus_and_nothing_else() -> None:
    expected = prefect_template("kubernetes")
    pod = expected["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pod["securityContext"] = {"runAsUser": 1000, "fsGroup": 1000}
    claim = {"claimName": "{{ claim }}"}
    pod["volumes"] = [{"name": "project", "persistentVolumeClaim": claim}]
    pod["containers"][0] |= {
        "workingDir": "/project",
        "volumeMounts": [{"name": "project", "mountPath": "/project"}],
    }
    pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpus }}"
    variables = dict(POOL["variables"]["properties"])
    assert {"claim", "gpus"} == set(variables) - set(expected["variables"]["properties"])
    assert POOL["job_configuration"] == expected["job_configuration"]


def test_the_image_is_built_from_files_that_are_there() -> None:
    lines = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [part for line in lines if line.startswith("COPY ") for part in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).is_file() for name in copied)
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} == {line for line in sent if line.startswith("!")}
    targets = [line.split()[-1] for line in lines if line.startswith("FROM ")]
    assert targets == ["base", "cpu", "gpu"]


def test_a_run_whose_machine_died_gives_its_place_back() -> None:
    """Only after three signs of life were missed, and never one that has ended."""
    found = yaml.safe_load((ROOT / "prefect.automation.yaml").read_text(encoding="utf-8"))
    made = AutomationCore.model_validate(found)
    assert isinstance(made.trigger, EventTrigger)
    assert made.trigger.within.total_seconds() > 3 * FlowsSettings().heartbeat_frequency
    assert made.trigger.after == {"prefect.flow-run.heartbeat"}
    ends = {s.value.capitalize() for s in TERMINAL_STATES} | {_run.SKIPPED, watch.UNCHANGED}
    expected = {f"prefect.flow-run.{name}" for name in ends}
    assert made.trigger.expect == expected | made.trigger.after
    (action,) = made.actions
    assert (action.type, action.state) == ("change-flow-run-state", StateType.CRASHED)
