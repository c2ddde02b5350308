"""Exported graphs against torch on the same random inputs: how far apart they are and may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.accuracy import initial_noise
from export.components import build_components, example_inputs
from export.half import TEST_FOV_DEG
from export.runtime import DepthSession
from export.specs import COMPONENTS, DEPTH_DECODER, ONE_STEP, Precision
from export.trt_library import LIBRARIES
from metricgold.pipeline import MetricGoldPipeline
from metricgold.pretrained import MetricGoldModel

END_TO_END = "end_to_end"
DEPTH_TOLERANCE = {Precision.FP32: 1e-3, Precision.FP16: 1e-2}
"""End to end: largest relative depth error (fp32); that of the median pixel (fp16)."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One component at one size on one back-end.

    Attributes:
        max_abs, rms: of the difference, in the output's own unit (metres for depth).
        max_relative: largest difference as a share of the reference: of each pixel's
            depth for depth, of the largest magnitude for latents.
        median_relative: the same for the median element.
        figure: which of the two the ``limit`` holds for.
    """

    component: str
    size: tuple[int, int]
    max_abs: float
    rms: float
    max_relative: float
    median_relative: float
    figure: str
    limit: float
    backend: str

    @property
    def passed(self) -> bool:
        """Whether the figure that counts is within its limit."""
        return bool(getattr(self, self.figure) <= self.limit)


def compare_components(
    model: MetricGoldModel, session: DepthSession, size: tuple[int, int]
) -> list[Comparison]:
    """Each graph against its torch module (float32) on the same random inputs."""
    manifest = session.manifest
    precision = Precision(manifest.precision)
    results = []
    for name, module in build_components(model).items():
        spec = COMPONENTS[name]
        single = not manifest.dynamic or session.backend.name in LIBRARIES  # engines take one
        batch = 1 if single else 2
        inputs = example_inputs(spec, size, manifest.grid, batch, seed=1)
        with torch.no_grad():
            expected = module(*inputs.values()).numpy()
        actual = session.backend.run(name, {k: v.numpy() for k, v in inputs.items()})
        is_depth = name == DEPTH_DECODER.name
        figure, limit = "max_relative", spec.tolerance[precision]
        if is_depth and precision is Precision.FP16:
            figure, limit = depth_limit(precision)
        found = _compare(name, size, expected, actual, is_depth, figure, limit)
        results.append(Comparison(**found, backend=session.backend.name))
    return results


def compare_end_to_end(
    model: MetricGoldModel, session: DepthSession, size: tuple[int, int]
) -> Comparison:
    """Picture to metres: the exported session, of three graphs or one, against the pipeline."""
    rgb = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    pipeline = MetricGoldPipeline.of(model)
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_noise(session.manifest, size)
    start = None if noise is None else torch.from_numpy(noise)
    output = pipeline(rgb, processing_resolution=0, fov_deg=TEST_FOV_DEG, latents=start)
    expected = output.prediction[0, ..., 0]
    own_size = None if session.manifest.static_size or session.fused else 0
    actual = session.infer(
        rgb, processing_resolution=own_size, fov_deg=TEST_FOV_DEG, initial_latents=noise
    ).depth
    figure, limit = depth_limit(Precision(session.manifest.precision))
    name = ONE_STEP.name if session.fused else END_TO_END
    found = _compare(name, size, expected, actual, True, figure, limit)
    return Comparison(**found, backend=session.backend.name)


def depth_limit(precision: Precision) -> tuple[str, float]:
    """The figure that counts for depth, by its name, and its limit."""
    figure = "max_relative" if precision is Precision.FP32 else "median_relative"
    return figure, DEPTH_TOLERANCE[precision]


def _compare(
    component: str,
    size: tuple[int, int],
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    is_depth: bool,
    figure: str,
    limit: float,
) -> dict[str, Any]:
    """The figures of a :class:`Comparison`."""
    difference = np.abs(actual.astype(np.float64) - expected)
    if not np.isfinite(actual).all():
        difference[:] = np.inf  # one overflow spoils the graph: no figure may hide it
    relative = difference / (np.abs(expected) if is_depth else np.abs(expected).max())
    return {
        "component": component,
        "size": size,
        "max_abs": float(difference.max()),
        "rms": float(np.sqrt((difference**2).mean())),
        "max_relative": float(relative.max()),
        "median_relative": float(np.median(relative)),
        "figure": figure,
        "limit": limit,
    }
