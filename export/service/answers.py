"""From depth to an answer: the formats of ``metricgold.outputs`` and what is said beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from export.manifest import Manifest
from export.service.model import Answer, Options
from export.service.schemas import Camera, Size, Summary
from metricgold.outputs import Prediction, encoded

SUMMARY_HEADER = "X-MetricGold-Summary"


class Format(StrEnum):
    """What an answer holds; all but ``json`` are formats of ``metricgold infer``."""

    NPY = "npy"
    NPZ = "npz"
    PNG16 = "png16"
    COLOUR = "colour"
    SIDE = "side"
    NORMALS = "normals"
    JSON = "json"


MEDIA_TYPES: Mapping[Format, str] = {
    Format.NPY: "application/x-npy",
    Format.NPZ: "application/zip",
    Format.PNG16: "image/png",
    Format.COLOUR: "image/png",
    Format.SIDE: "image/png",
    Format.NORMALS: "image/png",
    Format.JSON: "application/json",
}


@dataclass(frozen=True, kw_only=True)
class Content:
    """An answer's body, its type and what is said of it."""

    body: bytes
    media_type: str
    summary: Summary


def content_of(
    prediction: Prediction,
    answer: Answer,
    chosen: Format,
    *,
    manifest: Manifest,
    options: Options,
    camera: Camera,
    seconds: Mapping[str, float],
) -> Content:
    """An answer in a format.

    Raises:
        OutputError: the depth is too far for a 16-bit picture.
    """
    files: dict[str, bytes] = {}
    if chosen is not Format.JSON:
        files = encoded(prediction, chosen.value)
    unit: float | None = None
    if chosen is Format.PNG16:
        beside = next(content for name, content in files.items() if name.endswith(".json"))
        unit = float(json.loads(beside)["metres_per_step"])
    summary = _summary(prediction, answer, manifest, options, camera, unit, seconds)
    if chosen is Format.JSON:
        body = summary.model_dump_json().encode()
    else:
        body = next(iter(files.values()))  # the first file of a format is the depth
    return Content(body=body, media_type=MEDIA_TYPES[chosen], summary=summary)


def _summary(
    prediction: Prediction,
    answer: Answer,
    manifest: Manifest,
    options: Options,
    camera: Camera,
    unit: float | None,
    seconds: Mapping[str, float],
) -> Summary:
    depth, error = prediction.depth, prediction.uncertainty
    own, worked = depth.shape, answer.result.size
    return Summary(
        size=Size(width=own[1], height=own[0]),
        working_size=Size(width=worked[1], height=worked[0]),
        depth_min_m=float(depth.min()),
        depth_median_m=float(np.median(depth)),
        depth_max_m=float(depth.max()),
        model_min_m=manifest.depth_min_m,
        model_max_m=manifest.depth_max_m,
        sky_share=float(prediction.sky_mask.mean()),
        uncertainty_median_m=None if error is None else float(np.median(error)),
        metres_per_step=unit,
        camera=camera,
        steps=manifest.num_inference_steps if options.steps is None else options.steps,
        ensemble=options.ensemble,
        backend=answer.result.backend,
        batch=answer.batch,
        seconds={stage: round(taken, 6) for stage, taken in seconds.items()},
    )


def headers_of(content: Content) -> dict[str, str]:
    """The summary, and its times as browsers show them."""
    timing = ", ".join(f"{k};dur={1000 * v:.1f}" for k, v in content.summary.seconds.items())
    headers = {"Server-Timing": timing, "Cache-Control": "no-store"}
    if content.media_type != MEDIA_TYPES[Format.JSON]:
        headers[SUMMARY_HEADER] = content.summary.model_dump_json()
    return headers


def documented() -> dict[str, Any]:
    """An answer with depth, for the OpenAPI schema."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    kinds = dict.fromkeys(MEDIA_TYPES.values(), binary)
    kinds[MEDIA_TYPES[Format.JSON]] = {"schema": {"$ref": "#/components/schemas/Summary"}}
    said = {"schema": {"type": "string"}}
    return {
        "description": "Depth in metres in the format asked for.",
        "content": kinds,
        "headers": {
            SUMMARY_HEADER: said | {"description": "The summary in JSON; not with format=json."},
            "Server-Timing": said | {"description": "Milliseconds by stage."},
        },
    }
