"""What helps the latent phase: weights of channels, and depth from a head beside the U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor
from toy import toy_model

from metricgold.config import load_config
from metricgold.training import auxiliary
from metricgold.training.auxiliary import WithDepthHead, channel_weights
from metricgold.training.latents import CACHE_VERSION, LatentBank
from metricgold.training.one_step import LatentObjective


def bank(path: Path) -> LatentBank:
    with h5py.File(path, "w") as file:
        file.attrs["version"], file.attrs["weights"] = CACHE_VERSION, "here"
        generator = torch.Generator().manual_seed(1)
        file["depth_latent"] = torch.randn(50, 4, 4, 6, generator=generator).numpy()
        file["fov_y_deg"] = torch.full((50,), 60.0).numpy()
    return LatentBank(path, "here")


def test_a_channel_weighs_what_the_decoder_makes_of_it(tmp_path: Path, monkeypatch: Any) -> None:
    gains = torch.tensor([4.0, -2.0, 1.0, 0.0])

    def decode(vae: Any, latent: Tensor) -> Tensor:
        return (latent * gains.view(1, 4, 1, 1)).sum(dim=1, keepdim=True)

    monkeypatch.setattr(auxiliary, "decode_depth_norm", decode)
    model = toy_model()
    found = channel_weights(model.depth_vae, {"one": bank(tmp_path / "one.h5")}, seed=0)
    expected = gains.abs() / gains.abs().mean()
    torch.testing.assert_close(found.flatten(), expected, rtol=0.15, atol=1e-6)


def test_the_head_gives_depth_and_leaves_the_unet_as_it_is() -> None:
    model = toy_model(fov_matters=True)
    inputs = (torch.randn(2, 8, 8, 12), torch.tensor([999, 999]), torch.randn(2, 2, 8))
    labels = torch.randn(2, 32)
    before = model.unet(*inputs, class_labels=labels).sample
    guided = WithDepthHead(model.unet, 2)
    assert torch.equal(guided(*inputs, class_labels=labels).sample, before)
    assert guided.depth_norm.shape == (2, 1, 16, 24)
    names = {name.partition(".")[0] for name in guided.state_dict()}
    assert names == {"unet", "head"}
    guided.detach_head()
    kept = guided.depth_norm
    assert torch.equal(model.unet(*inputs, class_labels=labels).sample, before)
    assert guided.depth_norm is kept


def latent_loss(**changes: float) -> tuple[LatentObjective, dict[str, Tensor]]:
    model = toy_model(fov_matters=True)
    config = load_config("params.yaml", "smoke").train_one_step.model_copy(update=changes)
    generator = torch.Generator().manual_seed(2)
    batch = {
        "rgb_latent": torch.randn(2, 4, 8, 12, generator=generator),
        "depth_latent": torch.randn(2, 4, 8, 12, generator=generator),
        "latent_mask": torch.rand(2, 1, 8, 12, generator=generator) < 0.7,
        "depth_norm": torch.rand(2, 1, 16, 24, generator=generator) * 2 - 1,
        "valid_mask": torch.rand(2, 1, 16, 24, generator=generator) < 0.7,
        "sky_mask": torch.zeros(2, 1, 16, 24, dtype=torch.bool),
        "fov_y_deg": torch.tensor([50.0, 80.0]),
    }
    torch.manual_seed(3)
    model.unet.requires_grad_(True)
    objective = LatentObjective(model, config, torch.tensor([2.0, 1, 1, 0]).view(1, 4, 1, 1))
    return objective, objective(0, batch, generator)


def test_both_losses_reach_the_unet_and_are_weighed() -> None:
    objective, losses = latent_loss(latent_loss_weight=0.5, auxiliary_loss_weight=2.0)
    expected = 0.5 * losses["latent"] + 2.0 * losses["auxiliary"]
    torch.testing.assert_close(losses["loss"], expected)
    losses["auxiliary"].backward()
    assert isinstance(objective.network, WithDepthHead)
    first = objective.network.unet.conv_in.weight.grad
    assert first is not None
    assert first.abs().sum() > 0


def test_without_auxiliary_loss_there_is_no_head() -> None:
    objective, losses = latent_loss(latent_loss_weight=1.0, auxiliary_loss_weight=0.0)
    assert not isinstance(objective.network, WithDepthHead)
    assert set(losses) == {"loss", "latent"}
    torch.testing.assert_close(losses["loss"], losses["latent"])
