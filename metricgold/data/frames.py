"""Frames of a dataset for training: decoded once, kept in memory while they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from metricgold.config import AugmentConfig
from metricgold.data.sample import Frame
from metricgold.data.transforms import NO_AUGMENTATION, TrainSample, to_training_size


class FrameBank:
    """Random access to training samples of one dataset.

    Args:
        reader: anything that gives :class:`Frame` by index (a ``ShardReader``).
        size: training height and width in pixels.
        memory_limit_bytes: decoded frames are kept up to this many bytes.
    """

    def __init__(
        self, reader: Sequence[Frame], size: tuple[int, int], memory_limit_bytes: int = 2 << 30
    ) -> None:
        self.reader = reader
        self.size = size
        self._limit = memory_limit_bytes
        self._kept: dict[int, Frame] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.reader)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0}

    def frame(self, index: int) -> Frame:
        """Frame ``index`` in native resolution."""
        if index in self._kept:
            return self._kept[index]
        frame = self.reader[index]
        size = frame.rgb.nbytes + frame.depth.nbytes + 2 * frame.valid_mask.nbytes
        reading = get_worker_info()  # the processes of a loader share the limit
        if self._kept_bytes + size <= self._limit // (reading.num_workers if reading else 1):
            self._kept[index] = frame
            self._kept_bytes += size
        return frame

    def sample(
        self,
        index: int,
        augment: AugmentConfig = NO_AUGMENTATION,
        rng: np.random.Generator | None = None,
    ) -> TrainSample:
        """Frame ``index`` at training size; augmented when ``rng`` is given."""
        return to_training_size(self.frame(index), self.size, augment, rng)


def collate(samples: Sequence[TrainSample]) -> dict[str, Tensor]:
    """Batch of samples.

    Returns:
        ``rgb`` [B, 3, H, W] in [-1, 1], ``depth`` [B, 1, H, W] metres, ``valid_mask`` and
        ``sky_mask`` bool [B, 1, H, W], ``fov_y_deg`` [B].
    """
    rgb = torch.from_numpy(np.stack([s.rgb for s in samples])).permute(0, 3, 1, 2)
    return {
        "rgb": rgb.float() / 127.5 - 1.0,
        "depth": torch.from_numpy(np.stack([s.depth for s in samples]))[:, None].float(),
        "valid_mask": torch.from_numpy(np.stack([s.valid_mask for s in samples]))[:, None],
        "sky_mask": torch.from_numpy(np.stack([s.sky_mask for s in samples]))[:, None],
        "fov_y_deg": torch.tensor([s.fov_y_deg for s in samples], dtype=torch.float32),
    }
