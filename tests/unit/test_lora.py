"""Low-rank updates: start at nothing, train little, end as plain weights."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from toy import toy_model

from metricgold.config import LoraConfig
from metricgold.errors import UserError
from metricgold.model import fov_features, predict_velocity
from metricgold.pipeline import MetricGoldPipeline
from metricgold.training.lora import WHOLE, add_lora, merge_lora


def velocity(model: MetricGoldPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rgb, depth = (torch.randn(1, 4, 6, 8, generator=generator) for _ in range(2))
    fov = fov_features(torch.tensor([50.0]))
    timesteps = torch.tensor([999])
    return predict_velocity(model.unet, rgb, depth, timesteps, model.empty_text_embed, fov)


def test_updates_start_at_nothing_and_end_as_plain_weights() -> None:
    pytest.importorskip("peft")
    model = toy_model(fov_matters=True)
    names = list(model.unet.state_dict())
    with torch.no_grad():
        before = velocity(model)
    add_lora(model.unet, LoraConfig(rank=2, alpha=4))
    trained = {n for n, p in model.unet.named_parameters() if p.requires_grad}
    assert all("lora_" in n or n.split(".")[0] in WHOLE for n in trained)
    assert any("lora_" in n for n in trained)
    with torch.no_grad():
        torch.testing.assert_close(velocity(model), before)
    optimizer = torch.optim.SGD((p for p in model.unet.parameters() if p.requires_grad), lr=0.5)
    for _ in range(3):
        velocity(model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        updated = velocity(model)
        assert not torch.allclose(updated, before, atol=1e-4)
        merge_lora(model.unet)
        torch.testing.assert_close(velocity(model), updated, atol=1e-5, rtol=1e-4)
    assert list(model.unet.state_dict()) == names  # any diffusers reads it


def test_nothing_to_merge_is_fine() -> None:
    model = toy_model()
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    merge_lora(model.unet)
    assert all(torch.equal(v, before[n]) for n, v in model.unet.state_dict().items())


def test_without_peft_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = toy_model().unet
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'metricgold\[lora\]'"):
        add_lora(unet, LoraConfig())
