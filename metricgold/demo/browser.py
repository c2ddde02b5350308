"""What the browser is sent: depth for hovering, without a way back to the server, and points."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricgold import visualize
from metricgold.demo.results import Result
from metricgold.evaluation import point_view
from metricgold.sky import SKY_FROM

_LAST = 65535
_CLOUD_STYLE = """
html, body { margin: 0; height: 100%; background: #17171a; color: #ddd;
  font: 14px system-ui, sans-serif; }
figure { margin: 0; height: 100%; } figcaption { display: none; } .buttons { display: none; }
canvas { display: block; width: 100%; height: 100%; touch-action: none; cursor: grab; }
"""


def depth_layers(result: Result) -> dict[str, Any]:
    """What ``depth_view.js`` draws, as JSON.

    Depth, and uncertainty where there is one, are 16-bit steps along log-depth: at most
    5e-5 of the depth off within a range of 1 to 800.
    """
    p = result.prediction
    height, width = p.depth.shape
    near, far = visualize.depth_limits(p.depth)
    layers: dict[str, Any] = {
        "digest": result.digest,
        "width": width,
        "height": height,
        "near_m": near,
        "far_m": far,
        "known_to_m": None if p.depth_max_m is None else SKY_FROM * p.depth_max_m,
        "colours": _base64(visualize.DEPTH_COLOURS.tobytes()),
        "picture": _jpeg(p.rgb),
        "depth": log_steps(p.depth),
        "uncertainty": None,
    }
    if p.uncertainty is not None:
        error = np.maximum(p.uncertainty, 1e-4)
        low, high = visualize.depth_limits(error)
        layers["uncertainty"] = log_steps(error) | {"near_m": low, "far_m": high}
    return layers


def log_steps(values: NDArray[np.float32]) -> dict[str, Any]:
    """Numbers > 0 [H, W] as base64 of uint16: ``first * exp(growth * (step - 1))``, 0: none."""
    usable = visualize.has_depth(values)
    logs = np.log(np.where(usable, values, 1.0).astype(np.float64))
    low = float(logs[usable].min()) if usable.any() else 0.0
    high = float(logs[usable].max()) if usable.any() else 0.0
    growth = (high - low) / (_LAST - 1)
    steps = 1.0 + (np.rint((logs - low) / growth) if growth > 0 else np.zeros_like(logs))
    return {
        "steps": _base64(np.where(usable, steps, 0).astype("<u2").tobytes()),
        "first": math.exp(low),
        "growth": growth,
    }


def cloud_page(result: Result) -> str:
    """HTML of a frame in which the picture's points can be turned; it asks no server."""
    p = result.prediction
    if not p.valid_mask.any():
        return "<p>No pixel has a depth that the model is sure of, so there is no point.</p>"
    cloud = point_view.cloud_of(p.depth, p.rgb, p.intrinsics, p.valid_mask)
    page = (
        f"<!doctype html><style>{_CLOUD_STYLE}</style>"
        + point_view.view("Points", point_view.content({"points": cloud}))
        + point_view.script()
    )
    return (
        '<iframe class="cloud" title="Points that can be turned" sandbox="allow-scripts" '
        f'srcdoc="{escape(page, quote=True)}"></iframe>'
        '<p class="hint">Drag turns, shift and drag moves, the wheel zooms, '
        "a double click starts anew.</p>"
    )


def _jpeg(rgb: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{_base64(file.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
