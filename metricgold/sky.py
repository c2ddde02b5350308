"""What of a prediction is sky: training puts it at the far end of the depth range."""

from __future__ import annotations

from typing import Any

SKY_FROM = 0.9
"""Share of the farthest depth from which on a prediction is called sky."""


def sky_mask(depth: Any, depth_max_m: float) -> Any:
    """Where ``depth`` (numpy or torch, metres) is at the far end of a model's range: bool alike.

    What is there may also be ground or a wall too far for the model: either way its depth is
    not known, only that it is large.
    """
    return depth >= SKY_FROM * depth_max_m
