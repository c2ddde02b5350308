"""The numpy sampler equals the torch one, so a runtime without torch gives the same depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export import numpy_sampler
from export.describe import scheduler_table
from export.manifest import ExportError, SchedulerTable
from metricgold import diffusion, geometry
from metricgold.model import FOV_FEATURES, FOV_OCTAVES, fov_features

DEFINITION = {"features": FOV_FEATURES, "octaves": list(FOV_OCTAVES)}
TABLE: SchedulerTable = scheduler_table(diffusion.make_scheduler())


@given(st.floats(1.0, 179.0))
def test_fov_features_equal_torch(fov_deg: float) -> None:
    expected = fov_features(torch.tensor([fov_deg])).numpy()
    # 8 pi tan(fov / 2) is large for wide views; the phase is only as exact as float32 makes it.
    phase = 8 * np.pi * np.tan(np.deg2rad(fov_deg) / 2)
    np.testing.assert_allclose(
        numpy_sampler.fov_features(fov_deg, DEFINITION), expected, atol=1e-6 + 1e-6 * phase
    )


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_unknown_fov_is_zeros(unknown: float | None) -> None:
    features = numpy_sampler.fov_features(unknown, DEFINITION)
    assert features.shape == (1, FOV_FEATURES)
    assert not features.any()
    assert not fov_features(torch.tensor([float("nan")])).any()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 50, 1000])
def test_timesteps_equal_diffusers(steps: int) -> None:
    scheduler = diffusion.make_scheduler()
    scheduler.set_timesteps(steps)
    assert numpy_sampler.trailing_timesteps(steps, 1000) == scheduler.timesteps.tolist()
    if str(steps) in TABLE.timesteps:
        assert TABLE.timesteps[str(steps)] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="number of steps"):
        numpy_sampler.trailing_timesteps(steps, 1000)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50])
def test_sample_equals_torch(steps: int) -> None:
    initial = np.random.default_rng(0).standard_normal((1, 4, 3, 5), dtype=np.float32)
    expected = diffusion.sample(
        lambda z, t: torch.sin(z + t / 1000),
        torch.from_numpy(initial),
        diffusion.make_scheduler(),
        steps,
    )
    actual = numpy_sampler.sample(
        lambda z, t: np.sin(z + np.float32(t / 1000)), initial, TABLE, steps
    )
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.numpy(), atol=2e-5)


def test_one_step_is_minus_the_velocity_at_the_start_it_is_given() -> None:
    start = geometry.ray_latent(np.array([60.0]), (2, 3))
    np.testing.assert_allclose(
        numpy_sampler.sample(lambda z, t: 0.3 + z, start, TABLE, 1), -0.3 - start, atol=1e-6
    )


def test_table_is_exact_in_float32() -> None:
    expected = diffusion.make_scheduler().alphas_cumprod.numpy()
    np.testing.assert_array_equal(TABLE.alphas(), expected)


def test_another_kind_of_scheduler_is_refused() -> None:
    scheduler = diffusion.make_scheduler()
    scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ExportError, match="epsilon"):
        scheduler_table(scheduler)
