"""nAUSE and Spearman: perfect, useless and upside down, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from metricgold.evaluation.uncertainty import FRACTIONS, uncertainty_score

RNG = np.random.default_rng(0)
TRUTH = np.exp(RNG.standard_normal((20, 30)))
PRED = TRUTH * np.exp(0.3 * RNG.standard_normal((20, 30)))
ERROR = np.abs(PRED - TRUTH) / TRUTH
ALL = np.ones(TRUTH.shape, bool)


@given(st.floats(1e-3, 1e3))
def test_the_error_itself_is_perfect_whatever_the_unit(factor: float) -> None:
    score = uncertainty_score(PRED, TRUTH, factor * ERROR * PRED, ALL)
    assert score.nause == pytest.approx(0, abs=1e-9)
    assert score.spearman == pytest.approx(1)


def test_nothing_known_and_upside_down() -> None:
    assert uncertainty_score(PRED, TRUTH, PRED, ALL) == pytest.approx((1, 0), abs=1e-9)
    upside_down = uncertainty_score(PRED, TRUTH, PRED / ERROR, ALL)
    assert upside_down.nause > 1.5
    assert upside_down.spearman == pytest.approx(-1)
    noise = uncertainty_score(PRED, TRUTH, PRED * RNG.random(PRED.shape), ALL)
    assert noise == pytest.approx((1, 0), abs=0.15)
    same = uncertainty_score(2 * np.ones_like(TRUTH), np.ones_like(TRUTH), PRED, ALL)
    assert same == (1, 0)


def test_equals_plain_loops_and_scipy() -> None:
    rng = np.random.default_rng(1)
    valid = rng.random(TRUTH.shape) > 0.3
    doubt = ERROR * np.exp(rng.standard_normal(ERROR.shape))
    score = uncertainty_score(PRED, TRUTH, doubt * PRED, valid)
    e, u = ERROR[valid], doubt[valid]
    areas = [0.0, 0.0]
    for share in np.linspace(1, 0, FRACTIONS, endpoint=False):
        keep = max(1, int(np.round(share * len(e))))
        oracle = np.sort(e)[:keep].mean()
        areas[0] += e[np.argsort(u)[:keep]].mean() - oracle
        areas[1] += e.mean() - oracle
    assert score.nause == pytest.approx(areas[0] / areas[1])
    assert score.spearman == pytest.approx(spearmanr(e, u).statistic)


def test_equal_doubts_share_their_rank_and_their_mean() -> None:
    """Six levels of doubt: the curve is what it is on average over all orders of equal ones."""
    levels = np.random.default_rng(2).integers(0, 6, TRUTH.shape).astype(float)
    score = uncertainty_score(PRED, TRUTH, levels * PRED, ALL)
    e, u = ERROR.ravel(), levels.ravel()
    assert score.spearman == pytest.approx(spearmanr(e, u).statistic)
    level_means = np.array([e[u == level].mean() for level in range(6)])
    rising = np.sort(u).astype(int)
    areas = [0.0, 0.0]
    for share in np.linspace(1, 0, FRACTIONS, endpoint=False):
        keep = max(1, int(np.round(share * len(e))))
        oracle = np.sort(e)[:keep].mean()
        areas[0] += level_means[rising[:keep]].mean() - oracle
        areas[1] += e.mean() - oracle
    assert score.nause == pytest.approx(areas[0] / areas[1])


def test_invalid_pixels_do_not_count() -> None:
    valid, bad = ALL.copy(), ERROR * PRED
    valid[0], bad[0] = False, np.nan
    assert uncertainty_score(PRED, TRUTH, bad, valid).nause == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="finite"):
        uncertainty_score(PRED, TRUTH, bad, ALL)
    with pytest.raises(ValueError, match="empty"):
        uncertainty_score(PRED, TRUTH, bad, ~ALL)
