"""The shared command line of the stages: arguments, locks, Prefect or not, how errors show."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import _process, _stage
from flows._dvc import (
    StageError,
    dvc_command,
    metric_rows,
    parse_graph,
    reason,
    stage_order,
    with_followers,
)
from flows._environment import prepare_environment
from flows._process import only_one, run_streamed
from metricgold.config import ProfileConfig, load_config
from metricgold.errors import UserError
from metricgold.workspace import Workspace

ROOT = Path(__file__).parents[2]
DOT = """strict digraph {
"a@x";
"b";
"a@x" -> "b";
"a@y" -> "b";
"b" -> "c";
}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with params.yaml (profile smoke) as the current one; signals are put back."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^profile: .*$", "profile: smoke", text)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", "DVC_STAGE", "METRICGOLD_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def test_dataset_is_required_and_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert _stage.parse_dataset("source", ["--dataset", "tartanair"]) == "tartanair"
    for arguments in ([], ["--dataset", "kitti"]):
        with pytest.raises(SystemExit) as caught:
            _stage.parse_dataset("source", arguments)
        assert caught.value.code == 2
    assert "hypersim" in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--resume", 2)])
def test_a_stage_without_arguments_refuses_them(
    monkeypatch: pytest.MonkeyPatch, argument: str, code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_vae", argument])
    ran: list[object] = []
    with pytest.raises(SystemExit) as caught:
        _stage.stage_main("train_vae", lambda c, w: ran.append(c))
    assert caught.value.code == code
    assert not ran


def test_stage_gets_the_profile_and_the_workspace(project: Path) -> None:
    seen: list[tuple[ProfileConfig, Workspace]] = []
    assert _stage.execute("train_vae", lambda c, w: seen.append((c, w))) == 0
    assert seen == [(load_config("params.yaml", "smoke"), Workspace())]


def test_stage_runs_plainly_without_a_server(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stage, "run_as_flow", lambda *_: pytest.fail("no server is there"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody answers there
    ran: list[int] = []
    _stage.execute("train_vae", lambda c, w: ran.append(1))
    assert ran == [1]


def test_stage_runs_as_a_flow_when_a_server_is_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(_stage, "server_answers", lambda url: True)
    monkeypatch.setattr(_stage, "run_as_flow", lambda name, body: names.append(name))
    _stage.execute("evaluate@hypersim", lambda c, w: None)
    assert names == ["evaluate@hypersim"]


def test_misspelt_key_is_one_line_without_traceback(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("kl_weight", "kl_wieght", 2))
    done = subprocess.run(
        [sys.executable, "-m", "flows.train_vae"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: params.yaml: ")
    assert "unknown key 'profiles.demo.train_vae.kl_wieght'" in lines[0]


def test_profile_that_dvc_cannot_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICGOLD_PROFILE", "smoke")
    with pytest.raises(UserError, match="METRICGOLD_PROFILE=smoke"):
        _stage.refuse_hidden_profile()


def test_a_stage_may_not_start_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert dvc_command("status")[-1] == "status"
    monkeypatch.setenv("DVC_STAGE", "train_vae")
    with pytest.raises(UserError, match="'train_vae' tries to run DVC"):
        dvc_command("status")


def test_the_same_stage_runs_once_at_a_time(tmp_path: Path) -> None:
    with only_one("train_vae", tmp_path):
        with only_one("train_unet", tmp_path):
            pass
        with (
            pytest.raises(UserError, match=f"already running here as process {os.getpid()}"),
            only_one("train_vae", tmp_path),
        ):
            pass
    with only_one("train_vae", tmp_path):
        pass


def test_user_settings_win_over_ours() -> None:
    environ = {"OMP_NUM_THREADS": "7", "DO_NOT_TRACK": "0"}
    prepare_environment(environ)
    assert environ["OMP_NUM_THREADS"] == "7"
    assert environ["DO_NOT_TRACK"] == "0"
    assert environ["DVC_NO_ANALYTICS"] == "1"


def test_output_is_streamed_line_by_line_and_redrawn_bars_too() -> None:
    code = "import sys; sys.stdout.write('one\\r 50%\\rtwo\\n\\nlast'); sys.exit(3)"
    lines: list[str] = []
    assert run_streamed([sys.executable, "-c", code], lines.append) == 3
    assert lines == ["one", " 50%", "two", "last"]


def running(pid: int) -> bool:
    """Whether a process lives; one that only waits to be buried does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_when_the_caller_is_interrupted(tmp_path: Path) -> None:
    """The command ignores SIGTERM and has a child: both are gone after an exception."""
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 60 & echo $$ $! > {pids}; echo started; wait; sleep 60"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_streamed(["sh", "-c", script], interrupt)
    assert time.monotonic() - start < 30
    processes = [int(pid) for pid in pids.read_text(encoding="utf-8").split()]
    assert len(processes) == 2
    while time.monotonic() - start < 40 and any(map(running, processes)):
        time.sleep(0.1)
    assert not any(map(running, processes))


@pytest.mark.usefixtures("project")
def test_a_second_signal_does_not_break_off_what_the_first_began() -> None:
    """Linux sends PDEATHSIG for each thread of a dying parent, so several may come at once."""
    signal.signal(signal.SIGTERM, _process._raise_ended)
    with pytest.raises(_process._Ended):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    _process.exit_on_sigterm()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


def test_order_follows_the_graph_and_then_the_file() -> None:
    graph = parse_graph(["c", "a@y", "b", "a@x", "lone"], DOT)
    assert stage_order(graph) == ["a@y", "a@x", "b", "c", "lone"]
    assert with_followers(graph, {"b"}) == {"b", "c"}
    assert with_followers(graph, set()) == set()


def test_reason_is_the_stage_s_own() -> None:
    lines = ["Running stage", "error: no disk", "ERROR: failed to reproduce 'x': exited with 1"]
    assert reason(lines) == "no disk"
    assert reason(["ERROR: 'x' is busy, it is blocked by:", "  (PID 1): dvc", "", "more"]) == (
        "'x' is busy, it is blocked by: (PID 1): dvc"
    )
    assert reason(["Killed"]) == "Killed"
    assert "nothing" in reason([])
    assert issubclass(StageError, UserError)


def test_metrics_become_flat_rows() -> None:
    shown = {"": {"data": {"m.json": {"data": {"abs_rel": 0.2, "floor": {"delta1": 0.9}}}}}}
    assert metric_rows(shown) == [
        {"file": "m.json", "metric": "abs_rel", "value": 0.2},
        {"file": "m.json", "metric": "floor.delta1", "value": 0.9},
    ]
