"""The pipeline's shapes, ranges, determinism and conditioning."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MarigoldDepthPipeline
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from PIL import Image
from torch import Tensor
from toy import toy_model

from metricgold import diffusion, geometry, visualize
from metricgold.confidence import ConfidenceHead
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
    assert out.prediction.shape == (1, 20, 30, 1)
    assert out.latent is not None
    assert out.latent.shape == (1, 4, 10, 15)  # sides of any length, the U-Net halves and doubles
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


def test_mixed_sizes_in_one_call(pipeline: MetricGoldPipeline) -> None:
    pictures = [picture(16, 24, 1), picture(50, 20, 2), picture(16, 24, 3)]
    fovs = [40.0, None, 70.0]
    out = pipeline(pictures, fov_deg=fovs, batch_size=3, output_latent=True)
    assert [p.shape for p in out.prediction] == [(16, 24, 1), (50, 20, 1), (16, 24, 1)]
    assert [x.shape for x in out.latent] == [(4, 8, 12), (4, 12, 5), (4, 8, 12)]
    for one, rgb, fov in zip(out.prediction, pictures, fovs, strict=True):
        alone = pipeline(rgb, fov_deg=fov).prediction[0]
        np.testing.assert_allclose(one, alone, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 50])
def test_the_batch_size_does_not_matter(pipeline: MetricGoldPipeline, batch_size: int) -> None:
    """Within the tolerance that the docs state: 1e-4 of the depth in float32."""
    pictures = [picture(16, 24, 1), picture(20, 24, 2), picture(16, 24, 3)]
    options: dict[str, Any] = {"num_inference_steps": 2, "ensemble_size": 2}
    expected = pipeline(pictures, generator=seeded(7), **options).prediction
    found = pipeline(pictures, generator=seeded(7), batch_size=batch_size, **options).prediction
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_one_step_ensembles_see_the_picture_and_its_mirror_image(
    pipeline: MetricGoldPipeline,
) -> None:
    rgb, fov = picture(16, 24), 60.0
    mirrored = pipeline(rgb[:, ::-1], fov_deg=fov).prediction[:, :, ::-1]
    plain = pipeline(rgb, fov_deg=fov).prediction
    pair = pipeline(rgb, fov_deg=fov, ensemble_size=2, output_uncertainty=True)
    np.testing.assert_allclose(pair.prediction, np.sqrt(plain * mirrored), rtol=1e-4)
    expected = pair.prediction * np.abs(np.log(plain / mirrored)) / 2
    np.testing.assert_allclose(pair.uncertainty, expected, rtol=1e-2, atol=1e-5)
    mean = pipeline(
        rgb, fov_deg=fov, ensemble_size=2, ensembling_kwargs={"reduction": "mean"}
    ).prediction
    np.testing.assert_allclose(mean, pair.prediction, rtol=1e-4)
    with pytest.raises(ValueError, match="ensemble_size is 3: one step without noise has two"):
        pipeline(rgb, ensemble_size=3)


def test_latents_and_shared_noise(pipeline: MetricGoldPipeline) -> None:
    latents = torch.randn(4, 4, 8, 12, generator=seeded(1))
    pictures = [picture(seed=1), picture(seed=2)]
    given = pipeline(pictures, 2, ensemble_size=2, latents=latents).prediction
    drawn = pipeline(pictures, 2, ensemble_size=2, generator=seeded(1)).prediction
    assert not np.allclose(given, pipeline(pictures, 2, ensemble_size=2).prediction)
    generator = seeded(1)  # draws one latent after the other
    one_by_one = torch.stack([torch.randn(4, 8, 12, generator=generator) for _ in range(4)])
    np.testing.assert_array_equal(
        drawn, pipeline(pictures, 2, ensemble_size=2, latents=one_by_one).prediction
    )
    same = pipeline([pictures[0]] * 2, 2, generator=seeded(1), shared_noise=True).prediction
    np.testing.assert_allclose(same[0], same[1], rtol=1e-4)
    other = pipeline([pictures[0]] * 2, 2, generator=seeded(1)).prediction
    assert not np.allclose(other[0], other[1], rtol=1e-3)
    own = pipeline(pictures, 2, generator=[seeded(1), seeded(1)]).prediction
    np.testing.assert_allclose(own[0], same[0], rtol=1e-4)


def test_latents_of_mixed_sizes_start_the_next_call(pipeline: MetricGoldPipeline) -> None:
    pictures = [picture(16, 24, 1), picture(50, 20, 2)]
    first = pipeline(pictures, 2, generator=seeded(), output_latent=True)
    again = pipeline(pictures, 2, latents=first.latent).prediction
    for one, rgb, latent in zip(again, pictures, first.latent, strict=True):
        alone = pipeline(rgb, 2, latents=latent[None]).prediction[0]
        np.testing.assert_allclose(one, alone, rtol=1e-4)
    with pytest.raises(ValueError, match=r"are \[4, 12, 5\] and \[4, 8, 12\], expected \[4, 8"):
        pipeline(pictures, 2, latents=first.latent[::-1])


def test_pictures_of_depth_as_marigolds_code_makes_them(pipeline: MetricGoldPipeline) -> None:
    """The lines of diffusers' own example for its pipeline."""
    depth = pipeline([picture(), picture(20, 10)], ensemble_size=2, output_uncertainty=True)
    shown = pipeline.image_processor.visualize_depth(depth.prediction)
    assert [(p.mode, p.size) for p in shown] == [("RGB", (24, 16)), ("RGB", (10, 20))]
    ours = visualize.colourise(depth.prediction[0][..., 0])
    np.testing.assert_array_equal(np.asarray(shown[0]), ours)
    unsure = pipeline.image_processor.visualize_uncertainty(depth.uncertainty)
    assert [(p.mode, p.size) for p in unsure] == [("L", (24, 16)), ("L", (10, 20))]
    assert np.asarray(unsure[0]).max() == 255
    exported = pipeline.image_processor.export_depth_to_16bit_png(depth.prediction)
    step = pipeline.image_processor.metres_per_step
    assert step == exported[0].info["metres_per_step"] == 0.002  # of a model up to 80 m
    for one, metres in zip(exported, depth.prediction, strict=True):
        np.testing.assert_allclose(np.asarray(one) * step, metres[..., 0], atol=step / 2 + 1e-5)


