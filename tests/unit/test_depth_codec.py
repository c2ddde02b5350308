"""The depth codec and latent masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metricgold.depth_codec import PRESETS, DepthCodec, latent_mask

codecs = st.builds(
    lambda low, ratio: DepthCodec(low, low * ratio), st.floats(0.01, 2.0), st.floats(1.5, 5000.0)
)


@settings(max_examples=60, deadline=None)
@given(codec=codecs, share=st.floats(0.0, 1.0))
def test_round_trip_in_range(codec: DepthCodec, share: float) -> None:
    depth = codec.depth_min_m * math.exp(codec.log_range * share)
    as_numpy = codec.decode(codec.encode(np.array([depth], np.float32)))
    as_torch = codec.decode(codec.encode(torch.tensor([depth])))
    assert as_numpy[0] == pytest.approx(depth, rel=1e-5)
    assert as_torch[0].item() == pytest.approx(depth, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(codec=codecs, shares=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)))
def test_monotone_and_linear_in_log_depth(codec: DepthCodec, shares: tuple[float, float]) -> None:
    depth = codec.depth_min_m * np.exp(codec.log_range * np.array(sorted(shares)))
    low, high = codec.encode(depth)
    assert low <= high
    assert [low, high] == pytest.approx([2 * s - 1 for s in sorted(shares)], abs=2e-5)


def test_end_points_and_published_ranges() -> None:
    assert PRESETS["paper"].log_range == pytest.approx(6.685, abs=1e-3)
    assert PRESETS["extended"].log_range == pytest.approx(7.601, abs=1e-3)
    codec = PRESETS["paper"]
    x = codec.encode(np.array([0.1, math.sqrt(0.1 * 80), 80.0], np.float32))
    np.testing.assert_allclose(x, [-1.0, 0.0, 1.0], atol=1e-6)
    assert codec.relative_error(0.01) == pytest.approx(0.0334, abs=1e-4)


def test_out_of_range_is_clipped_and_unusable_depth_is_far() -> None:
    codec = DepthCodec(0.5, 10.0)
    depth = np.array([0.01, 99.0, 0.0, -3.0, math.nan, math.inf], np.float32)
    expected = [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(codec.encode(depth), expected)
    np.testing.assert_allclose(codec.encode(torch.from_numpy(depth)).numpy(), expected)
    np.testing.assert_allclose(codec.decode(np.array([-5.0, 5.0])), [0.5, 10.0], rtol=1e-6)


def test_works_in_fp32_whatever_comes_in() -> None:
    codec = PRESETS["paper"]
    assert codec.encode(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert codec.decode(torch.ones(2, dtype=torch.float16)).dtype == torch.float32
    assert codec.encode(np.ones(2)).dtype == np.float32
    assert codec.decode(np.ones(2)).dtype == np.float32


@pytest.mark.parametrize("limits", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, math.inf)])
def test_impossible_ranges_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="depth range"):
        DepthCodec(*limits)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.sampled_from([2, 4, 8]))
def test_latent_cells_are_valid_only_if_every_pixel_is(seed: int, factor: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((2, 1, 2 * factor, 3 * factor)) > 0.5 / factor**2
    got = latent_mask(torch.from_numpy(mask), factor).numpy()
    cells = mask.reshape(2, 1, 2, factor, 3, factor)
    np.testing.assert_array_equal(got, cells.all(axis=(3, 5)))


def test_latent_mask_needs_whole_cells() -> None:
    with pytest.raises(ValueError, match="9x16 px is not divisible by the factor 8"):
        latent_mask(torch.ones(1, 1, 9, 16, dtype=torch.bool), 8)
