"""Stage ``data_report``: what the shards hold, as a page, as DVC plots and as DVC metrics.

Everything counted comes from the ``report.json`` that preprocessing wrote beside the shards; of
the frames themselves only a few examples are decoded. Equal shards give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from metricgold import files
from metricgold.config import ProfileConfig
from metricgold.data.dataset import SPLITS
from metricgold.data.files import read_json
from metricgold.errors import UserError
from metricgold.evaluation import data_sections as sections
from metricgold.evaluation.data_charts import Records, percentages
from metricgold.evaluation.page import document
from metricgold.workspace import Workspace

TITLE = "MetricGold: the data"


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Write ``data_report/index.html``, ``metrics/data.json`` and ``plots/data_*.csv``.

    Raises:
        UserError: the shards of a dataset or their ``report.json`` are missing or damaged.
    """
    records = load_records(config, workspace)
    page = build_page(config, workspace, records)
    files.write_json(workspace.metrics / "data.json", metrics(records))
    write_plots(workspace, records)
    with files.replaced_folder(workspace.data_report) as folder:
        files.write_text(folder / "index.html", page)


def load_records(config: ProfileConfig, workspace: Workspace) -> Records:
    """``report.json`` of every dataset that the profile uses, in the fixed order.

    Raises:
        UserError: one is missing, damaged, or without what this version writes.
    """
    records: Records = {}
    for name in config.enabled_datasets():
        path = workspace.shards(name) / "report.json"
        records[name] = read_json(path, made_by="preprocess")
        for split in SPLITS:
            if "log_depth" not in records[name].get(split, {}):
                raise UserError(
                    f"{path}: lacks the statistics of split '{split}', an earlier version wrote "
                    "it; run the stage 'preprocess' again"
                )
    return records


def build_page(config: ProfileConfig, workspace: Workspace, records: Records) -> str:
    """The whole page as HTML.

    Raises:
        UserError: shards are missing or damaged.
    """
    body = (
        f"<h1>{escape(TITLE)}</h1>{sections.INTRODUCTION}",
        sections.headline(records),
        sections.overview(records),
        sections.depth(records, config.codec),
        sections.field_of_view(records),
        sections.coverage(records),
        sections.left_out(records, config.preprocess),
        sections.origin(workspace, config, records),
        sections.examples(workspace, records),
    )
    return document(TITLE, "\n".join(part for part in body if part))


def metrics(records: Records) -> dict[str, Any]:
    """Content of ``metrics/data.json``: dataset, split, figure.

    Log-depth is natural, of metres, over pixels; the other means are over frames: shares 0..1,
    fields of view in degrees. A split without frames has its counts only.
    """
    return {
        name: {split: _figures(record[split]) for split in SPLITS}
        for name, record in records.items()
    }


def _figures(split: Mapping[str, Any]) -> dict[str, float]:
    rejected = sum(split["rejected"].values())
    figures = {
        "frames": split["frames"],
        "scenes": split["scenes"],
        "rejected_share": round(rejected / max(1, rejected + split["frames"]), 6),
    }
    if split["frames"]:
        figures["log_depth_mean"] = split["log_depth"]["mean"]
        figures["log_depth_std"] = split["log_depth"]["std"]
        for name in ("valid_ratio", "sky_share", "fov_y_deg", "fov_x_deg"):
            figures[name] = split[name]["mean"]
    return figures


def write_plots(workspace: Workspace, records: Records) -> None:
    """The histograms as CSV, for ``dvc plots``: the lower edge of every bin and what lies in it.

    In percent of a split's valid pixels (depth) or frames. The upper edge of the last bin is a
    row of its own, with nothing in it.
    """
    parts = [(name, s, record[s]) for name, record in records.items() for s in SPLITS]
    depth = [
        (name, split, *row)
        for name, split, part in parts
        for row in _steps(part["depth_histogram_m"])
    ]
    fov = [
        (name, split, direction, *row)
        for name, split, part in parts
        for direction, key in (("vertical", "fov_y_deg"), ("horizontal", "fov_x_deg"))
        for row in _steps(part[key])
    ]
    valid = [
        (name, split, *row) for name, split, part in parts for row in _steps(part["valid_ratio"])
    ]
    for name, columns, rows in (
        ("depth", ("dataset", "split", "depth_m", "percent"), depth),
        ("fov", ("dataset", "split", "direction", "fov_deg", "percent"), fov),
        ("valid_ratio", ("dataset", "split", "valid_ratio", "percent"), valid),
    ):
        files.write_csv(workspace.plots / f"data_{name}.csv", columns, rows)


def _steps(histogram: Mapping[str, Any]) -> list[tuple[float, float]]:
    edges, shares = percentages(histogram)
    return list(zip(edges, [*shares, 0.0] if shares else [], strict=True))
