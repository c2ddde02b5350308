"""Windows, mixed latents and the linear reading of depth: what training sees besides frames."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from metricgold.config import OptimizerConfig
from metricgold.training.autoencoder import WHOLE_FRAMES, crop_share, mix_latents, random_crop
from metricgold.training.coarse_depth import CoarseDepth, cell_means
from metricgold.training.latents import CACHE_VERSION, LatentBank


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


def bank(path: Path, weight: torch.Tensor, bias: float) -> LatentBank:
    """A cache whose depth is a linear map of the latent in every usable cell, noise elsewhere."""
    latent = torch.randn(20, 3, 4, 6, generator=generator(3))
    cells = (latent * weight.view(1, 3, 1, 1)).sum(dim=1, keepdim=True) + bias
    mask = torch.rand(cells.shape, generator=generator(4)) < 0.7
    cells = torch.where(mask, cells, torch.full_like(cells, 99.0))
    with h5py.File(path, "w") as file:
        file.attrs["version"], file.attrs["weights"] = CACHE_VERSION, "here"
        file["depth_latent"] = latent.numpy()
        file["latent_mask"] = mask.numpy()
        file["depth_norm"] = F.interpolate(cells, scale_factor=4).numpy()
        file["fov_y_deg"] = torch.full((20,), 60.0).numpy()
    return LatentBank(path, "here")


def test_a_linear_reading_is_found(tmp_path: Path) -> None:
    weight = torch.tensor([0.5, -0.2, 0.1])
    banks = {name: bank(tmp_path / f"{name}.h5", weight, 0.3) for name in ("a", "b")}
    found = CoarseDepth.fit(banks, seed=0)
    torch.testing.assert_close(found.weight.flatten(), weight, atol=1e-5, rtol=0)
    assert float(found.bias) == pytest.approx(0.3, abs=1e-5)
    latent = torch.randn(2, 3, 4, 6, generator=generator(5), requires_grad=True)
    read = found(latent)
    assert read.shape == (2, 1, 4, 6)
    expected = (latent * weight.view(1, 3, 1, 1)).sum(dim=1, keepdim=True) + 0.3
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)


def test_a_cell_s_depth_is_the_mean_of_its_pixels() -> None:
    depth = torch.arange(32.0).view(1, 1, 4, 8)
    expected = torch.tensor([[[[4.5, 6.5, 8.5, 10.5], [20.5, 22.5, 24.5, 26.5]]]])
    assert torch.equal(cell_means(depth, torch.ones(1, 1, 2, 4)), expected)
