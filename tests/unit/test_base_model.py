"""A base model in the hub's format: what is taken of it, and what is said when it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from stable_diffusion import SMALL_TEXT, SMALL_UNET, write_stable_diffusion
from torch import Tensor

from metricgold.config import ProfileConfig, load_config
from metricgold.errors import UserError
from metricgold.full_size import SD2_UNET, SD2_VAE
from metricgold.model import (
    CheckpointError,
    encode,
    fov_features,
    predict_velocity,
    widen_conv_in,
    with_fov_embedding,
)
from metricgold.training import base_model
from metricgold.training.base_model import BaseModel, fetch
from metricgold.workspace import Workspace

pytest.importorskip("transformers", reason="the extra 'sd2' is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("sd") / "stable-diffusion")


def pretrained(hub_id: str) -> ProfileConfig:
    config = load_config("params.yaml", "smoke")
    section = config.base_model.model_copy(
        update={"hub_id": hub_id, "toy": None, "optimizer": None, "revision": None}
    )
    return config.model_copy(update={"base_model": section})


def outputs(model: BaseModel, text_channels: int) -> tuple[Tensor, Tensor]:
    """Velocities of the pretrained U-Net, and of the widened one fed the same latent twice."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(1, 2, text_channels, generator=generator)
    timesteps = torch.tensor([3, 999])
    fov = fov_features(torch.tensor([50.0, torch.nan]))
    with torch.no_grad():
        before = model.unet(latent, timesteps, text.expand(2, -1, -1)).sample
        widened = widen_conv_in(with_fov_embedding(model.unet)).eval()
        after = predict_velocity(widened, latent, latent, timesteps, text, fov)
    return before, after


def test_a_stable_diffusion_folder_becomes_a_base_model(folder: Path, tmp_path: Path) -> None:
    """Through the stage: VAE, U-Net and the empty prompt are kept, the text encoder is not."""
    from transformers import CLIPTextModel

    workspace = Workspace(tmp_path)
    base_model.run(pretrained(str(folder)), workspace)
    model = BaseModel.load(workspace.base_model)
    assert {p.name for p in workspace.base_model.iterdir()} == {
        "image_vae",
        "unet",
        "empty_text_embed.safetensors",
        "source.json",
    }
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        expected = encoder(torch.tensor([[0, 1]])).last_hidden_state  # start and end, no padding
    torch.testing.assert_close(model.empty_text_embed, expected)
    assert model.empty_text_embed.shape == (1, 2, SMALL_TEXT["hidden_size"])
    source = json.loads((workspace.base_model / "source.json").read_text())
    assert source == {"hub_id": str(folder), "revision": None, "commit": None}
    assert json.loads((workspace.metrics / "base_model.json").read_text()) == {"pretrained": 1}


def test_step_0_equals_the_base_model(folder: Path) -> None:
    """Known and unknown camera alike, since the embedding's last layer is zero."""
    before, after = outputs(fetch(str(folder), None), SMALL_UNET["cross_attention_dim"])
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_the_fov_embedding_learns(folder: Path) -> None:
    unet = widen_conv_in(with_fov_embedding(fetch(str(folder), None).unet))
    assert unet.class_embedding is not None
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 2, SMALL_UNET["cross_attention_dim"])
    fov = fov_features(torch.tensor([60.0]))
    out = predict_velocity(unet, latent, latent, torch.tensor([999]), text, fov)
    out.square().sum().backward()
    assert float(unet.class_embedding.linear_2.weight.grad.abs().sum()) > 0


def test_another_class_embedding_is_refused(tmp_path: Path) -> None:
    other = {**SMALL_UNET, "class_embed_type": "timestep"}
    write_stable_diffusion(tmp_path / "sd", unet=other)
    with pytest.raises(CheckpointError, match=r"class embedding of its own \(timestep\)"):
        with_fov_embedding(fetch(str(tmp_path / "sd"), None).unet)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_one_clear_line(folder: Path, tmp_path: Path, part: str) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for one in folder.iterdir():
        if one.name != part:
            (broken / one.name).symlink_to(one)
    with pytest.raises(UserError) as told:
        fetch(str(broken), None)
    assert str(told.value).startswith(f"base model '{broken}' (revision None) cannot be had: ")
    assert "\n" not in str(told.value)


def test_weights_that_are_pickles_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "unet").mkdir(parents=True)
    for part in ("vae", "text_encoder", "tokenizer"):
        (broken / part).symlink_to(folder / part)
    (broken / "unet" / "config.json").symlink_to(folder / "unet" / "config.json")
    torch.save({}, broken / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        fetch(str(broken), None)


def test_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as told:
        fetch("somebody/no-such-model", "abc")
    wanted = "base model 'somebody/no-such-model' (revision abc) cannot be had: "
    assert str(told.value).startswith(wanted)
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_the_true_size(tmp_path: Path) -> None:
    """Stable Diffusion 2's exact configuration with random weights: 866 million of them."""
    text = {**SMALL_TEXT, "hidden_size": 1024, "num_attention_heads": 16}
    folder = write_stable_diffusion(tmp_path / "sd2", SD2_UNET, SD2_VAE, text)
    model = fetch(str(folder), None)
    assert model.empty_text_embed.shape == (1, 2, 1024)
    assert sum(p.numel() for p in model.unet.parameters()) == 865_910_724
    before, after = outputs(model, 1024)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        latent = encode(model.image_vae, torch.zeros(1, 3, 64, 96))
    assert latent.shape == (1, 4, 8, 12)
