"""When is a challenger better? Rules on paired differences, whole scenes drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from metricgold.config import ConfigError, PromotionConfig, load_config
from metricgold.errors import UserError
from metricgold.evaluation.engine import Evaluation, Scores
from metricgold.evaluation.figures import BINS, Score
from metricgold.evaluation.metrics import bootstrap_interval
from metricgold.evaluation.predictors import Invariance
from metricgold.evaluation.ranges import Binned
from metricgold.evaluation.verdicts import SIGN, check_rules, judge

PARAMS = Path(__file__).parents[2] / "params.yaml"
TEN = [f"scene_{i}" for i in range(10)]


def scores(figures: Sequence[dict[str, float]]) -> Scores:
    made = Scores(Invariance.METRIC)
    for one in figures:
        made.add(Score(one, Binned(BINS[0]), Binned(BINS[1])))
    return made


def evaluation(
    champion: Sequence[float],
    challenger: Sequence[float],
    scenes: Sequence[str] = TEN,
    figure: str = "abs_rel",
) -> Evaluation:
    models = {"champion": champion, "challenger": challenger}
    by_name = {n: scores([{figure: v} for v in values]) for n, values in models.items()}
    keys = [f"{scene}/{i}" for i, scene in enumerate(scenes)]
    return Evaluation(by_name, list(range(len(keys))), keys, list(scenes))


def rules(**given: object) -> PromotionConfig:
    return PromotionConfig.model_validate({"resamples": 500, **given})


OLD = [0.20, 0.22, 0.19, 0.25, 0.21, 0.18, 0.30, 0.24, 0.23, 0.20]


def test_better_by_the_same_amount_everywhere() -> None:
    found = {"hypersim": evaluation(OLD, [v - 0.01 for v in OLD])}
    (verdict,) = judge(found, rules(better={"abs_rel": 0.009}))
    assert verdict.passed
    assert verdict.improvement == pytest.approx(0.01)
    assert (verdict.low, verdict.high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert verdict.champion == pytest.approx(np.mean(OLD))
    (verdict,) = judge(found, rules(better={"abs_rel": 0.011}))
    assert not verdict.passed


def test_interval_is_the_projects_bootstrap_of_the_differences() -> None:
    new = [v + 0.01 * math.sin(i) for i, v in enumerate(OLD)]
    (verdict,) = judge({"d": evaluation(OLD, new)}, rules(better={"abs_rel": 0.0}, seed=7))
    expected = bootstrap_interval(
        [o - n for o, n in zip(OLD, new, strict=True)],
        [f"d/{scene}" for scene in TEN],
        seed=7,
        resamples=500,
        level=0.95,
    )
    assert (verdict.low, verdict.high) == pytest.approx(expected)
    assert not verdict.passed  # some frames better, some worse


def test_many_frames_of_one_good_scene_prove_nothing() -> None:
    """40 frames of one scene got better and 3 other scenes did not: not surely better."""
    scenes = ["lucky"] * 40 + ["a", "b", "c"]
    new = [0.1] * 40 + [0.21] * 3
    (verdict,) = judge({"d": evaluation([0.2] * 43, new, scenes)}, rules(better={"abs_rel": 0.0}))
    assert verdict.improvement is not None
    assert verdict.improvement > 0.09
    assert not verdict.passed


@pytest.mark.parametrize(("figure", "change"), [("delta1", 0.05), ("rmse", -0.05)])
def test_which_way_is_better(figure: str, change: float) -> None:
    new = [v + change for v in OLD]
    found = {"d": evaluation(OLD, new, figure=figure)}
    assert judge(found, rules(better={figure: 0.0}))[0].passed
    swapped = {"d": evaluation(new, OLD, figure=figure)}
    assert not judge(swapped, rules(better={figure: 0.0}))[0].passed


def test_an_equal_model_is_not_better_and_not_worse() -> None:
    found = {"d": evaluation(OLD, OLD)}
    better, not_worse = judge(found, rules(better={"abs_rel": 0.0}, not_worse={"abs_rel": 0.0}))
    assert (better.passed, not_worse.passed) == (False, True)


def test_not_worse_than_by_the_margin() -> None:
    found = {"d": evaluation(OLD, [v + 0.01 for v in OLD])}
    for margin, passed in ((0.02, True), (0.005, False)):
        verdict = judge(found, rules(not_worse={"abs_rel": margin}))[-1]
        assert (verdict.rule, verdict.passed) == ("not worse", passed)
        assert f"no less than {-margin:+g}: {'yes' if passed else 'no'}" in verdict.sentence


def test_one_dataset_may_not_pay_for_another() -> None:
    found = {
        "hypersim": evaluation(OLD, [v - 0.05 for v in OLD]),
        "tartanair": evaluation(OLD, [v + 0.03 for v in OLD]),
    }
    chosen = rules(better={"abs_rel": 0.0}, not_worse_on_any={"abs_rel": 0.02}, seed=1)
    verdicts = {(v.figure, v.dataset): v for v in judge(found, chosen)}
    assert verdicts["abs_rel", None].improvement == pytest.approx(0.01)
    assert verdicts["abs_rel", "hypersim"].passed
    assert not verdicts["abs_rel", "tartanair"].passed


def test_a_figure_that_was_lost_is_worse_and_one_that_nobody_has_is_not() -> None:
    found = {"d": evaluation(OLD, OLD)}
    found["d"].scores["champion"] = scores([{"abs_rel": v, "nause": 0.5} for v in OLD])
    chosen = rules(better={"sky_iou": 0.0}, not_worse={"nause": 0.1, "sky_iou": 0.0})
    wanted, lost, unknown = judge(found, chosen)
    assert (wanted.passed, lost.passed, unknown.passed) == (False, False, True)
    assert "challenger without" in lost.sentence
    assert "champion and challenger without" in unknown.sentence


def test_frames_without_the_figure_are_left_out() -> None:
    found = {"a": evaluation([0.2, 0.3], [0.1, 0.2], ["x", "y"])}
    sky = [{"abs_rel": 0.2, "sky_iou": 0.5}, {"abs_rel": 0.3}]
    better = [{"abs_rel": 0.1, "sky_iou": 0.9}, {"abs_rel": 0.2}]
    found["a"].scores = {"champion": scores(sky), "challenger": scores(better)}
    (verdict,) = judge(found, rules(better={"sky_iou": 0.0}))
    assert verdict.improvement == pytest.approx(0.4)
    assert verdict.champion == pytest.approx(0.5)


def test_rules_of_every_profile_are_on_known_figures() -> None:
    for name in ("demo", "smoke", "real_sample", "medium", "sd2"):
        check_rules(load_config(PARAMS, name).promotion)


def test_an_unknown_figure_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'scale_ratio' is no figure to promote by.*abs_rel"):
        check_rules(rules(not_worse={"scale_ratio": 0.1}))
    assert "scale_ratio" not in SIGN  # 1 is best: neither more nor less is better


def test_a_negative_margin_is_refused(tmp_path: Path) -> None:
    text = PARAMS.read_text(encoding="utf-8").replace("delta1: 0.0}", "delta1: -0.1}", 1)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"promotion\.better\.delta1"):
        load_config(path, "demo")
