"""What the service takes from strangers, and how long it works for them."""

from __future__ import annotations

from dataclasses import dataclass

from metricgold.upload_limits import MAX_BYTES

IMAGE_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
"""Media types of pictures that are taken, and Pillow's names of them."""

MAX_STEPS = 50
MAX_ENSEMBLE = 10
MAX_RESOLUTION = 2048
"""Longest side in pixels the networks work at."""

BATCH_MEGAPIXELS = 2.0
"""Of all pictures that go through the networks together, at the size these work at: what they need
grows with it. One picture goes through alone, however large."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server.

    Attributes:
        places: requests in the house at once, from their first byte to their answer's last; one
            more is sent away. With ``max_megapixels`` it bounds the memory.
        max_bytes: of an upload.
        max_megapixels: of a picture.
        timeout_s: from a request's beginning to its answer.
        max_batch: pictures that go through the networks together.
        batch_wait_ms: how long the first of them waits for others; whoever comes while the networks
            work joins the next batch anyway.
    """

    places: int = 32
    max_bytes: int = MAX_BYTES
    max_megapixels: float = 25.0
    timeout_s: float = 60.0
    max_batch: int = 8
    batch_wait_ms: float = 0.0
