"""Example pictures, rendered when the page starts, from the project's own worlds."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image

from metricgold.data.procedural import WorldKind, render_scene, to_srgb
from metricgold.geometry import make_intrinsics

SIZE = (360, 480)
FOCAL_35MM = 28
"""Of every example, as EXIF says it: millimetres on 35 mm film."""

WORLDS: tuple[tuple[str, WorldKind, int], ...] = (
    ("room", "indoor", 3_000_000),
    ("kitchen", "indoor", 3_000_003),
    ("street", "street", 3_000_006),
)
"""Name, kind and seed; seeds of neither training nor held-out worlds."""


def render_examples(folder: Path) -> list[Path]:
    """Write a JPEG for each of :data:`WORLDS`, which states its camera in EXIF."""
    height, width = SIZE
    focal_px = FOCAL_35MM / math.hypot(36, 24) * math.hypot(height, width)
    intrinsics = make_intrinsics(focal_px, focal_px, (width - 1) / 2, (height - 1) / 2).astype(
        float
    )
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = FOCAL_35MM
    paths = []
    for name, kind, seed in WORLDS:
        (frame,) = render_scene(kind, seed, intrinsics, SIZE, 1)
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(to_srgb(frame.radiance)).save(paths[-1], quality=92, exif=exif)
    return paths
