"""Progress of a build: phases within phases to one share; Ctrl-C ends it cleanly."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from export import build_progress
from export.build_progress import Phases, shown


def test_phases_within_phases_add_up() -> None:
    phases = Phases()
    shares = [phases.share()]
    phases.start("all", None, 4)
    phases.start("part", "all", 2)
    phases.step("part", 0)
    shares.append(phases.share())
    phases.start("deep", "part", 5)
    phases.step("deep", 0)
    shares.append(phases.share())
    phases.finish("deep")
    phases.step("part", 1)
    shares.append(phases.share())
    phases.finish("part")
    phases.step("all", 0)
    shares.append(phases.share())
    for number in (1, 2, 3):
        phases.step("all", number)
    phases.finish("all")
    shares.append(phases.share())
    assert shares == pytest.approx([0, 1 / 8, (1 + 1 / 5) / 8, 1 / 4, 1 / 4, 1])


def test_phases_nobody_announced_are_let_pass() -> None:
    phases = Phases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    assert phases.share() == 0


class Bar:
    """Takes the place of the project's bar."""

    def __init__(self, **asked: Any) -> None:
        self.asked, self.n = asked, 0

    def update(self, by: int) -> None:
        assert by >= 0
        self.n += by

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    made: list[Bar] = []

    def make(**asked: Any) -> Bar:
        made.append(Bar(**asked))
        return made[-1]

    monkeypatch.setattr(build_progress, "progress_bar", make)
    return made


def test_the_bar_follows_and_is_off_without_a_terminal(bars: list[Bar]) -> None:
    config = SimpleNamespace()
    with shown(SimpleNamespace(IProgressMonitor=IProgressMonitor), config, "unet_step"):
        monitor = config.progress_monitor
        monitor.phase_start("all", None, 2)
        assert monitor.step_complete("all", 0) is True
        assert bars[0].n == 50
        monitor.phase_start("again", None, 4)
        monitor.step_complete("again", 0)
        assert bars[0].n == 50, "never back"
        monitor.phase_finish("again")
    assert bars[0].asked["description"] == "building unet_step"
    assert bars[0].asked["disable"] is True


def test_a_library_without_monitors_is_built_with_all_the_same(bars: list[Bar]) -> None:
    config = SimpleNamespace()
    with shown(SimpleNamespace(), config, "unet_step"):
        assert not hasattr(config, "progress_monitor")


@pytest.mark.parametrize("then", ["returns", "raises"])
def test_ctrl_c_ends_a_build_at_its_next_step(bars: list[Bar], then: str) -> None:
    config, before = SimpleNamespace(), signal.getsignal(signal.SIGINT)
    went_on = []

    def work() -> None:
        with shown(SimpleNamespace(IProgressMonitor=IProgressMonitor), config, "unet_step"):
            config.progress_monitor.phase_start("all", None, 2)
            os.kill(os.getpid(), signal.SIGINT)
            went_on.append(config.progress_monitor.step_complete("all", 0))
            if then == "raises":
                raise ValueError("the library gave up")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert went_on == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_real_builder_reports_its_steps(bars: list[Bar]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from export import ddim_engine
    from export.engine_options import BuildOptions, network_flags
    from export.specs import LatentGrid
    from export.trt_library import TENSORRT_RTX, make_logger
    from metricgold.config import EnginesConfig

    logger = make_logger(trt, [])
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    ddim_engine.define(trt, network, LatentGrid(factor=8, channels=4), (16, 24))
    config = builder.create_builder_config()
    wanted = EnginesConfig(timing_cache=False)
    BuildOptions(trt, lambda: trt.Builder(logger), wanted, TENSORRT_RTX.ahead_of_time, None).apply(
        config
    )
    with shown(trt, config, "ddim_update"):
        assert builder.build_serialized_network(network, config) is not None
    assert bars[0].n > 80
