"""The process that has imported DVC once: what it answers, and that nothing outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows._dvc import Pipeline, StageError, TemporaryError
from metricgold.errors import UserError
from tests.integration.service import MINI_PIPELINE, SLOW_PIPELINE, environment, living, wait_for

pytestmark = pytest.mark.integration

FAILING = """\
stages:
  network:
    cmd: 'echo "error: no route to host" >&2; exit 75'
    outs: [a.txt]
  other:
    cmd: 'echo "error: the loss is nan" >&2; exit 1'
    outs: [b.txt]
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_NO_ANALYTICS", "PYTHONPATH", "SHELL"):
        if name in (wanted := environment()):
            monkeypatch.setenv(name, wanted[name])


def test_the_pipeline_through_it(make_project: Callable[[str], Path]) -> None:
    folder = make_project(MINI_PIPELINE)
    lines: list[str] = []
    with Pipeline(folder) as pipeline:
        assert list(pipeline.graph()) == ["first", "second@a", "second@b", "third"]
        assert pipeline.changed() == {"first", "second@a", "second@b", "third"}
        for stage in pipeline.graph():
            pipeline.reproduce(stage, lines.append)
        assert pipeline.changed() == set()
        assert {row["metric"] for row in pipeline.metrics()} == {"abs_rel", "floor.delta1"}
        with pytest.raises(StageError, match="'none' not found"):
            pipeline.reproduce("none", lines.append)
    assert "Running stage 'first':" in lines
    assert not living("flows._dvc_server", str(folder))


def test_what_failed_and_whether_to_try_again(make_project: Callable[[str], Path]) -> None:
    with Pipeline(make_project(FAILING)) as pipeline:
        with pytest.raises(TemporaryError, match="stage 'network' failed: no route to host"):
            pipeline.reproduce("network", print)
        with pytest.raises(StageError, match="stage 'other' failed: the loss is nan") as caught:
            pipeline.reproduce("other", print)
    assert not isinstance(caught.value, TemporaryError)


def test_a_stage_that_takes_too_long_is_ended_whole(make_project: Callable[[str], Path]) -> None:
    folder = make_project(SLOW_PIPELINE)
    with Pipeline(folder) as pipeline:
        with pytest.raises(StageError, match="stage 'slow' was ended after 6 s"):
            pipeline.reproduce("slow", print, timeout_s=6)
        assert not living("sleep 7531", str(folder))
        assert pipeline.changed() == {"slow"}  # and the lock is free


@pytest.mark.parametrize("victim", ["owner", "server"])
def test_nothing_outlives_its_owner(make_project: Callable[[str], Path], victim: str) -> None:
    folder = make_project(SLOW_PIPELINE)
    code = (
        "from pathlib import Path\nfrom flows._dvc import Pipeline\n"
        "with Pipeline(Path.cwd()) as p: p.reproduce('slow', print)"
    )
    with (folder / "log").open("wb") as log:
        owner = subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder, env=environment(), stdout=log, stderr=log
        )
    wait_for(lambda: len(living("sleep 7531", str(folder))) >= 2, 60, "stage running")
    if victim == "owner":
        owner.kill()
    else:
        (server, *_) = sorted(living("flows._dvc_server", str(folder)))
        os.kill(server, signal.SIGKILL)
    assert owner.wait(60) != 0
    wait_for(lambda: not living(str(folder)), 30, "everything ended")


def test_a_stage_may_not_have_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVC_STAGE", "train_vae")
    with pytest.raises(UserError, match="'train_vae' tries to run DVC"):
        Pipeline(tmp_path)
