"""Sky lies at the far end of the range: what training makes of it, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from made_frames import make_frame, write_shards
from torch import Tensor
from toy import toy_model

from metricgold.config import load_config
from metricgold.data.frames import collate
from metricgold.data.sample import Frame
from metricgold.data.transforms import to_training_size
from metricgold.depth_codec import DepthCodec
from metricgold.evaluation.figures import Truth, score
from metricgold.evaluation.predictors import Estimate, Invariance
from metricgold.outputs import Prediction
from metricgold.training import latents
from metricgold.training.base_model import BaseModel
from metricgold.training.one_step import depth_loss
from metricgold.training.vae import DepthObjective
from metricgold.workspace import Workspace

SECTION = load_config("params.yaml", "smoke").train_one_step
CODEC = DepthCodec(0.1, 80.0)
SIZE = (32, 48)
HALF = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
HALF[..., :2, :] = True  # the upper half of a picture


def terms(prediction: Tensor, sky: Tensor) -> Mapping[str, Tensor]:
    """Losses of a picture whose lower half is 0 and whose upper half has no depth."""
    target = torch.where(HALF, 1.0, 0.0)
    return depth_loss(prediction, target, ~HALF, sky, CODEC, SECTION)


def test_sky_is_drawn_to_the_far_end_and_emptiness_is_not() -> None:
    near = torch.zeros(1, 1, 4, 6, requires_grad=True)
    assert terms(near, torch.zeros_like(HALF))["loss"] == 0
    losses = terms(near, HALF)
    assert float(losses["l1"].detach()) == pytest.approx(0.5)  # half of the pixels are wrong by 1
    losses["loss"].backward()
    assert near.grad is not None
    assert (near.grad[HALF] < 0).all()
    assert terms(torch.where(HALF, 1.0, 0.0), HALF)["loss"] == 0


def test_sky_has_no_metres_to_be_wrong_in() -> None:
    losses = terms(torch.zeros(1, 1, 4, 6), HALF)
    assert losses["scale"] == 0
    assert losses["relative"] == 0


def frame_with_sky() -> Frame:
    """Its upper quarter is sky, the row below has no depth and is none."""
    frame = make_frame(0, 0, SIZE)
    sky, valid = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    sky[:8], valid[:9] = True, False
    return replace(frame, depth=np.where(valid, frame.depth, 0), valid_mask=valid, sky_mask=sky)


def test_sky_goes_through_every_transform_with_the_picture() -> None:
    flip = load_config("params.yaml", "smoke").cache_latents.augment.model_copy(
        update={"flip": 1.0, "crop": 0.0, "uncrop": 0.0}
    )
    frame = frame_with_sky()
    frame.sky_mask[:, :5] = False
    sample = to_training_size(frame, SIZE, flip, np.random.default_rng(0))
    np.testing.assert_array_equal(sample.sky_mask, frame.sky_mask[:, ::-1])
    np.testing.assert_array_equal(collate([sample])["sky_mask"][0, 0], sample.sky_mask)


def test_the_depth_vae_learns_sky_too() -> None:
    model, config = toy_model(), load_config("params.yaml", "smoke").train_vae
    objective = DepthObjective(model.depth_vae, CODEC, config.model_copy(update={"crop": 1.0}))
    batch = collate([to_training_size(frame_with_sky(), SIZE)])
    nothing = batch | {"valid_mask": torch.zeros_like(batch["valid_mask"])}
    empty = nothing | {"sky_mask": torch.zeros_like(batch["sky_mask"])}
    found = [float(objective(0, b, torch.Generator())["l1"]) for b in (nothing, empty)]
    assert found[0] > 0
    assert found[1] == 0


def test_the_latent_cache_keeps_sky_and_compares_latents_of_it(tmp_path: Path) -> None:
    model, config = toy_model(), load_config("params.yaml", "smoke")
    datasets = {
        name: dataset.model_copy(update={"train_size": SIZE, "weight": float(name == "tartanair")})
        for name, dataset in config.datasets.items()
    }
    caching = config.cache_latents.model_copy(update={"variants": 1})
    config = config.model_copy(update={"datasets": datasets, "cache_latents": caching})
    workspace = Workspace(tmp_path)
    BaseModel(model.image_vae, model.unet, model.empty_text_embed).save(workspace.base_model)
    model.depth_vae.save_pretrained(workspace.depth_vae)
    write_shards(workspace.shards("tartanair"), "train", [frame_with_sky()])
    latents.run(config, workspace)
    with h5py.File(workspace.latents / "tartanair.h5") as file:
        sky, norm, compared = (file[k][0, 0] for k in ("sky_mask", "depth_norm", "latent_mask"))
    np.testing.assert_array_equal(sky, frame_with_sky().sky_mask)
    assert (norm[sky] == 1).all()
    assert compared[:4].all()  # cells of 2x2: eight rows of sky
    assert not compared[4].any()  # half of it has no depth and is no sky
    assert compared[5:].all()


def test_what_is_at_the_far_end_is_sky_and_has_no_depth() -> None:
    depth = np.array([[1.0, 71.9, 72.1, 80.0, np.nan]], np.float32)
    found = Prediction(np.zeros((1, 5, 3), np.uint8), depth, depth_max_m=80.0)
    assert found.sky_mask.tolist() == [[False, False, True, True, False]]
    assert found.valid_mask.tolist() == [[True, True, False, False, False]]
    unknown = Prediction(found.rgb, depth)
    assert not unknown.sky_mask.any()
    assert unknown.valid_mask.tolist() == [[True, True, True, True, False]]


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_the_pipeline_marks_sky(output_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    pictures = [np.zeros((16, 24, 3), np.uint8), np.zeros((24, 24, 3), np.uint8)]
    output = model(pictures, output_type=output_type)
    for depth, sky in zip(output.prediction, output.sky_mask, strict=True):
        assert tuple(sky.shape) == tuple(depth.shape)
        assert not sky.any()
    assert all(bool(valid.all()) for valid in output.valid_mask)
    far = torch.full((1, 1, 16, 24), 1.0)
    monkeypatch.setattr("metricgold.pipeline.decode_depth_norm", lambda *_: far)
    output = model(pictures[0], output_type=output_type)
    found = output.sky_mask
    assert bool(found.all())
    assert output.valid_mask.shape == found.shape
    assert not output.valid_mask.any()
    assert "bool" in str(found.dtype)


def test_overlap_of_skies_by_hand() -> None:
    """8 of 32 rows are sky, one is unknown; rows 4 to 11 are predicted as sky."""
    depth = np.full(SIZE, 5.0, np.float32)
    depth[4:12] = 79.0
    truth = Truth(frame_with_sky(), (0.1, 80.0))
    found = score(truth, Estimate(depth)).figures["sky_iou"]
    assert found == pytest.approx(4 / (8 + 3))  # the unknown row counts for nobody
    assert "sky_iou" not in score(truth, Estimate(depth), Invariance.AFFINE_DEPTH).figures
    none = Truth(make_frame(0, 0, SIZE), (0.1, 80.0))
    assert "sky_iou" not in score(none, Estimate(depth)).figures
