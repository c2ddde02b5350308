"""Do the exported graphs compute what torch computes, and are they as accurate?

Against the checkpoint in torch, float32: each graph and all of them on random inputs at several
sizes, and depth on held-out frames with the evaluation's metrics. ONNX Runtime on the CPU always;
every other back-end where it runs. Writes ``metrics/parity.json`` with every figure, whether it
passes or not, then raises.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.accuracy import (
    Accuracy,
    compare_on_frames,
    frames_of,
    session_predictor,
    torch_predictor,
)
from export.backends import OnnxRuntimeBackend
from export.comparison import Comparison, compare_components, compare_end_to_end, depth_limit
from export.manifest import ExportError, Manifest, ShapeError, sha256_of_folder
from export.onnx_export import check_sizes
from export.runtime import BACKENDS, DepthSession, open_session
from export.specs import EXPORTED, Precision
from metricgold import files
from metricgold.config import ProfileConfig
from metricgold.pretrained import MetricGoldModel
from metricgold.workspace import Workspace

PARITY_FILE = "parity.json"
REQUIRED = OnnxRuntimeBackend.name
ABS_REL_TOLERANCE = 0.005
"""By how much AbsRel on a dataset's held-out frames may differ from torch's, either way."""


class ParityError(ExportError):
    """A graph differs from torch; names the component, the size, the figure and the limit."""


@dataclass
class Report:
    """All that was found.

    Attributes:
        accuracy: by back-end, a row a dataset.
        backends: name to ``compared``, or why it was not.
        failure: what ended the comparison early.
    """

    manifest: Manifest
    comparisons: list[Comparison]
    accuracy: dict[str, list[Accuracy]]
    backends: dict[str, str]
    failure: ExportError | None = None

    def faults(self) -> Iterator[str]:
        """What exceeds its limit, a sentence each, components first."""
        for c in self.comparisons:
            if not c.passed:
                yield (
                    f"{c.component} at {c.size[0]}x{c.size[1]} differs from torch: {c.figure} "
                    f"{getattr(c, c.figure):.2e} exceeds {c.limit:.0e} ({c.backend})"
                )
        figure, limit = depth_limit(Precision(self.manifest.precision))
        for backend, rows in self.accuracy.items():
            for row in rows:
                if not abs(row.abs_rel_change) <= ABS_REL_TOLERANCE:
                    yield (
                        f"AbsRel on {row.dataset} is {row.abs_rel:.4f} by the graphs and "
                        f"{row.reference_abs_rel:.4f} by torch; they may differ by "
                        f"{ABS_REL_TOLERANCE} ({backend})"
                    )
                if not getattr(row, figure) <= limit:
                    yield (
                        f"depth on {row.dataset} differs from torch: {figure} "
                        f"{getattr(row, figure):.2e} exceeds {limit:.0e} ({backend})"
                    )
        if self.failure is not None:
            yield str(self.failure)


def run(config: ProfileConfig, ws: Workspace) -> list[Comparison]:
    """Stage: compare ``ws.onnx`` with ``ws.model``.

    At every size of ``export.parity_sizes``, and on ``export.parity_frames`` held-out frames of
    each dataset.

    Raises:
        ParityError: a figure exceeds its limit, or the graphs come from another checkpoint.
        ExportError: a dataset has no held-out frames.
    """
    required = open_session(ws.onnx, REQUIRED)
    manifest = required.manifest
    model = MetricGoldModel.from_pretrained(ws.model, light=manifest.autoencoder == "light")
    check_sizes(config.export, model.size_multiple)
    if manifest.checkpoint_sha256 != sha256_of_folder(ws.model):
        raise ParityError(
            f"{ws.onnx}: exported from another checkpoint than {ws.model}; export it again"
        )
    if manifest.arithmetic not in EXPORTED:
        raise ParityError(
            f"{ws.onnx}: quantised ({manifest.precision}); what that costs stands in its "
            "quantization.json, and parity is for what it was made of"
        )
    report = Report(manifest, [], {}, {})
    try:
        for name, session in _sessions(required, ws, report.backends):
            _compare_backend(config, ws, model, session, report)
            report.backends.setdefault(name, "compared")
        if manifest.fused is not None:
            one = open_session(ws.onnx, REQUIRED, fused=True)
            report.comparisons.append(compare_end_to_end(model, one, manifest.fused.size))
    except ExportError as error:
        report.failure = error
    files.write_json(ws.metrics / PARITY_FILE, summary(report))
    check(report)
    return report.comparisons


def _sessions(
    required: DepthSession, ws: Workspace, backends: dict[str, str]
) -> Iterator[tuple[str, DepthSession]]:
    """The back-end that must work, and every other one that does; why not, to ``backends``."""
    yield REQUIRED, required
    for name in BACKENDS:
        if name == REQUIRED:
            continue
        try:
            session = open_session(ws.onnx, name, engines=ws.engines)
        except ExportError as error:
            backends[name] = f"not compared: {error}"
        else:
            yield name, session


def _compare_backend(
    config: ProfileConfig,
    ws: Workspace,
    model: MetricGoldModel,
    session: DepthSession,
    report: Report,
) -> None:
    """All of the comparison on one back-end; a size it was not built for is noted."""
    name, manifest = session.backend.name, session.manifest
    sizes = list(config.export.parity_sizes)
    if manifest.static_size is not None:
        sizes = [(manifest.static_size[0], manifest.static_size[1])]
    try:
        for size in sizes:
            started = time.perf_counter()
            compared = compare_components(model, session, size)
            if all(c.passed for c in compared):
                compared.append(compare_end_to_end(model, session, size))
            report.comparisons += compared
            seconds = time.perf_counter() - started
            worst = max(c.max_relative for c in compared)
            print(
                f"parity of {name} at {size[0]}x{size[1]}: worst {worst:.1e}, {seconds:.1f} s",
                flush=True,
            )
        if config.export.parity_frames and all(c.passed for c in report.comparisons):
            report.accuracy[name] = compare_accuracy(config, ws, model, session)
    except ShapeError as error:
        report.backends[name] = f"compared in part: {error}"


def compare_accuracy(
    config: ProfileConfig, ws: Workspace, model: MetricGoldModel, session: DepthSession
) -> list[Accuracy]:
    """Torch and the session on held-out frames of each dataset, at the evaluation's size."""
    manifest, rows = session.manifest, []
    for dataset, frames in frames_of(config, ws, "holdout", config.export.parity_frames):
        resolution = max(config.datasets[dataset].train_size)
        row = compare_on_frames(
            dataset,
            frames,
            session_predictor(session, resolution),
            torch_predictor(model, manifest, resolution),
            (manifest.depth_min_m, manifest.depth_max_m),
        )
        rows.append(row)
        print(
            f"{dataset}, {row.frames} frames on {session.backend.name}: AbsRel {row.abs_rel:.4f} "
            f"({row.abs_rel_change:+.1e}), delta1 {row.delta1:.4f} ({row.delta1_change:+.1e})",
            flush=True,
        )
    return rows


