"""dvc.yaml lists what each stage really uses: its modules, and the sections of params.yaml."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from metricgold.config import ProfileConfig

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
ENTRY_POINTS = {
    "source": "metricgold/data/source.py",
    "download": "metricgold/data/download.py",
    "preprocess": "metricgold/data/preprocess.py",
    "data_report": "metricgold/evaluation/data_report.py",
    "base_model": "metricgold/training/base_model.py",
    "train_vae": "metricgold/training/vae.py",
    "cache_latents": "metricgold/training/latents.py",
    "train_unet": "metricgold/training/unet.py",
    "train_one_step": "metricgold/training/one_step.py",
    "train_light": "metricgold/training/light.py",
    "evaluate": "metricgold/evaluation/benchmark.py",
    "export_onnx": "export/onnx_export.py",
    "export_trt": "export/build_engine.py",
    "verify_onnx": "export/parity.py",
    "report": "metricgold/evaluation/report.py",
}
FOLDERS = {
    **{name: name for name in ("source", "raw", "shards", "base_model", "depth_vae", "latents")},
    **{name: name for name in ("data_report", "unet", "one_step", "onnx", "engines", "report")},
    "model": "metricgold",
    "predictions": "evaluation",
}
"""Attribute of the workspace to the name of its folder under artifacts/."""
BEHAVIOUR_ONLY = {"download", "loader", "tracking"}
"""Sections that change how, not what: the network's retries, who reads ahead, who watches."""


@pytest.fixture(scope="module")
def stage_deps() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stage_deps", ROOT / "scripts/stage_deps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_dependencies_are_exact(stage_deps: ModuleType) -> None:
    found = stage_deps.differences(PIPELINE, stage_deps.import_graph())
    assert found == {}, "run 'make deps': (missing, superfluous) by stage"


def test_a_wrong_dependency_would_be_found(stage_deps: ModuleType) -> None:
    graph = stage_deps.import_graph()
    wrong = {"stages": {"evaluate": {"deps": ["metricgold/data/sample.py", "params.py"]}}}
    missing, superfluous = stage_deps.differences(wrong, graph)["evaluate"]
    assert "metricgold/evaluation/metrics.py" in missing
    assert superfluous == ["params.py"]


def test_the_table_of_entry_points_is_complete() -> None:
    assert list(PIPELINE["stages"]) == list(ENTRY_POINTS)


def attributes_read(path: Path, *objects: str) -> set[str]:
    """Attributes that a module reads of variables with one of these names."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in objects
    }


def sections_read(path: Path) -> set[str]:
    """Sections of the profile that a module reads as ``config.<section>``."""
    names = attributes_read(path, "config")
    if "enabled_datasets" in names:
        names.add("datasets")
    return names & set(ProfileConfig.model_fields)


@pytest.mark.parametrize("stage", list(PIPELINE["stages"]))
def test_every_section_that_a_stage_reads_is_tracked(stage: str) -> None:
    params = PIPELINE["stages"][stage]["params"]
    if "profiles.${profile}" in params:
        return
    tracked = {p.split(".")[2] for p in params if p.startswith("profiles.")}
    assert sections_read(ROOT / ENTRY_POINTS[stage]) - BEHAVIOUR_ONLY <= tracked


@pytest.mark.parametrize("stage", list(PIPELINE["stages"]))
def test_every_folder_that_a_stage_names_is_listed(stage: str) -> None:
    body = PIPELINE["stages"][stage]
    listed = {Path(path.replace("/${item.dataset}", "")).name for path in body.get("deps", [])}
    listed |= {Path(path.replace("/${item.dataset}", "")).name for path in body.get("outs", [])}
    listed |= {Path(path).parent.name for path in body.get("deps", [])}
    read = attributes_read(ROOT / ENTRY_POINTS[stage], "workspace", "ws") & set(FOLDERS)
    assert {FOLDERS[name] for name in read} <= listed


def test_only_the_chosen_profile_is_tracked() -> None:
    for stage, body in PIPELINE["stages"].items():
        for param in body["params"]:
            assert param == "profile" or param.startswith("profiles.${profile}"), stage
