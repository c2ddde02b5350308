"""Stages side by side, what is tried again, progress from bars, secrets in no line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from flows import _artifacts, _run, _stage, _stages
from flows._dvc import StageError, TemporaryError, needed_by
from flows._process import run_streamed
from flows._secrets import hider, load_secrets
from metricgold.config import ConfigError, DownloadConfig, RetryConfig, load_orchestration
from metricgold.data.mirror_server import Faults, MirrorServer
from metricgold.data.transfer import DownloadError, Transfer
from metricgold.errors import UserError
from metricgold.training.loop import TrainingError

ROOT = Path(__file__).parents[2]
GRAPH: dict[str, set[str]] = {
    "download@a": set(),
    "download@b": set(),
    "download@c": set(),
    "source@a": set(),
    "source@b": set(),
    "train": {"download@a", "download@b", "source@a"},
}


class Future:
    """A thread's result with the face of Prefect's future."""

    def __init__(self, pool: ThreadPoolExecutor, function: Callable[[], str]) -> None:
        self._future = pool.submit(function)

    def add_done_callback(self, call: Callable[[Future], None]) -> None:
        self._future.add_done_callback(lambda _: call(self))

    def wait(self) -> None:
        self._future.exception()

    @property
    def state(self) -> Any:
        failed = self._future.exception() is not None
        return SimpleNamespace(is_completed=lambda: not failed)

    def result(self) -> str:
        return self._future.result()


def run(parallel: dict[str, int], broken: str = "") -> tuple[list[str], set[frozenset[str]]]:
    """Order of starting, and which stages were seen running together."""
    started: list[str] = []
    running: set[str] = set()
    seen: set[frozenset[str]] = set()
    lock, pause = threading.Lock(), threading.Event()

    def stage(name: str) -> str:
        with lock:
            running.add(name)
            seen.add(frozenset(running))
        pause.wait(0.05)
        with lock:
            running.remove(name)
        if name == broken:
            raise StageError(f"{name} broke")
        return "reproduced"

    with ThreadPoolExecutor(8) as pool:

        def start(name: str, needs: list[Any]) -> Any:
            assert all(need.state.is_completed() for need in needs)
            assert len(needs) == len(GRAPH[name])
            started.append(name)
            return Future(pool, lambda: stage(name))

        done = _stages.schedule(list(GRAPH), GRAPH, start, parallel)
    assert list(done) == list(GRAPH)
    return started, seen


def test_downloads_run_side_by_side_and_the_rest_one_by_one() -> None:
    started, seen = run({"download": 2})
    assert started.index("train") == len(started) - 1 or "source@b" in started[-2:]
    together = max(seen, key=len)
    assert any(len([s for s in group if s.startswith("download@")]) == 2 for group in seen)
    assert not any(len([s for s in group if s.startswith("download@")]) > 2 for group in seen)
    assert not any(len([s for s in group if not s.startswith("download@")]) > 1 for group in seen)
    assert any("source@a" in group and len(group) > 1 for group in seen), together


def test_without_places_of_their_own_stages_run_in_order() -> None:
    started, seen = run({})
    assert started == list(GRAPH)
    assert all(len(group) == 1 for group in seen)


def test_after_a_failure_nothing_new_is_started() -> None:
    with pytest.raises(StageError, match="download@a broke"):
        run({}, broken="download@a")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("refused"),
        TimeoutError("late"),
        httpx.ConnectError("no route"),
        httpx.ReadTimeout("late"),
    ],
)
def test_network_errors_are_temporary_at_any_depth(error: Exception) -> None:
    def wrap() -> None:
        try:
            raise error
        except Exception:
            raise UserError("cannot be had") from None

    with pytest.raises(UserError) as wrapped:
        wrap()
    assert _stage.is_temporary(wrapped.value)


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("loss is nan"),
        UserError("no"),
        ValueError("x"),
        OSError(28, "disk full"),
        FileNotFoundError("x"),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not _stage.is_temporary(error)


def test_a_server_that_gives_up_is_temporary_and_a_missing_file_is_not(tmp_path: Path) -> None:
    """The errors of the real downloader, whose classes are known by name only."""
    settings = DownloadConfig(retries=2, timeout_s=5, backoff_s=0.001, parallel=1)
    with Transfer(settings, lambda line: None) as transfer:
        with pytest.raises(DownloadError) as refused:
            transfer.read_all("http://127.0.0.1:9/x")
        assert _stage.is_temporary(refused.value)
        with MirrorServer(tmp_path, Faults()) as server:
            with pytest.raises(DownloadError) as missing:
                transfer.read_all(f"{server.url}/x")
            assert not _stage.is_temporary(missing.value)


def test_only_temporary_errors_are_tried_again_each_time_later() -> None:
    options = _stages.retries(RetryConfig(attempts=3, backoff_s=2))
    assert options["retry_delay_seconds"] == [2, 4, 8]

    def again(error: Exception) -> bool:
        state = SimpleNamespace(result=lambda raise_on_failure: error)
        return bool(options["retry_condition_fn"](None, None, state))

    assert again(TemporaryError("x"))
    assert not again(StageError("x"))
    assert not again(ValueError("x"))


def test_a_command_is_ended_when_its_time_is_up() -> None:
    endless = "while True: print('x' * 9999)"
    for code in ("import time; time.sleep(60)", endless):
        with pytest.raises(TimeoutError):
            run_streamed([sys.executable, "-c", code], lambda line: None, timeout_s=0.3)


def test_progress_is_what_the_bar_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[float, str]] = []
    monkeypatch.setattr(
        _artifacts,
        "create_progress_artifact",
        lambda percent, key, text: made.append((percent, key)) or "id",
    )
    monkeypatch.setattr(
        _artifacts,
        "update_progress_artifact",
        lambda artifact, percent, text: made.append((percent, text)),
    )
    now = [0.0]
    progress = _artifacts.Progress("evaluate@virtual_kitti", lambda: now[0])
    progress("100 frames; 50% of them are valid")
    progress("stage B:  45%|####5     | 153/340 [00:20<00:25,  7.52it/s, loss=0.1]")
    progress("stage B:  46%|####6     | 154/340 [00:20<00:25,  7.52it/s]")  # too soon
    now[0] = 3
    progress(" 50%|#####     | 170/340 [00:22<00:22,  7.52it/s]")
    progress("stage B: 100%|##########| 340/340 [00:44<00:00,  7.52it/s]")
    assert made == [
        (45.0, "progress-evaluate-virtual-kitti"),
        (50.0, "evaluate@virtual_kitti: working, 170/340, 00:22 left"),
        (100.0, "evaluate@virtual_kitti: stage B, 340/340, 00:00 left"),
    ]


def test_bars_of_the_project_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    from metricgold.progress import progress_bar

    list(progress_bar(range(3), description="latents"))
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    found = [m for line in lines if (m := _artifacts._BAR.search(line))]
    assert found[-1]["what"].strip() == "latents"
    assert (found[-1]["percent"], found[-1]["count"]) == ("100", "3/3")


def test_secrets_are_hidden_by_value() -> None:
    hidden = hider(
        {"TOKEN": "s3cret-value"}, {"AWS_SECRET_ACCESS_KEY": "from-env", "HOME": "/root"}
    )
    assert hidden("a s3cret-value, b from-env, c /root") == "a ***, b ***, c /root"
    assert hider({}, {"TOKEN": "1"})("1 step") == "1 step"
    assert load_secrets({}) == {}


def test_what_parts_need_but_do_not_run() -> None:
    assert needed_by(GRAPH, ["train"]) == {"download@a", "download@b", "source@a"}
    assert needed_by(GRAPH, ["source@a"]) == set()


def test_checkpoints_are_forgotten_for_the_stages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        _run, "get_run_logger", lambda: SimpleNamespace(info=lambda *arguments: None)
    )
    for name in ("train_one_step_latent", "train_unet", "download_hypersim", "locks"):
        (tmp_path / ".work" / name).mkdir(parents=True)
    _run.forget_checkpoints(tmp_path, ["train_one_step", "download@hypersim", "report"])
    assert sorted(p.name for p in (tmp_path / ".work").iterdir()) == ["locks", "train_unet"]


def test_the_orchestration_section_is_checked_and_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("profile: demo\n", encoding="utf-8")
    assert load_orchestration(path).schedule is None
    ours = load_orchestration(ROOT / "params.yaml")
    assert ours.schedule is not None
    assert ours.parallel["download"] > 1
    path.write_text("orchestration: {retry: {attemps: 1}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"orchestration: unknown key 'retry.attemps'"):
        load_orchestration(path)
    path.write_text("orchestration: {quality: {data: a, metric: b}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="exactly one of 'at_most' and 'at_least'"):
        load_orchestration(path)
