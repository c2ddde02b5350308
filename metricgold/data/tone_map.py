"""Linear HDR radiance to an 8-bit picture, as the Hypersim authors show their frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAMMA = 2.2
TARGET_BRIGHTNESS = 0.8
BRIGHTNESS_PERCENTILE = 90.0
DARKEST = 1e-4
_HALF_INFINITY = 0x7C00
"""Bits of fp16 infinity; the finite values from 0 up lie below."""
_LUMA = np.array([0.3, 0.59, 0.11], dtype=np.float32)


def exposure_scale(radiance: NDArray[np.floating], valid_mask: NDArray[np.bool_]) -> float:
    """``s`` that maps the 90th percentile of brightness to 0.8 after gamma.

    ``s = 0.8^2.2 / P90(0.3 R + 0.59 G + 0.11 B over valid)``; 0 if P90 < 1e-4, and 1 if
    no pixel is valid (the formula of the Hypersim toolkit). NaN is left out of the percentile.

    Raises:
        ValueError: every valid pixel is NaN.
    """
    if not valid_mask.any():
        return 1.0
    brightness = (radiance.astype(np.float32) @ _LUMA)[valid_mask]
    brightness = brightness[~np.isnan(brightness)]
    if not brightness.size:
        raise ValueError("the colour of no valid pixel is a number")
    bright = float(np.percentile(brightness, BRIGHTNESS_PERCENTILE))
    return 0.0 if bright < DARKEST else TARGET_BRIGHTNESS**GAMMA / bright


def tone_map(radiance: NDArray[np.floating], valid_mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Linear radiance [H, W, 3] to uint8 [H, W, 3]: ``clip(max(s rgb, 0)^(1/2.2), 0, 1)``.

    The radiance is taken as fp16, which has only 31,744 finite values from 0 up, so the
    power is computed once for each value instead of once for each pixel. Infinity is white,
    NaN black.
    """
    half = np.ascontiguousarray(radiance, dtype=np.float16)
    scale = exposure_scale(half, valid_mask)
    table = np.zeros(65536, dtype=np.uint8)
    finite = np.arange(_HALF_INFINITY, dtype=np.uint16).view(np.float16).astype(np.float32)
    bright = np.clip((finite * np.float32(scale)) ** np.float32(1 / GAMMA), 0.0, 1.0)
    table[:_HALF_INFINITY] = np.rint(bright * 255.0)
    table[_HALF_INFINITY] = 255
    return table[half.view(np.uint16)]
