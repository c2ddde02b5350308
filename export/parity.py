"""Do the exported graphs compute what torch computes? ONNX Runtime (CPU) against the checkpoint.

Writes ``metrics/parity.json`` with every figure, whether it passes or not, then raises.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.components import build_components, example_inputs
from export.manifest import ExportError, Manifest, sha256_of_folder
from export.onnx_export import check_sizes
from export.runtime import DepthSession, open_session
from export.specs import COMPONENTS, DEPTH_DECODER, ONE_STEP, Precision
from metricgold import files
from metricgold.config import ProfileConfig
from metricgold.pipeline import MetricGoldPipeline
from metricgold.pretrained import MetricGoldModel
from metricgold.workspace import Workspace

PARITY_FILE = "parity.json"
END_TO_END = "end_to_end"
DEPTH_TOLERANCE = {Precision.FP32: 1e-3, Precision.FP16: 1e-2}
"""End to end: largest relative depth error (fp32); that of the median pixel (fp16)."""
TEST_FOV_DEG = 55.0


class ParityError(ExportError):
    """A graph differs from torch; names the component, the size, the figure and the limit."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One component at one size.

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

    @property
    def passed(self) -> bool:
        """Whether the figure that counts is within its limit."""
        return bool(getattr(self, self.figure) <= self.limit)


def run(config: ProfileConfig, ws: Workspace) -> list[Comparison]:
    """Stage: compare ``ws.onnx`` with ``ws.model`` at every size of ``export.parity_sizes``.

    Raises:
        ParityError: a figure exceeds its limit, or the graphs come from another checkpoint.
    """
    model = MetricGoldModel.from_pretrained(ws.model)
    check_sizes(config.export, model.size_multiple)
    session = open_session(ws.onnx, "onnxruntime-cpu")
    if session.manifest.checkpoint_sha256 != sha256_of_folder(ws.model):
        raise ParityError(
            f"{ws.onnx}: exported from another checkpoint than {ws.model}; export it again"
        )
    sizes = list(config.export.parity_sizes)
    if session.manifest.static_size is not None:
        height, width = session.manifest.static_size
        sizes = [(height, width)]
    results: list[Comparison] = []
    for size in sizes:
        started = time.perf_counter()
        compared = compare_components(model, session, size)
        if all(c.passed for c in compared):
            compared.append(compare_end_to_end(model, session, size))
        results += compared
        seconds = time.perf_counter() - started
        worst = max(c.max_relative for c in compared)
        print(f"parity at {size[0]}x{size[1]}: worst {worst:.1e}, {seconds:.1f} s", flush=True)
    if session.manifest.fused is not None:
        one = open_session(ws.onnx, "onnxruntime-cpu", fused=True)
        results.append(compare_end_to_end(model, one, session.manifest.fused.size))
    files.write_json(ws.metrics / PARITY_FILE, summary(results, session.manifest))
    check(results)
    return results


def compare_components(
    model: MetricGoldModel, session: DepthSession, size: tuple[int, int]
) -> list[Comparison]:
    """Each graph against its torch module (float32) on the same random inputs."""
    manifest = session.manifest
    precision = Precision(manifest.precision)
    results = []
    for name, module in build_components(model).items():
        spec = COMPONENTS[name]
        batch = 2 if manifest.dynamic else 1
        inputs = example_inputs(spec, size, manifest.grid, batch, seed=1)
        with torch.no_grad():
            expected = module(*inputs.values()).numpy()
        actual = session.backend.run(name, {k: v.numpy() for k, v in inputs.items()})
        is_depth = name == DEPTH_DECODER.name
        figure, limit = "max_relative", spec.tolerance[precision]
        if is_depth and precision is Precision.FP16:
            figure, limit = _depth_limit(precision)
        results.append(_compare(name, size, expected, actual, is_depth, figure, limit))
    return results


def compare_end_to_end(
    model: MetricGoldModel, session: DepthSession, size: tuple[int, int]
) -> Comparison:
    """Picture to metres: the exported session, of three graphs or one, against the pipeline."""
    rgb = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    pipeline = MetricGoldPipeline.of(model)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(rgb, num_inference_steps=1, processing_resolution=0, fov_deg=TEST_FOV_DEG)
    expected = output.prediction[0, ..., 0]
    own_size = None if session.manifest.static_size or session.fused else 0
    actual = session.infer(rgb, steps=1, processing_resolution=own_size, fov_deg=TEST_FOV_DEG).depth
    figure, limit = _depth_limit(Precision(session.manifest.precision))
    name = ONE_STEP.name if session.fused else END_TO_END
    return _compare(name, size, expected, actual, True, figure, limit)


def check(results: list[Comparison]) -> None:
    """Raise :class:`ParityError` for the first figure above its limit."""
    for r in results:
        if not r.passed:
            raise ParityError(
                f"{r.component} at {r.size[0]}x{r.size[1]} differs from torch: {r.figure} "
                f"{getattr(r, r.figure):.2e} exceeds {r.limit:.0e}; export again, or with "
                "another export.opset or export.precision"
            )


def summary(results: list[Comparison], manifest: Manifest) -> dict[str, Any]:
    """What ``parity.json`` holds: the worst figure a component, then every comparison."""
    worst = {
        name: max(r.max_relative for r in results if r.component == name)
        for name in dict.fromkeys(r.component for r in results)
    }
    comparisons = [_finite(asdict(r) | {"passed": r.passed}) for r in results]
    return {
        "passed": all(r.passed for r in results),
        "precision": manifest.precision,
        "opset": manifest.opset,
        "worst_relative": _finite(worst),
        "comparisons": comparisons,
    }


def _depth_limit(precision: Precision) -> tuple[str, float]:
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
) -> Comparison:
    difference = np.abs(actual.astype(np.float64) - expected)
    if not np.isfinite(actual).all():
        difference[:] = np.inf  # one overflow spoils the graph: no figure may hide it
    relative = difference / (np.abs(expected) if is_depth else np.abs(expected).max())
    return Comparison(
        component=component,
        size=size,
        max_abs=float(difference.max()),
        rms=float(np.sqrt((difference**2).mean())),
        max_relative=float(relative.max()),
        median_relative=float(np.median(relative)),
        figure=figure,
        limit=limit,
    )


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Infinities as text, since JSON has none; figures in four significant digits."""
    return {
        k: v if not isinstance(v, float) else float(f"{v:.4g}") if np.isfinite(v) else str(v)
        for k, v in values.items()
    }
