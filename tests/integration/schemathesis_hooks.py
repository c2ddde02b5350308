"""What OpenAPI cannot say of the service: real pictures, options that exclude each other.

Loaded by schemathesis itself (``SCHEMATHESIS_HOOKS``).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image


def _picture(kind: str, width: int, height: int, seed: int) -> bytes:
    """A file of a few pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


_SIDES = st.integers(1, 60)
for _kind in ("jpeg", "png", "webp"):
    _pictures = st.builds(_picture, st.just(_kind), _SIDES, _SIDES, st.integers(0, 9))
    schemathesis.openapi.media_type(f"image/{_kind}", _pictures)


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Make sizes that are allowed small, so that many requests are answered in a minute."""
    query = case.query or {}
    size = query.get("processing_resolution")
    if isinstance(size, int) and 0 < size <= 2048:
        query["processing_resolution"] = 1 + size % 64
    return case


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Two ways to name one camera exclude each other; one step has two views of a picture."""
    query = case.query or {}
    if "fov_deg" in query and "focal_px" in query:
        return False
    try:
        one_step = int(query.get("steps", 1)) == 1
        return not (one_step and 2 < int(query.get("ensemble", 1)) <= 10)
    except (TypeError, ValueError):
        return True  # meant to be refused
