"""The plan counts what can be counted by hand."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from metricgold.config import load_config
from metricgold.full_size import SD2_UNET, SD2_VAE
from metricgold.model import build_light_vae, build_toy_unet, build_toy_vae, widen_conv_in
from metricgold.training.plan import StagePlan, describe, plan


def by_stage(stages: list[StagePlan]) -> dict[str, StagePlan]:
    return {stage.stage: stage for stage in stages}


def test_the_full_size_networks_have_the_published_number_of_weights() -> None:
    with FakeTensorMode():
        unet, vae = UNet2DConditionModel(**SD2_UNET), AutoencoderKL(**SD2_VAE)
        assert sum(p.numel() for p in unet.parameters()) == 865_910_724
        assert sum(p.numel() for p in vae.parameters()) == 83_653_863


def test_a_small_profile_by_hand() -> None:
    config = load_config("params.yaml", "smoke")
    assert config.base_model.toy is not None
    unet = sum(p.numel() for p in widen_conv_in(build_toy_unet(config.base_model.toy)).parameters())
    vae = sum(p.numel() for p in build_toy_vae(config.base_model.toy).parameters())
    stages = by_stage(plan(config))
    b, c = stages["train_unet"], stages["train_one_step (depth)"]
    assert b.parameters == b.trained == unet
    assert b.weights == 4 * (unet + 2 * vae)
    assert b.gradients == 4 * unet
    assert b.average == (4 * unet if config.train_unet.optimizer.ema_decay else 0)
    assert 4 * unet <= b.optimizer <= 8 * unet  # one number a weight for Muon, two for AdamW
    assert c.flops > b.flops  # the decoder
    assert stages["base_model"].parameters == vae
    assert b.memory == b.weights + b.gradients + b.optimizer + b.average + b.activations


def test_the_light_autoencoder_is_planned_where_there_is_one() -> None:
    config = load_config("params.yaml", "smoke")
    assert config.base_model.toy is not None
    assert config.train_light is not None
    assert config.train_light.network is not None
    light = build_light_vae(config.train_light.network, config.base_model.toy.latent_channels)
    weights = sum(p.numel() for p in light.parameters())
    stages = by_stage(plan(config))
    apart, through = stages["train_light (latent)"], stages["train_light (depth)"]
    unet = stages["train_unet"]
    assert apart.parameters == apart.trained == through.trained == weights
    assert through.weights == unet.weights + 4 * weights
    assert through.gradients == 4 * weights
    assert apart.flops < through.flops  # forward and back through the U-Net, but not to its weights
    assert through.flops - apart.flops < unet.flops
    without = by_stage(plan(config.model_copy(update={"train_light": None})))
    assert not [name for name in without if name.startswith("train_light")]


def test_taesd_is_planned_for_the_full_size() -> None:
    stages = by_stage(plan(load_config("params.yaml", "sd2")))
    assert stages["train_light (depth)"].trained == 2_445_063


def test_flops_and_activations_follow_the_settings() -> None:
    """A step has the FLOPs of its micro-batches; checkpointing costs a forward pass more."""
    config = load_config("params.yaml", "smoke")
    optimizer = config.train_unet.optimizer

    def flops(**changes: object) -> StagePlan:
        section = config.train_unet.model_copy(
            update={"optimizer": optimizer.model_copy(update=changes)}
        )
        return by_stage(plan(config.model_copy(update={"train_unet": section})))["train_unet"]

    one = flops()
    assert flops(accumulation=3).flops == 3 * one.flops
    assert flops(batch_size=2 * optimizer.batch_size).flops == 2 * one.flops
    kept = flops(gradient_checkpointing=True)
    assert 1.2 * one.flops < kept.flops < 1.4 * one.flops
    assert kept.activations < one.activations
    assert flops(batch_size=2 * optimizer.batch_size).activations > 1.5 * one.activations


def test_flops_are_those_of_the_mixture_and_memory_that_of_the_largest() -> None:
    config = load_config("params.yaml", "smoke")

    def at(**sizes: tuple[float, tuple[int, int]]) -> StagePlan:
        datasets = {
            name: dataset.model_copy(
                update=dict(zip(("weight", "train_size"), sizes[name], strict=True))
                if name in sizes
                else {"weight": 0}
            )
            for name, dataset in config.datasets.items()
        }
        return by_stage(plan(config.model_copy(update={"datasets": datasets})))["train_unet"]

    small, large = at(hypersim=(1, (64, 96))), at(tartanair=(1, (128, 96)))
    mixed = at(hypersim=(3, (64, 96)), tartanair=(1, (128, 96)))
    assert mixed.flops == (3 * small.flops + large.flops) / 4
    assert mixed.size == (128, 96)
    assert mixed.activations == large.activations > small.activations


def test_the_table_says_what_is_measured_and_what_is_not() -> None:
    lines = describe(plan(load_config("params.yaml", "smoke")), torch.device("cpu"))
    assert lines[0].startswith("stage ")
    assert [line.split()[0] for line in lines[1:4]] == ["base_model", "train_vae", "train_unet"]
    assert "just measured" in lines[-2]
    assert "not measured" in lines[-1]
