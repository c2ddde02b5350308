"""Sequences: does predicted depth change from frame to frame as true depth does?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def temporal_error(
    prediction: NDArray[Any], truth: NDArray[Any], valid_mask: NDArray[np.bool_]
) -> float:
    """Mean ``|d ln p - d ln t|`` from each frame to the next, where both frames are valid.

    0 for a prediction that is the truth times any constant, however wrong the constant: this is
    flicker alone. No poses are needed, since the truth moves as the picture does.

    Args:
        prediction, truth: depth [T, H, W] in metres.
        valid_mask: bool [T, H, W].

    Raises:
        ValueError: shapes differ, there is one frame only, or no pixel is valid in two frames.
    """
    if not prediction.shape == truth.shape == valid_mask.shape or prediction.ndim != 3:
        raise ValueError(
            f"three arrays [T, H, W] are needed, got {prediction.shape}, {truth.shape} and "
            f"{valid_mask.shape}"
        )
    both = valid_mask[1:] & valid_mask[:-1]
    if not both.any():
        raise ValueError("no pixel is valid in two frames that follow each other")
    safe = [np.where(valid_mask, x, 1.0).astype(np.float64) for x in (prediction, truth)]
    difference = np.log(safe[0] / safe[1])
    return float(np.abs(np.diff(difference, axis=0))[both].mean())


def flicker(prediction: NDArray[Any]) -> float:
    """Mean ``|d ln p|`` from frame to frame [T, H, W]: of a camera and scene that do not move."""
    if prediction.ndim != 3 or len(prediction) < 2:
        raise ValueError(f"[T, H, W] with two frames or more is needed, got {prediction.shape}")
    return float(np.abs(np.diff(np.log(prediction.astype(np.float64)), axis=0)).mean())
