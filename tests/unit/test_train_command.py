"""``metricgold train``: what it asks DVC for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metricgold.cli import app
from metricgold.commands.train import STAGES, command
from metricgold.errors import UserError

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *arguments])


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    calls: list[list[str]] = []

    def run(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        return subprocess.CompletedProcess(arguments, 3 if "train_vae" in arguments else 0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_plain_is_repro_of_the_last_stage(asked: list[list[str]]) -> None:
    done = call()
    assert done.exit_code == 0, done.output
    assert asked == [[sys.executable, "-m", "dvc", "repro", "train_light"]]
    assert "train_one_step" in done.output
    assert done.output.index("TFLOP/step") < done.output.index("$ dvc")  # the plan comes first


def test_settings_make_an_experiment(asked: list[list[str]]) -> None:
    options = ("--profile", "smoke", "-S", "train_unet.optimizer.lr=1e-5", "-S", "seed=3")
    assert call(*options, "--until", "train_unet").exit_code == 0
    assert asked[0][3:] == [
        "exp", "run", "-S", "profile=smoke", "-S", "profiles.smoke.train_unet.optimizer.lr=1e-5",
        "-S", "profiles.smoke.seed=3", "train_unet",
    ]  # fmt: skip
    call("-S", "seed=3")
    assert asked[1][3:] == ["exp", "run", "-S", "profiles.demo.seed=3", "train_light"]


def test_plan_runs_nothing_and_failures_pass_through(asked: list[list[str]]) -> None:
    assert call("--plan").exit_code == 0
    assert asked == []
    assert call("--until", "train_vae").exit_code == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--until", "evaluate"), "--until evaluate: no training stage; take base_model,"),
        (("-S", "seed"), "--set seed: write KEY=VALUE"),
        (("--profile", "none"), "none"),
    ],
)
def test_what_cannot_be_done_is_said(
    asked: list[list[str]], options: tuple[str, ...], said: str
) -> None:
    done = call(*options)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert asked == []


def test_elsewhere_it_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no dvc.yaml here; run this in a clone" in str(call().exception)


def test_the_stages_are_those_of_the_pipeline() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert all(f"\n  {stage}:\n" in text for stage in STAGES)
    assert command("demo", None, [], "train_vae") == ["repro", "train_vae"]
