"""The ``real_sample`` profile on genuine TartanAir zips, every stage, with a handful of steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from export import build_engine, onnx_export, parity
from metricgold.config import DATASET_NAMES, ProfileConfig
from metricgold.data import download, preprocess, source
from metricgold.evaluation import benchmark, report
from metricgold.training import base_model, latents, light, one_step, unet, vae
from metricgold.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def _few_steps(section: Any) -> None:
    if isinstance(section, dict):
        if {"steps", "warmup_steps"} <= section.keys():
            section |= {"steps": 3, "warmup_steps": 1, "batch_size": 4}
        for value in section.values():
            _few_steps(value)


@pytest.mark.timeout(900)
def test_every_stage_runs_on_genuine_frames(
    real_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICGOLD_MIRROR", str(real_samples / "tartanair"))
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"]["real_sample"]
    _few_steps(raw)
    config, workspace = ProfileConfig.model_validate(raw), Workspace(tmp_path)
    for dataset in DATASET_NAMES:
        for stage in (source, download, preprocess):
            stage.run(config, workspace, dataset)
    for training in (base_model, vae, latents, unet, one_step, light):
        training.run(config, workspace)
    for dataset in DATASET_NAMES:
        benchmark.run(config, workspace, dataset)
    for exporting in (onnx_export, parity, build_engine):
        exporting.run(config, workspace)
    report.run(config, workspace)

    summary = json.loads((tmp_path / "metrics/summary.json").read_text())
    assert summary["frames"] == 8
    assert 0 < summary["abs_rel"] < 100
    assert (tmp_path / "artifacts/report/index.html").stat().st_size > 10_000
