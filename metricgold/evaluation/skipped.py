"""What the stage ``evaluate`` writes for a dataset that is left out: at once, without torch."""

from __future__ import annotations

from metricgold import files
from metricgold.workspace import Workspace

PANELS_FILE, CLOUDS_FILE, EXAMPLES_FILE = "panels.json", "clouds.json", "examples.json"
"""Listings of the pictures of an evaluated dataset."""

BY_PIXEL = {
    "depth": ("from_m", "to_m", "pixels", "abs_rel", "delta1", "constant_abs_rel"),
    "edge": ("from_px", "to_px", "pixels", "abs_rel", "delta1", "constant_abs_rel"),
}
"""Plots of errors by kind of pixel, and their columns."""


def write_skipped(workspace: Workspace, dataset: str) -> None:
    """The files of :func:`metricgold.evaluation.benchmark.run`, empty, with the reason."""
    with files.replaced_folder(workspace.predictions / dataset) as folder:
        files.write_csv(folder / "per_frame.csv", ["key", "scene"], [])
        files.write_json(folder / PANELS_FILE, [])
        files.write_json(folder / CLOUDS_FILE, [])
        files.write_json(folder / EXAMPLES_FILE, [])
    for kind, columns in BY_PIXEL.items():
        files.write_csv(workspace.plots / f"evaluate_{dataset}_by_{kind}.csv", columns, [])
    reason = "the dataset has weight 0 in this profile"
    skipped = {"frames": 0, "scenes": 0, "reason": reason}
    files.write_json(workspace.metrics / f"evaluate_{dataset}.json", skipped)
