"""The frames that training stages draw from."""

from __future__ import annotations

from collections.abc import Mapping, Sized

import torch
from torch import Tensor

from metricgold.config import OptimizerConfig, ProfileConfig
from metricgold.data.dataset import Split
from metricgold.data.frames import FrameBank, collate
from metricgold.data.mixing import MixingSampler
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.depth_codec import DepthCodec
from metricgold.errors import UserError
from metricgold.workspace import Workspace


def open_banks(config: ProfileConfig, workspace: Workspace, split: Split) -> dict[str, FrameBank]:
    """One bank for every dataset of the mixture that has frames in ``split``.

    Raises:
        UserError: no dataset has any.
    """
    banks = {}
    for name, dataset in config.enabled_datasets().items():
        paths = shard_paths(workspace.shards(name), split)
        if paths:
            banks[str(name)] = FrameBank(ShardReader(paths), dataset.train_size)
    if not banks:
        raise UserError(
            f"no {split} frames under {workspace.shards('')}; run 'dvc repro' from 'preprocess' on"
        )
    return banks


def mixing_sampler(
    config: ProfileConfig, banks: Mapping[str, Sized], optimizer: OptimizerConfig, salt: int
) -> MixingSampler:
    """Which dataset and which of its frames or rows every micro-batch of a run takes."""
    return MixingSampler(
        {n: len(b) for n, b in banks.items()},
        {str(n): d.weight for n, d in config.enabled_datasets().items()},
        optimizer.batch_size,
        optimizer.steps * optimizer.accumulation,
        config.seed + salt,
    )


def depth_norm_of(codec: DepthCodec, depth: Tensor, valid_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Depth [B, 1, H, W] in metres to depth_norm with invalid pixels at +1, and the mask.

    Pixels outside the codec's range are not valid.
    """
    valid = valid_mask & (depth > codec.depth_min_m) & (depth < codec.depth_max_m)
    norm = codec.encode(depth)
    return torch.where(valid, norm, torch.ones_like(norm)), valid


def first_frames(banks: dict[str, FrameBank], count: int) -> dict[str, dict[str, Tensor]]:
    """Up to ``count`` evenly spaced frames of every bank as one batch each."""
    batches = {}
    for name, bank in banks.items():
        step = max(1, len(bank) // count)
        chosen = range(0, len(bank), step)[:count]
        batches[name] = collate([bank.sample(i) for i in chosen])
    return batches
