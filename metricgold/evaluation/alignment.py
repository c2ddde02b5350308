"""Per-image alignment for the affine-invariant track; the metric track never comes here.

Marigold's protocol: least squares for scale and shift over the valid pixels, then the
aligned depth is clipped to the dataset's range and the usual metrics are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.evaluation.metrics import dot

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """From a model's numbers to metres: ``s x + t``, then its inverse if ``inverse``, clipped.

    Attributes:
        scale, shift: s and t.
        inverse: ``s x + t`` is inverse depth in 1/m.
        near_m, far_m: what the result is clipped to.
    """

    scale: float
    shift: float
    inverse: bool
    near_m: float
    far_m: float

    def __call__(self, values: NDArray[Any]) -> Values:
        """Depth in metres, of the shape of ``values``."""
        fitted = np.multiply(values, self.scale, dtype=np.float64)
        fitted += self.shift
        if self.inverse:
            np.clip(fitted, 1.0 / self.far_m, 1.0 / self.near_m, out=fitted)
            return np.divide(1.0, fitted, out=fitted)
        return np.clip(fitted, self.near_m, self.far_m, out=fitted)


def fit_depth(values: Values, depth: Values, near_m: float, far_m: float) -> Alignment:
    """The alignment whose ``s x + t`` is closest to true depth [n] in metres."""
    return Alignment(*least_squares_scale_shift(values, depth), False, near_m, far_m)


def fit_disparity(values: Values, inverse_depth: Values, near_m: float, far_m: float) -> Alignment:
    """The alignment whose ``s x + t`` is closest to true inverse depth [n] in 1/m."""
    return Alignment(*least_squares_scale_shift(values, inverse_depth), True, near_m, far_m)


def least_squares_scale_shift(source: Values, target: Values) -> tuple[float, float]:
    """``s, t`` that minimise ``sum (s source + t - target)^2`` over [n] values.

    A constant source cannot carry a scale: ``s = 0`` and ``t = mean(target)``.
    """
    centre, level = source.mean(), target.mean()
    deviation = source - centre
    power = dot(deviation, deviation)
    if power <= 1e-12 * max(dot(source, source), 1e-300):
        return 0.0, float(level)
    scale = dot(deviation, target - level) / power
    return scale, float(level - scale * centre)