def test_pictures_of_depth_take_what_the_pipeline_gives(pipeline: MetricGoldPipeline) -> None:
    make = pipeline.image_processor.visualize_depth
    array = pipeline(picture()).prediction
    (expected,) = make(array)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    for same in (array[0], array[0, ..., 0], tensor, tensor[0], [array[0]], [tensor[0]]):
        assert make(same)[0].tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match=r"expected \[N, H, W, 1\]"):
        make(np.zeros((2, 3, 4, 3), np.float32))
    ramp = np.geomspace(1, 4, 5, dtype=np.float32)[None]
    (spectral,) = make(ramp, 1.0, 4.0, color_map="Spectral")
    theirs = MarigoldImageProcessor.visualize_depth(np.linspace(0, 1, 5, dtype=np.float32)[None])
    assert np.abs(np.asarray(spectral).astype(int) - np.asarray(theirs[0])).max() <= 1
    with pytest.raises(ValueError, match="0 < near < far"):
        make(ramp, 4.0, 1.0)


def test_output_types(pipeline: MetricGoldPipeline) -> None:
    array = pipeline(picture()).prediction
    tensor = pipeline(picture(), output_type="pt").prediction
    assert tensor.shape == (1, 1, 16, 24)
    np.testing.assert_array_equal(tensor[:, 0].numpy(), array[..., 0])
    prediction, uncertainty, latent = pipeline(picture(), return_dict=False)
    np.testing.assert_array_equal(prediction, array)
    assert uncertainty is None
    assert latent is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 or more, got 0"),
        ({"ensemble_size": 0}, "ensemble_size must be 1 or more"),
        ({"processing_resolution": -1}, "processing_resolution must be 0 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"output_type": "pil"}, "output_type must be one of np, pt, got 'pil'"),
        ({"resample_method_input": "lanczos"}, "resample_method_input must be one of nearest"),
        ({"resample_method_output": ""}, "resample_method_output must be one of nearest"),
        ({"ensembling_kwargs": {"tol": 1}}, "ensembling_kwargs key tol must be one of reduction"),
        ({"ensembling_kwargs": {"reduction": "max"}}, "reduction must be one of median, mean"),
        ({"output_uncertainty": True}, "needs ensemble_size > 1"),
        ({"latents": torch.zeros(1, 4, 8, 11)}, r"are \[1, 4, 8, 11\], expected \[1, 4, 8, 12\]"),
        ({"latents": torch.zeros(1, 4, 8, 12), "generator": seeded()}, "exclude each other"),
        ({"num_inference_steps": 2, "generator": []}, "0 generators for 1 pictures"),
        ({"num_inference_steps": 2, "generator": 5}, "must be a torch.Generator, got 5"),
        ({"num_inference_steps": 1.5}, "num_inference_steps must be a whole number, got 1.5"),
        ({"fov_deg": 200}, "fov_deg must lie"),
    ],
)
def test_an_impossible_option_is_told(
    pipeline: MetricGoldPipeline, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        pipeline(picture(), **options)


def test_the_camera_that_was_used_is_told(pipeline: MetricGoldPipeline, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    out = pipeline([tmp_path / "a.jpg", picture()])
    assert [c.source for c in out.cameras] == ["EXIF", "unknown"]
    given = pipeline(tmp_path / "a.jpg", fov_deg=out.cameras[0].fov_deg)
    np.testing.assert_allclose(out.prediction[0], given.prediction[0], rtol=1e-4)


def test_code_for_marigold_runs(pipeline: MetricGoldPipeline) -> None:
    """Every argument of diffusers' pipeline exists here, in the same place, with its default."""
    theirs = list(inspect.signature(MarigoldDepthPipeline.__call__).parameters.values())
    ours = list(inspect.signature(MetricGoldPipeline.__call__).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    depth = pipeline(
        Image.fromarray(picture()), 2, 3, None, True, "bilinear", "nearest", 4,
        {"reduction": "mean"}, None, seeded(), "np", True, True,
    )  # fmt: skip
    assert depth.prediction.shape == depth.uncertainty.shape == (1, 16, 24, 1)
    assert depth.latent.shape == (3, 4, 8, 12)


def test_progress_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = toy_model()
    pipeline.set_progress_bar_config(disable=False)
    pipeline(picture())
    assert "1/1" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    pipeline(picture())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_and_metres_are_float32(dtype: torch.dtype) -> None:
    expected = toy_model(fov_matters=True)(picture(), fov_deg=50).prediction
    found = toy_model(fov_matters=True).to(dtype)(picture(), fov_deg=50).prediction
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.median(np.abs(found / expected - 1)) < 0.05


def test_loading(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path / "model")
    loaded = MetricGoldPipeline.from_pretrained(str(tmp_path / "model"))
    expected = toy_model()(picture()).prediction
    np.testing.assert_allclose(loaded(picture()).prediction, expected, rtol=1e-4)
    with pytest.raises(CheckpointError, match="no MetricGold checkpoint"):
        MetricGoldPipeline.from_pretrained(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no MetricGold checkpoint"):
        MetricGoldPipeline.from_pretrained(str(tmp_path / "none"))  # not the hub's message


def test_parts_can_be_offloaded() -> None:
    """On the CPU, since there is no GPU; that hooks and parts fit is what is seen here."""
    pipeline = toy_model(fov_matters=True)
    pipeline.register_modules(confidence=ConfidenceHead(latent_channels=4, width=16))
    expected = pipeline(picture(), fov_deg=50, output_uncertainty=True)
    pipeline.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        found = pipeline(picture(), fov_deg=50, output_uncertainty=True)
        np.testing.assert_allclose(found.prediction, expected.prediction, rtol=1e-4)
        np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=1e-4)
