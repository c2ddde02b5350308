"""Which processes a training stage is started in: what params.yaml and the environment say."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from flows import _launch
from flows._launch import NODE_RANK, is_shared, node_rank
from metricgold.config import LaunchConfig, load_orchestration
from metricgold.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither inside a launched process nor inside DVC."""
    for name in ("RANK", NODE_RANK, "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)


def test_a_stage_runs_in_one_process_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not is_shared(load_orchestration(ROOT / "params.yaml").launch)
    for settings in (LaunchConfig(processes=2), LaunchConfig(hosts=["a", "b"])):
        assert is_shared(settings)
    monkeypatch.setenv("RANK", "0")
    assert not is_shared(LaunchConfig(processes=2))  # this is one of them


def test_where_stages_run_makes_none_stale() -> None:
    """No stage depends on the section."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    used = [str(key) for stage in stages.values() for key in stage.get("params", [])]
    assert used
    assert not [key for key in used if key.startswith("orchestration")]


def test_a_host_is_known_by_its_name_or_address_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_rank(["elsewhere.invalid", socket.gethostname()]) == 1
    assert node_rank(["127.0.0.1", "elsewhere.invalid"]) == 0
    monkeypatch.setenv(NODE_RANK, "1")
    assert node_rank(["127.0.0.1", "127.0.0.1"]) == 1


@pytest.mark.parametrize("hosts", [["a.invalid", "b.invalid"], ["127.0.0.1", "127.0.0.1"]])
def test_a_host_that_is_none_or_several_of_them_is_asked(hosts: list[str]) -> None:
    with pytest.raises(UserError, match=f"hosts \\({', '.join(hosts)}\\) is .* Set {NODE_RANK}"):
        node_rank(hosts)


@pytest.mark.parametrize("given", ["2", "-1", "b"])
def test_a_rank_beyond_the_hosts_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NODE_RANK, given)
    with pytest.raises(UserError, match=re.escape(f"{NODE_RANK}={given}: not one of 0 to 1")):
        node_rank(["a", "b"])


def test_dvc_runs_on_the_first_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NODE_RANK, "1")
    monkeypatch.setenv("DVC_STAGE", "train_unet")
    with pytest.raises(UserError, match=f"{NODE_RANK}=1 python -m flows.train_unet"):
        _launch.launch("train_unet", LaunchConfig(hosts=["a", "b"]))


def test_misspelt_settings_are_refused() -> None:
    for wrong in ({"nodes": 2}, {"processes": 0}, {"port": 0}, {"wait_s": 0}):
        with pytest.raises(ValidationError):
            LaunchConfig.model_validate(wrong)
