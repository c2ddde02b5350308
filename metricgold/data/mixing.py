"""Which frames a training step sees: one dataset a micro-batch, a pure function of the step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class MixingSampler:
    """Draws a dataset by weight for every micro-batch, then its next frames, shuffled by epoch.

    Nothing but (seed, step) decides the answer, so a resumed run sees what an
    uninterrupted one would have seen.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: Mapping[str, float],
        batch_size: int,
        total_steps: int,
        seed: int,
    ) -> None:
        self.names = [n for n in sizes if weights[n] > 0 and sizes[n] > 0]
        if not self.names:
            raise ValueError("no dataset has both a positive weight and frames")
        self.sizes = {n: sizes[n] for n in self.names}
        self.batch_size = batch_size
        self.seed = seed
        probabilities = np.array([weights[n] for n in self.names], float)
        rng = np.random.default_rng([seed, 1])
        self._choice = rng.choice(
            len(self.names), total_steps, p=probabilities / probabilities.sum()
        )
        self._before = np.zeros((total_steps, len(self.names)), np.int64)
        for index in range(len(self.names)):
            drawn = (self._choice == index).astype(np.int64)
            self._before[:, index] = np.cumsum(drawn) - drawn

    def batch(self, step: int) -> tuple[str, NDArray[np.int64]]:
        """Dataset name and frame indices [batch_size] of micro-batch ``step`` (from 0)."""
        which = int(self._choice[step])
        name = self.names[which]
        start = int(self._before[step, which]) * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        size = self.sizes[name]
        indices = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(positions // size):
            order = np.random.default_rng([self.seed, 2, which, int(epoch)]).permutation(size)
            here = positions // size == epoch
            indices[here] = order[positions[here] % size]
        return name, indices
