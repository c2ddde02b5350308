"""The pipeline's shapes, ranges, determinism and conditioning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import toy_model

from metricgold import diffusion, geometry
from metricgold.model import CheckpointError
from metricgold.pipeline import MetricGoldPipeline


@pytest.fixture(scope="module")
def pipeline() -> MetricGoldPipeline:
    return toy_model(fov_matters=True)


def picture(height: int = 16, width: int = 24, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (50, 37), (5, 61), (1, 1)])
def test_any_size_gives_depth_of_that_size(
    pipeline: MetricGoldPipeline, size: tuple[int, int]
) -> None:
    out = pipeline(picture(*size))
    assert out.prediction.shape == (1, *size, 1)
    assert out.prediction.dtype == np.float32
    assert (out.prediction >= 0.1 * (1 - 1e-5)).all()
    assert (out.prediction <= 80.0 * (1 + 1e-5)).all()
    assert out.uncertainty is None
    assert out.latent is None


def test_processing_size_and_latent(pipeline: MetricGoldPipeline) -> None:
    out = pipeline(
        picture(40, 60), processing_resolution=30, match_input_resolution=False, output_latent=True
    )
    assert out.prediction.shape == (1, 20, 32, 1)  # multiples of 4
    assert out.latent is not None
    assert out.latent.shape == (1, 4, 10, 16)
    full = pipeline(picture(40, 60), processing_resolution=0, match_input_resolution=False)
    assert full.prediction.shape == (1, 40, 60, 1)


def test_one_step_needs_no_noise(pipeline: MetricGoldPipeline) -> None:
    first = pipeline(picture(), generator=seeded(1)).prediction
    assert np.array_equal(first, pipeline(picture(), generator=seeded(2)).prediction)


def test_one_step_starts_from_the_rays_of_the_camera(
    pipeline: MetricGoldPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Tensor] = []

    def sample(velocity: Any, initial: Tensor, *rest: Any) -> Tensor:
        starts.append(initial)
        return diffusion.sample(velocity, initial, *rest)

    monkeypatch.setattr("metricgold.pipeline.sample", sample)
    pipeline([picture(seed=1), picture(seed=2)], fov_deg=[60.0, None], batch_size=2)
    pipeline(picture(), 2, fov_deg=60.0, generator=seeded())
    expected = geometry.ray_latent(np.array([60.0, math.nan]), (8, 12))
    np.testing.assert_array_equal(starts[0].numpy(), expected)
    assert len(starts) == 2
    assert not np.allclose(starts[1].numpy(), expected[:1])  # two steps start from noise


@pytest.mark.parametrize(
    "options", [{"num_inference_steps": 4}, {"num_inference_steps": 2, "ensemble_size": 3}]
)
def test_noise_comes_from_the_generator(
    pipeline: MetricGoldPipeline, options: dict[str, int]
) -> None:
    first = pipeline(picture(), generator=seeded(1), **options).prediction
    assert np.array_equal(first, pipeline(picture(), generator=seeded(1), **options).prediction)
    assert not np.allclose(first, pipeline(picture(), generator=seeded(2), **options).prediction)


def test_a_batch_equals_single_pictures(pipeline: MetricGoldPipeline) -> None:
    pictures, fovs = [picture(seed=1), picture(seed=2)], [40.0, None]
    together = pipeline(pictures, fov_deg=fovs).prediction
    for i in range(2):
        alone = pipeline(pictures[i], fov_deg=fovs[i]).prediction[0]
        np.testing.assert_allclose(together[i], alone, rtol=1e-4)


def test_field_of_view_changes_the_depth(pipeline: MetricGoldPipeline) -> None:
    results = [pipeline(picture(), fov_deg=f).prediction for f in (40.0, 90.0, None)]
    assert not np.allclose(results[0], results[1], rtol=1e-3)
    assert not np.allclose(results[0], results[2], rtol=1e-3)


def test_ensemble_is_the_median_in_log_depth(pipeline: MetricGoldPipeline) -> None:
    generator = seeded(3)
    members = []
    for _ in range(3):  # the same draws, one at a time; 2 steps so that each draws noise
        members.append(pipeline(picture(), num_inference_steps=2, generator=generator).prediction)
    fused = pipeline(
        picture(),
        num_inference_steps=2,
        ensemble_size=3,
        generator=seeded(3),
        output_uncertainty=True,
    )
    np.testing.assert_allclose(fused.prediction, np.median(members, axis=0), rtol=1e-4)
    assert fused.uncertainty is not None
    logs = np.log(np.stack(members))
    mad = np.median(np.abs(logs - np.median(logs, axis=0)), axis=0)
    np.testing.assert_allclose(fused.uncertainty, fused.prediction * mad, rtol=1e-2, atol=1e-5)
    assert fused.uncertainty.shape == fused.prediction.shape
    assert (fused.uncertainty >= 0).all()
    assert fused.uncertainty.mean() > 0


def test_loading(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path / "model")
    loaded = MetricGoldPipeline.from_pretrained(str(tmp_path / "model"))
    expected = toy_model()(picture()).prediction
    np.testing.assert_allclose(loaded(picture()).prediction, expected, rtol=1e-4)
    with pytest.raises(CheckpointError, match="no MetricGold checkpoint"):
        MetricGoldPipeline.from_pretrained(tmp_path / "none")
