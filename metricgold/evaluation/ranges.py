"""Errors by what a pixel is: how good is it at 1 m and at 40 m, at an edge and far from one?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metricgold.evaluation.metrics import DELTA_BASE, Pairs

DEPTH_BINS = ((0.0, 1.0), *((2.0**i, 2.0 ** (i + 1)) for i in range(8)), (256.0, np.inf))
"""From and to, in metres: octaves."""
EDGE_DISTANCES_PX = ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, np.inf))
"""From and to, in pixels along the longer axis to the nearest depth edge of the truth; 0: beside
it. Pixels of the frame as it is stored."""


class Binned:
    """Sums over pixels, one entry a bin; every pixel counts the same.

    ``sums`` [3, bins]: pixels, ``|p - d| / d``, pixels within a factor of 1.25.
    """

    def __init__(self, bins: int) -> None:
        self.sums = np.zeros((3, bins))

    @classmethod
    def of(cls, bin_of_pixel: NDArray[np.intp], bins: int, pairs: Pairs) -> Binned:
        """Of one picture's pixels [n]."""
        made = cls(bins)
        close = 2 * bin_of_pixel
        close += pairs.factor < DELTA_BASE
        by_close = np.bincount(close, minlength=2 * bins).reshape(bins, 2)
        made.sums[0] = by_close.sum(axis=1)
        made.sums[1] = np.bincount(bin_of_pixel, pairs.relative, minlength=bins)
        made.sums[2] = by_close[:, 1]
        return made

    def along(self, axis: int, shape: tuple[int, int]) -> Binned:
        """Of bins that are the cells of a table of ``shape``: the sums of its rows or columns."""
        made = Binned(shape[axis])
        made.sums[:] = self.sums.reshape(3, *shape).sum(axis=2 - axis)
        return made

    def add(self, other: Binned) -> None:
        """Count another one in."""
        self.sums += other.sums

    def rows(self, edges: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
        """``from``, ``to``, ``pixels``, ``abs_rel`` and ``delta1`` of each bin with pixels."""
        return [
            {
                "from": low,
                "to": high,
                "pixels": int(pixels),
                "abs_rel": float(error / pixels),
                "delta1": float(close / pixels),
            }
            for (low, high), (pixels, error, close) in zip(edges, self.sums.T, strict=True)
            if pixels
        ]
