"""Metrics against hand-computed numbers, a slow second implementation, and invariances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricgold.evaluation.metrics import (
    METRIC_NAMES,
    Pairs,
    bootstrap_interval,
    depth_metrics,
    mean_over_images,
)
from metricgold.evaluation.ranges import Binned


def slow_metrics(pred: Any, gt: Any, mask: Any) -> dict[str, float]:
    """Pixel by pixel in plain Python."""
    pairs = [(p, d) for p, d, m in zip(pred.flat, gt.flat, mask.flat, strict=True) if m]
    n = len(pairs)
    logs = [math.log(float(p)) - math.log(float(d)) for p, d in pairs]
    result = {
        "abs_rel": sum(abs(p - d) / d for p, d in pairs) / n,
        "sq_rel": sum((p - d) ** 2 / d for p, d in pairs) / n,
        "rmse": math.sqrt(sum((p - d) ** 2 for p, d in pairs) / n),
        "rmse_log": math.sqrt(sum(g * g for g in logs) / n),
        "log10": sum(abs(math.log10(p / d)) for p, d in pairs) / n,
        "silog": 100 * math.sqrt(sum(g * g for g in logs) / n - (sum(logs) / n) ** 2),
    }
    for k in (1, 2, 3):
        result[f"delta{k}"] = sum(max(p / d, d / p) < 1.25**k for p, d in pairs) / n
    ratios = sorted(p / d for p, d in pairs)
    middle = ratios[n // 2] if n % 2 else (ratios[n // 2 - 1] + ratios[n // 2]) / 2
    return result | {"scale_ratio": middle}


def random_case(seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    gt = rng.uniform(0.3, 60.0, (7, 11))
    pred = gt * np.exp(rng.normal(0.0, 0.4, gt.shape))
    mask = rng.random(gt.shape) > 0.3
    mask[0, 0] = True
    return pred, gt, mask


def test_by_hand() -> None:
    gt = np.array([[1.0, 2.0, 4.0]])
    pred = np.array([[1.1, 2.0, 8.0]])
    m = depth_metrics(pred, gt, np.ones((1, 3), bool))
    assert m["abs_rel"] == pytest.approx((0.1 + 0 + 1.0) / 3)
    assert m["sq_rel"] == pytest.approx((0.01 + 0 + 4.0) / 3)
    assert m["rmse"] == pytest.approx(math.sqrt((0.01 + 16.0) / 3))
    g = [math.log(1.1), 0.0, math.log(2.0)]
    assert m["rmse_log"] == pytest.approx(math.sqrt(sum(x * x for x in g) / 3))
    assert m["log10"] == pytest.approx((math.log10(1.1) + math.log10(2)) / 3)
    assert (m["delta1"], m["delta2"], m["delta3"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    variance = sum(x * x for x in g) / 3 - (sum(g) / 3) ** 2
    assert m["silog"] == pytest.approx(100 * math.sqrt(variance))
    assert m["scale_ratio"] == pytest.approx(1.1)
    assert tuple(m) == METRIC_NAMES


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_against_the_slow_implementation(seed: int) -> None:
    case = random_case(seed)
    assert depth_metrics(*case) == pytest.approx(slow_metrics(*case), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10.0))
def test_silog_ignores_scale_and_scale_ratio_measures_it(seed: int, scale: float) -> None:
    pred, gt, mask = random_case(seed)
    before, after = depth_metrics(pred, gt, mask), depth_metrics(pred * scale, gt, mask)
    assert after["silog"] == pytest.approx(before["silog"], rel=1e-6)
    assert after["scale_ratio"] == pytest.approx(scale * before["scale_ratio"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_deltas_are_nested_and_invalid_pixels_do_not_matter(seed: int) -> None:
    pred, gt, mask = random_case(seed)
    m = depth_metrics(pred, gt, mask)
    assert 0 <= m["delta1"] <= m["delta2"] <= m["delta3"] <= 1
    spoilt = depth_metrics(np.where(mask, pred, -1.0), np.where(mask, gt, np.nan), mask)
    assert spoilt == m


def test_perfect_prediction_in_float32() -> None:
    gt = np.random.default_rng(0).uniform(0.1, 80, (8, 8)).astype(np.float32)
    m = depth_metrics(gt, gt, np.ones_like(gt, bool))
    assert all(m[n] == 0.0 for n in ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog"))
    assert all(m[n] == 1.0 for n in ("delta1", "delta2", "delta3", "scale_ratio"))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(("which", "name"), [(0, "prediction"), (1, "ground truth")])
def test_unusable_depth_is_named(which: int, name: str, bad: float) -> None:
    maps = [np.ones((2, 3)), np.ones((2, 3))]
    maps[which][1, 2] = bad
    with pytest.raises(ValueError, match=f"{name} has 1 valid pixels"):
        depth_metrics(maps[0], maps[1], np.ones((2, 3), bool))


def test_wrong_shapes_and_masks_are_named() -> None:
    gt = np.ones((2, 3))
    with pytest.raises(ValueError, match="shapes differ"):
        depth_metrics(np.ones((3, 2)), gt, np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="valid_mask is empty"):
        depth_metrics(gt, gt, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="must be bool"):
        depth_metrics(gt, gt, np.ones((2, 3), np.uint8))  # type: ignore[arg-type]


def test_mean_over_images_counts_images_not_pixels() -> None:
    assert mean_over_images([{"a": 1.0, "b": 0.0}, {"a": 3.0, "b": 1.0}]) == {"a": 2.0, "b": 0.5}
    with pytest.raises(ValueError, match="no image"):
        mean_over_images([])
    with pytest.raises(ValueError, match="differ"):
        mean_over_images([{"a": 1.0}, {"b": 1.0}])


def test_bootstrap_resamples_scenes() -> None:
    scenes = [f"s{i // 10}" for i in range(200)]
    values = [float(i // 10) for i in range(200)]  # nothing varies inside a scene
    low, high = bootstrap_interval(values, scenes, seed=0)
    assert (low, high) == bootstrap_interval(values, scenes, seed=0)
    assert low < np.mean(values) < high
    expected = 2 * 1.96 * np.std(range(20)) / math.sqrt(20)
    assert high - low == pytest.approx(expected, rel=0.15)
    assert bootstrap_interval([2.0] * 4, list("abcd"), seed=1) == (2.0, 2.0)
    with pytest.raises(ValueError, match="one group a value"):
        bootstrap_interval([], [], seed=0)


def test_errors_by_bin_by_hand() -> None:
    d = np.array([0.5, 1.0, 1.5, 5.0])
    p = np.array([0.5, 1.5, 1.5, 4.5])
    bins = np.array([0, 1, 1, 3])
    errors = Binned.of(bins, 4, Pairs(p, d))
    errors.add(Binned.of(bins[:1], 4, Pairs(p[:1], d[:1])))
    near, middle, far = errors.rows([(0, 1), (1, 2), (2, 4), (4, math.inf)])
    assert near == {"from": 0, "to": 1, "pixels": 2, "abs_rel": 0.0, "delta1": 1.0}
    assert middle == {"from": 1, "to": 2, "pixels": 2, "abs_rel": 0.25, "delta1": 0.5}
    assert far == pytest.approx(
        {"from": 4, "to": math.inf, "pixels": 1, "abs_rel": 0.1, "delta1": 1.0}
    )


def test_bins_of_a_table_are_summed_along_its_sides() -> None:
    """Pixels in the cells (0, 0), (0, 2), (1, 0) of a table of 2x3."""
    table = Binned.of(np.array([0, 2, 3]), 6, Pairs(np.array([1.0, 2, 3]), np.array([1.0, 1, 1])))
    assert table.along(0, (2, 3)).sums.tolist() == [[2, 1], [1, 2], [1, 0]]
    assert table.along(1, (2, 3)).sums.tolist() == [[2, 0, 1], [2, 0, 1], [1, 0, 0]]
