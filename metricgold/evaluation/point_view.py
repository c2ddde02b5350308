"""Point clouds inside a page: turned with the mouse, no other file needed."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.geometry import unproject

MOST_POINTS = 20_000
"""Of one cloud; a larger picture is thinned evenly."""
_STEPS = 32_000

Cloud = tuple[NDArray[np.float32], NDArray[np.uint8]]


def cloud_of(
    depth: NDArray[Any],
    rgb: NDArray[np.uint8],
    intrinsics: NDArray[Any],
    mask: NDArray[np.bool_],
) -> Cloud:
    """Points float32 [n, 3] in metres (OpenCV frame) and colours uint8 [n, 3] of masked pixels."""
    stride = max(1, int(np.ceil(np.sqrt(mask.sum() / MOST_POINTS))))
    thin = np.zeros_like(mask)
    thin[::stride, ::stride] = True
    thin &= mask
    points = unproject(np.where(mask, depth, 1.0).astype(np.float64), intrinsics)
    return points[thin].astype(np.float32), rgb[thin]


def content(clouds: Mapping[str, Cloud]) -> dict[str, Any]:
    """What a view shows, for JSON; the first cloud decides its centre and size."""
    points = next(iter(clouds.values()))[0]
    low, high = np.percentile(points, (2, 98), axis=0)
    centre, size = (low + high) / 2, max(float(np.linalg.norm(high - low)), 1e-3)
    return {
        "clouds": [_encoded(name, *cloud, centre) for name, cloud in clouds.items()],
        "centre": [round(float(c), 4) for c in centre],
        "size": round(size, 4),
    }


def view(caption: str, shown: Mapping[str, Any]) -> str:
    """HTML of a view of :func:`content` with a button for every cloud.

    :func:`script` must be in the page once, behind all views.
    """
    data = json.dumps(shown).replace("<", "\\u003c")
    return (
        f'<figure class="card"><figcaption>{escape(caption)}</figcaption>'
        f'<canvas class="points"></canvas><script type="application/json">{data}</script></figure>'
    )


def script() -> str:
    """What makes the views of a page turn."""
    source = resources.files("metricgold.evaluation").joinpath("point_view.js")
    return f"<script>{source.read_text(encoding='utf-8')}</script>"


def _encoded(
    name: str,
    points: NDArray[np.float32],
    colours: NDArray[np.uint8],
    centre: NDArray[np.floating],
) -> dict[str, Any]:
    away = points - centre
    scale = float(max(np.abs(away).max(initial=0.0), 1e-6)) / _STEPS
    steps = np.rint(away / scale).astype("<i2")
    return {
        "name": name,
        "scale": scale,
        "points": base64.b64encode(steps.tobytes()).decode(),
        "colours": base64.b64encode(np.ascontiguousarray(colours).tobytes()).decode(),
    }
