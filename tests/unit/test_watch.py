"""When a look at the champion or the sources is reason to train."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_frames import make_frame, write_shards

from flows import watch
from metricgold.config import OrchestrationConfig, QualityConfig
from metricgold.errors import UserError


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A holdout shard with depth between 1 and 3 m."""
    write_shards(tmp_path / "fresh", "holdout", [make_frame(0, n, (24, 32)) for n in range(3)])
    return tmp_path


def settings(**changes: Any) -> QualityConfig:
    return QualityConfig.model_validate(
        {"data": "fresh", "metric": "abs_rel", "at_most": 0.3, "model": "constant:2"} | changes
    )


def test_quality_is_measured_by_the_project_s_own_evaluation(fresh: Path) -> None:
    near = watch.measured(settings(), fresh)
    far = watch.measured(settings(model="constant:20", frames=2), fresh)
    assert 0.2 < near < 0.5
    assert far > 5
    with pytest.raises(UserError, match=r"quality\.metric: no 'abs' among .*abs_rel"):
        watch.measured(settings(metric="abs"), fresh)
    with pytest.raises(UserError, match="elsewhere"):
        watch.measured(settings(data="elsewhere"), fresh)


def test_bounds() -> None:
    assert watch.good_enough(settings(), 0.3)
    assert not watch.good_enough(settings(), 0.31)
    accuracy = settings(metric="delta1", at_most=None, at_least=0.6)
    assert watch.good_enough(accuracy, 0.6)
    assert not watch.good_enough(accuracy, 0.59)
    assert not watch.good_enough(settings(), float("nan"))


@pytest.mark.parametrize(("value", "runs"), [(0.2, 0), (0.4, 1)])
def test_a_worse_champion_starts_a_run_that_asks_the_mirrors(
    monkeypatch: pytest.MonkeyPatch, value: float, runs: int
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def start(trigger: str, finding: str, parameters: dict[str, Any]) -> str:
        asked.append((trigger, parameters))
        return "started"

    config = SimpleNamespace(enabled_datasets=lambda: {"folder": SimpleNamespace(procedural=None)})
    orchestration = OrchestrationConfig(quality=settings())
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(watch, "load_orchestration", lambda path: orchestration)
    monkeypatch.setattr(watch, "load_config", lambda path: config)
    monkeypatch.setattr(watch, "measured", lambda settings, root: value)
    monkeypatch.setattr(watch, "start_training", start)
    monkeypatch.setattr(watch, "_told", lambda key, sentence, name=None: (name, sentence))
    name, sentence = watch.watch_quality.fn()
    assert len(asked) == runs
    assert name == (None if runs else watch.UNCHANGED)
    assert f"constant:2 on fresh: abs_rel {value:g}" in sentence
    if runs:
        assert asked == [("quality", {"refresh": ["folder"]})]
