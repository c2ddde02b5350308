"""All figures of a run in one flat record: what ``metrics/summary.json`` holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metricgold.config import DATASET_NAMES, ProfileConfig
from metricgold.errors import UserError
from metricgold.workspace import Workspace

DIGITS = 5
COUNTS = ("frames", "scenes", "constant_fit_frames")
FLOOR_NAMES = ("abs_rel", "delta1", "boundary_f1", "abs_rel_edges")
BASELINE_FILE = Path("docs", "benchmarks", "regression_baseline.json")
INTERVALS = ("abs_rel_low", "abs_rel_high", "delta1_low", "delta1_high")
# Means of these over datasets would mean nothing.
PER_DATASET_ONLY = (*INTERVALS, "constant_depth_m", "constant_median_depth_m", "sky_iou")

Record = dict[str, Any]


class ReportError(UserError):
    """The report lacks an input; the message names the file and the stage that writes it."""


def read_json(path: Path, stage: str | None = None) -> Any:
    """Content of a JSON file; None if it is missing and no ``stage`` must have written it.

    Raises:
        ReportError: the file is missing though ``stage`` should have written it, or is
            not JSON.
    """
    if not path.is_file():
        if stage is None:
            return None
        raise ReportError(f"{path}: missing; run 'dvc repro {stage}' first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); delete it and run again") from None


def dataset_records(workspace: Workspace) -> dict[str, Record]:
    """``metrics/evaluate_<ds>.json`` of every dataset, in the fixed order."""
    return {
        name: read_json(workspace.metrics / f"evaluate_{name}.json", "evaluate")
        for name in DATASET_NAMES
    }


def merge_datasets(records: Mapping[str, Record]) -> Record:
    """Mean over *all* holdout images: each dataset counts by its frames; counts are summed.

    Raises:
        ReportError: no dataset was evaluated.
    """
    used = [r for r in records.values() if r["frames"]]
    if not used:
        raise ReportError("no dataset was evaluated; give one a weight above 0 in params.yaml")
    frames = sum(r["frames"] for r in used)
    merged: Record = {"frames": frames, "scenes": sum(r["scenes"] for r in used)}
    for name in dict.fromkeys(name for r in used for name in r):
        if name not in COUNTS and name not in PER_DATASET_ONLY:
            have = [r for r in used if name in r]  # a sparse truth has no boundaries
            total = sum(r[name] * r["frames"] for r in have)
            merged[name] = round(total / sum(r["frames"] for r in have), DIGITS)
    merged["ratio_to_constant"] = round(merged["abs_rel"] / merged["constant_abs_rel"], DIGITS)
    return merged


def flatten(value: Any, prefix: str = "") -> Record:
    """Nested dictionaries and lists as one level, keys joined by dots."""
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    flat: Record = {}
    for key, child in items:
        flat |= flatten(child, f"{prefix}.{key}" if prefix else key)
    return flat


def datasets_digest(config: ProfileConfig) -> str:
    """SHA-256 of what the profile says of the datasets it uses: two figures may stand together
    only if it is the same. Keys at their defaults do not count, so that new ones change nothing."""
    used = sorted(config.enabled_datasets().items())
    section = {name: d.model_dump(mode="json", exclude_defaults=True) for name, d in used}
    return hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()


def collect(config: ProfileConfig, workspace: Workspace) -> Record:
    """The flat summary of a run.

    Keys without prefix are means over all holdout images; ``<dataset>_*`` are that
    dataset's own; ``vae_floor_*`` (and ``vae_floor_before_*``) come from stage A and
    ``regression_*`` from the committed baseline benchmark, each only where it exists
    (the benchmark: for the profile's very datasets).
    """
    records = dataset_records(workspace)
    summary = merge_datasets(records)
    for dataset, record in records.items():
        for name in ("frames", "abs_rel", "delta1", "ratio_to_constant"):
            if record["frames"]:
                summary[f"{dataset}_{name}"] = record[name]
    vae = read_json(workspace.metrics / "train_vae.json") or {}
    for source, prefix in (("floor_after", "vae_floor"), ("floor_before", "vae_floor_before")):
        floor = vae.get(source, {})
        summary |= {f"{prefix}_{n}": round(floor[n], DIGITS) for n in FLOOR_NAMES if n in floor}
    baseline = read_json(workspace.root / BASELINE_FILE) or {}
    if baseline.get("datasets") == datasets_digest(config):
        for name in ("abs_rel", "delta1"):
            summary[f"regression_{name}"] = round(baseline[name], DIGITS)
    return summary


ROWS = (
    ("AbsRel", "abs_rel", 3),
    ("delta1", "delta1", 3),
    ("RMSE [m]", "rmse", 2),
    ("SILog", "silog", 1),
    ("scale ratio", "scale_ratio", 3),
    ("boundary F1", "boundary_f1", 3),
    ("sky IoU", "sky_iou", 3),
    ("AbsRel, camera unknown", "unknown_fov_abs_rel", 3),
    ("AbsRel, affine-invariant", "affine_abs_rel", 3),
    ("AbsRel of best constant", "constant_abs_rel", 3),
    ("ratio to constant", "ratio_to_constant", 3),
    ("frames", "frames", 0),
    ("scenes", "scenes", 0),
)
"""Label, key, decimals of the metrics table."""


def summary_table(workspace: Workspace) -> str:
    """The metrics table as plain text, for the end of ``make run``.

    Raises:
        ReportError: a metrics file is missing.
    """
    records = {n: r for n, r in dataset_records(workspace).items() if r["frames"]}
    columns: dict[str, Record] = {**records, "all": merge_datasets(records)}
    lines = [["", *columns]]
    for label, key, digits in ROWS:
        cells = (f"{c[key]:.{digits}f}" if key in c else "–" for c in columns.values())
        lines.append([label, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        line[0].ljust(widths[0])
        + "".join("  " + c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    floor = (read_json(workspace.metrics / "train_vae.json") or {}).get("floor_after")
    if floor:
        text.append(
            f"depth-VAE floor: AbsRel {floor['abs_rel']:.3f}, delta1 {floor['delta1']:.3f}, "
            f"boundary F1 {floor['boundary_f1']:.3f}"
        )
    return "\n".join(text)
