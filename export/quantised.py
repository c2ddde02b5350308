"""``quantization.json`` beside quantised graphs: what they cost. Free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.manifest import ExportError, Manifest, read_json
from export.specs import QUANTISED

QUANTIZATION_FILE = "quantization.json"
QUANTIZE_HINT = "run 'python -m export.quantize' again"


def measured(folder: Path | str, manifest: Manifest) -> str | None:
    """One line on how accurate quantised graphs are; None for graphs that are not.

    Raises:
        ExportError: they are quantised, and what that costs is not known.
    """
    if manifest.arithmetic not in QUANTISED:
        return None
    path = Path(folder) / QUANTIZATION_FILE
    record = read_json(path, QUANTIZE_HINT)
    try:
        said, source = describe(record), record["source_checkpoint_sha256"]
    except (TypeError, KeyError, ValueError):
        raise ExportError(f"{path}: not the record of a quantisation; {QUANTIZE_HINT}") from None
    if (record["precision"], source) != (manifest.precision, manifest.checkpoint_sha256):
        raise ExportError(f"{path}: belongs to other graphs; {QUANTIZE_HINT}")
    return said


def describe(record: dict[str, Any]) -> str:
    """The record in one line."""
    all_of = record["mean"]
    return (
        f"quantised to {record['precision']}: on {all_of['frames']} held-out frames AbsRel "
        f"{all_of['abs_rel']:.4f} (fp32 {all_of['reference_abs_rel']:.4f}), delta1 "
        f"{all_of['delta1']:.4f} ({all_of['reference_delta1']:.4f}), depth off by "
        f"{100 * all_of['median_relative']:.2g} % at the median pixel; "
        f"{record['bytes'] / 1e6:.1f} MB ({record['reference_bytes'] / 1e6:.1f}), "
        f"{record['speed']:.2f} times the speed of fp32 on {record['backend']}"
    )
