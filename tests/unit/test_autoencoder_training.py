"""Windows, mixed latents and the linear reading of depth: what training sees besides frames."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metricgold.config import OptimizerConfig
from metricgold.training.autoencoder import WHOLE_FRAMES, crop_share, mix_latents, random_crop


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    height=st.integers(8, 60),
    width=st.integers(8, 60),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
)
def test_windows_are_the_same_part_of_every_tensor(
    height: int, width: int, share: float, seed: int
) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = (rows * 1000 + columns)[None, None].float()
    first, second = random_crop((place, -place), share, 4, generator(seed))
    assert torch.equal(first, -second)
    if share == 1:
        assert torch.equal(first, place)
        return
    for side, whole in zip(first.shape[-2:], (height, width), strict=True):
        assert side % 4 == 0
        assert abs(side - max(4, whole * share)) < 4.5
    assert torch.equal(first - first[..., :1, :1], place[..., : first.shape[2], : first.shape[3]])


def test_every_place_is_seen() -> None:
    picture = torch.arange(12.0).view(1, 1, 1, 12).expand(1, 1, 4, 12)
    seen = {float(random_crop((picture,), 0.4, 4, generator(s))[0][0, 0, 0, 0]) for s in range(200)}
    assert seen == set(range(9))


def test_the_last_steps_see_whole_frames() -> None:
    values = {
        "steps": 50, "batch_size": 1, "accumulation": 2, "lr": 1.0, "warmup_steps": 1,
        "decay": "constant", "final_lr_ratio": 1.0, "weight_decay": 0.0, "grad_clip": 1.0,
        "ema_decay": 0.0, "precision": "fp32", "checkpoint_every": 1,
    }  # fmt: skip
    optimizer = OptimizerConfig.model_validate(values)
    shares = [crop_share(0.5, i, optimizer) for i in range(100)]
    whole = round(100 * WHOLE_FRAMES)
    assert shares == [0.5] * (100 - whole) + [1.0] * whole


def test_mixed_latents_go_with_mixed_targets() -> None:
    """With a target that is a linear map of the latent, it still is one after mixing."""
    latent = torch.randn(8, 3, 2, 2, generator=generator(1))
    target = latent.sum(dim=1, keepdim=True)
    valid = torch.ones(8, 1, 2, 2, dtype=torch.bool)
    valid[0, 0, 0, 0] = False
    valid[7, 0, 1, 1] = False
    mixed, mixed_target, both = mix_latents(latent, target, valid, 0.5, generator(2))
    torch.testing.assert_close(mixed.sum(dim=1, keepdim=True), mixed_target)
    assert torch.equal(mixed[4:], latent[4:])
    assert all(not torch.equal(mixed[i], latent[i]) for i in range(4))
    invalid = [tuple(place) for place in (~both).nonzero()[:, [0, 2, 3]].tolist()]
    assert invalid == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (7, 1, 1)]


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_nothing_is_mixed_without_a_share(share: float) -> None:
    latent, target = torch.randn(4, 2, 1, 1), torch.randn(4, 1, 1, 1)
    valid = torch.ones(4, 1, 1, 1, dtype=torch.bool)
    for before, after in zip(
        (latent, target, valid),
        mix_latents(latent, target, valid, share, generator()),
        strict=True,
    ):
        assert torch.equal(before, after)