def check(report: Report) -> None:
    """Raise :class:`ParityError` for the first figure above its limit."""
    fault = next(report.faults(), None)
    if fault is None:
        return
    if report.failure is not None and fault == str(report.failure):
        raise ParityError(fault) from report.failure
    raise ParityError(f"{fault}; export again, or with another export.opset or export.precision")


def summary(report: Report) -> dict[str, Any]:
    """What ``parity.json`` holds: the worst figure a component, then every figure."""
    results, manifest = report.comparisons, report.manifest
    worst = {
        name: max(r.max_relative for r in results if r.component == name)
        for name in dict.fromkeys(r.component for r in results)
    }
    comparisons = [_finite(asdict(r) | {"passed": r.passed}) for r in results]
    return {
        "passed": next(report.faults(), None) is None,
        "precision": manifest.precision,
        "attention": manifest.attention,
        "opset": manifest.opset,
        "autoencoder": manifest.autoencoder,
        "worst_relative": _finite(worst),
        "backends": report.backends,
        "accuracy": {
            backend: {row.dataset: _without_times(row) for row in rows}
            for backend, rows in report.accuracy.items()
        },
        "faults": list(report.faults()),
        "comparisons": comparisons,
    }


def _without_times(row: Accuracy) -> dict[str, Any]:
    """The row without its name, and without times, which differ from run to run."""
    left_out = ("dataset", "seconds", "reference_seconds")
    figures = {k: v for k, v in asdict(row).items() if k not in left_out}
    changes = {"abs_rel_change": row.abs_rel_change, "delta1_change": row.delta1_change}
    return _finite(figures | changes)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Infinities as text, since JSON has none; figures in four significant digits."""
    return {
        k: v if not isinstance(v, float) else float(f"{v:.4g}") if np.isfinite(v) else str(v)
        for k, v in values.items()
    }
