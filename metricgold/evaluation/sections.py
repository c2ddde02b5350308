"""The parts of the report, each from its own input; a part without input is left out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from metricgold.evaluation import charts, point_view
from metricgold.evaluation.charts import Series
from metricgold.evaluation.page import chart_card, picture, section, table, text_cell, tile
from metricgold.evaluation.skipped import CLOUDS_FILE, PANELS_FILE
from metricgold.evaluation.summary import Record, flatten, read_json
from metricgold.workspace import Workspace

STAGES = (
    "base_model",
    "train_vae",
    "train_unet",
    "train_one_step_latent",
    "train_one_step",
    "train_light_latent",
    "train_light",
)
STAGE_TITLES = {
    "base_model": "Image VAE",
    "train_vae": "Stage A: depth VAE",
    "train_unet": "Stage B: U-Net, v-prediction",
    "train_one_step_latent": "Stage C: one step, compared in latent space",
    "train_one_step": "Stage C: one step, end to end",
    "train_light_latent": "Light autoencoder: encoder and decoder apart",
    "train_light": "Light autoencoder: through the U-Net",
}
METRIC_ROWS = (
    ("abs_rel", "AbsRel", 3),
    ("delta1", "δ1", 3),
    ("delta2", "δ2", 3),
    ("delta3", "δ3", 3),
    ("rmse", "RMSE [m]", 2),
    ("sq_rel", "SqRel [m]", 3),
    ("rmse_log", "RMSE log", 3),
    ("log10", "log10", 3),
    ("silog", "SILog", 1),
    ("scale_ratio", "scale ratio", 3),
    ("boundary_f1", "boundary F1", 3),
    ("boundary_precision", "boundary precision", 3),
    ("boundary_recall", "boundary recall", 3),
    ("sky_iou", "sky IoU", 3),
    ("frames", "frames", 0),
    ("scenes", "scenes", 0),
)
UNCERTAINTY_ROWS = (
    ("nause", "nAUSE", 3),
    ("spearman", "Spearman of uncertainty and error", 3),
)
YARDSTICK_ROWS = (
    ("abs_rel", "MetricGold, AbsRel", 3),
    ("unknown_fov_abs_rel", "camera unknown, AbsRel", 3),
    ("constant_abs_rel", "best constant, AbsRel", 3),
    ("constant_median_abs_rel", "median constant, AbsRel", 3),
    ("ratio_to_constant", "ratio to best constant", 3),
    ("delta1", "MetricGold, δ1", 3),
    ("unknown_fov_delta1", "camera unknown, δ1", 3),
    ("constant_delta1", "best constant, δ1", 3),
)
AFFINE_ROWS = (
    ("affine_abs_rel", "AbsRel, fitted in depth", 3),
    ("affine_delta1", "δ1, fitted in depth", 3),
    ("affine_disparity_abs_rel", "AbsRel, fitted in inverse depth", 3),
    ("affine_disparity_delta1", "δ1, fitted in inverse depth", 3),
)
# label, key of the summary, bound, whether it is an upper bound, decimals
TARGETS = (
    ("AbsRel", "abs_rel", 0.25, True, 3),
    ("AbsRel, aim", "abs_rel", 0.20, True, 3),
    ("δ1", "delta1", 0.65, False, 3),
    ("δ1, aim", "delta1", 0.72, False, 3),
    ("AbsRel relative to the best constant", "ratio_to_constant", 0.45, True, 3),
    ("depth-VAE floor, AbsRel", "vae_floor_abs_rel", 0.04, True, 3),
    ("held-out scenes", "scenes", 100, False, 0),
)


def headline(summary: Record) -> str:
    """The figures one looks for first."""
    tiles = [
        tile(f"{summary['abs_rel']:.3f}", "AbsRel, no alignment"),
        tile(f"{summary['delta1']:.3f}", "δ1, share of pixels within 25 %"),
        tile(f"{summary['ratio_to_constant']:.2f}", "of the best constant's AbsRel"),
    ]
    if "boundary_f1" in summary:
        tiles.append(tile(f"{summary['boundary_f1']:.3f}", "boundary F1"))
    if "vae_floor_abs_rel" in summary:
        tiles.append(tile(f"{summary['vae_floor_abs_rel']:.3f}", "AbsRel of the depth VAE alone"))
    tiles.append(
        tile(f"{summary['frames']}", f"held-out pictures of {summary['scenes']} unseen scenes")
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def targets(summary: Record) -> str:
    """The demo's targets and whether each is met; a target without its figure says so."""
    rules = list(TARGETS)
    if "regression_abs_rel" in summary:
        regression = summary["regression_abs_rel"]
        rules.append(("AbsRel of a regression U-Net", "abs_rel", regression, True, 3))
    rows = []
    for label, key, bound, upper, digits in rules:
        value = summary.get(key)
        wanted = f"{'≤' if upper else '≥'} {bound:.{digits}f}"
        if value is None:
            rows.append([escape(label), wanted, "–<small>not measured</small>"])
            continue
        met = value <= bound if upper else value >= bound
        missed = f'<small class="no">missed by {abs(value - bound):.{digits}f}</small>'
        verdict = '<small class="yes">met</small>' if met else missed
        rows.append([escape(label), wanted, f"{value:.{digits}f}{verdict}"])
    return section("Targets", table(["Figure", "Target", "Reached"], rows))


def _figure(record: Record, key: str, digits: int) -> str:
    if key not in record:
        return "–"
    text = f"{record[key]:.{digits}f}"
    if f"{key}_low" in record:
        low, high = record[f"{key}_low"], record[f"{key}_high"]
        text += f"<small>{low:.{digits}f}–{high:.{digits}f}</small>"
    return text


def metric_table(columns: Mapping[str, Record], rows: Sequence[tuple[str, str, int]]) -> str:
    """A column for every record; rows are (key, label, decimals)."""
    body = [
        [escape(label), *(_figure(record, key, digits) for record in columns.values())]
        for key, label, digits in rows
    ]
    return table(["", *columns], body)


def metrics(columns: Mapping[str, Record], skipped: Mapping[str, str]) -> str:
    """Metric track, yardsticks and affine track: three tables that are never mixed."""
    notes = "".join(
        f'<p class="soft">{escape(name)} is not evaluated: {escape(reason)}.</p>'
        for name, reason in skipped.items()
    )
    unsure = [row for row in UNCERTAINTY_ROWS if any(row[0] in r for r in columns.values())]
    return (
        section(
            "Metric depth",
            "<p>No scale, no shift, no median is taken from the truth. Each figure is computed "
            "per picture over its valid pixels, then averaged over pictures; the small line is "
            "the 95 % bootstrap interval over scenes.</p>",
            metric_table(columns, [*METRIC_ROWS, *unsure]),
            notes,
        )
        + section(
            "Yardsticks",
            "<p>A constant sees nothing of the picture: the best one minimises AbsRel on training "
            "pictures. “Camera unknown” hides the field of view from the network.</p>",
            metric_table(columns, YARDSTICK_ROWS),
        )
        + section(
            "Affine-invariant track",
            "<p>For comparison with relative-depth methods only: scale and shift of every picture "
            "are fitted to the truth. Never to be mixed with the figures above.</p>",
            metric_table(columns, AFFINE_ROWS),
        )
    )


def panels(workspace: Workspace, datasets: list[str]) -> str:
    """Example panels of each dataset, best to worst."""
    parts = []
    for dataset in datasets:
        folder = workspace.predictions / dataset
        entries = read_json(folder / PANELS_FILE) or []
        figures = [picture(folder / e["file"], _panel_caption(e)) for e in entries]
        if figures:
            parts.append(f'<h3>{escape(dataset)}</h3><div class="grid2">{"".join(figures)}</div>')
    intro = "<p>Picture, true depth and predicted depth, at fixed ranks of error.</p>"
    return section("Examples from best to worst", intro, *parts) if parts else ""


def clouds(workspace: Workspace, datasets: list[str]) -> str:
    """Points of a few pictures of each dataset."""
    views = []
    for dataset in datasets:
        folder = workspace.predictions / dataset
        for entry in read_json(folder / CLOUDS_FILE) or []:
            caption = f"{dataset}, {_panel_caption(entry)}"
            views.append((caption, read_json(folder / entry["file"], "evaluate")))
    return point_views(views)


def point_views(views: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Captions and what :func:`metricgold.evaluation.point_view.content` gives, to be turned."""
    if not views:
        return ""
    cards = [point_view.view(caption, shown) for caption, shown in views]
    return section(
        "In three dimensions",
        "<p>Drag to turn, wheel to zoom, shift and drag to move, double click to go back.</p>",
        f'<div class="grid2">{"".join(cards)}</div>',
        point_view.script(),
    )


def _panel_caption(entry: Mapping[str, Any]) -> str:
    names = {0.0: "best", 50.0: "median", 100.0: "worst"}
    rank = names.get(entry["percentile"], f"rank {entry['percentile']:.0f} %")
    return f"{rank}: AbsRel {entry['abs_rel']:.3f}, {entry['key']}"


def _read_columns(path: Path) -> dict[str, list[float]]:
    """Numeric columns of a CSV; rows in which a wanted number is missing keep NaN out."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(r[name]) for r in rows] for name in (rows[0] if rows else ())}


def by_pixel(workspace: Workspace, datasets: list[str]) -> str:
    """AbsRel by true depth and by distance to a depth edge, beside the constant's."""
    cards = []
    for dataset in datasets:
        for kind, unit, what in (("depth", "m", "true depth"), ("edge", "px", "distance to edge")):
            columns = _read_columns(workspace.plots / f"evaluate_{dataset}_by_{kind}.csv")
            if not columns:
                continue
            bounds = zip(columns[f"from_{unit}"], columns[f"to_{unit}"], strict=True)
            labels = [charts.interval(low, high) for low, high in bounds]
            series = [
                Series("MetricGold", [], columns["abs_rel"], 0),
                Series("best constant", [], columns["constant_abs_rel"], 1),
            ]
            title = f"{dataset}: AbsRel by {what}"
            svg = charts.bar_chart(title, labels, series, f"{what} [{unit}]")
            cards.append(chart_card(title, svg))
    return section(
        "Error by distance", f'<div class="grid2">{"".join(cards)}</div>' if cards else ""
    )


def learning_curves(workspace: Workspace) -> str:
    """The loss of every stage: raw in pale, running median in full."""
    cards = []
    for stage in STAGES:
        columns = _read_columns(workspace.plots / f"{stage}.csv")
        steps, loss = columns.get("step", []), columns.get("loss", [])
        if len(loss) < 2:
            continue
        smooth = charts.running_median(loss, max(3, len(loss) // 15) | 1)
        lines = [Series("loss", steps, loss, 0, faint=True), Series("median", steps, smooth, 0)]
        log = min(loss) > 0 and max(loss) > 8 * min(loss)
        title = STAGE_TITLES[stage] + (" (log scale)" if log else "")
        cards.append(chart_card(title, charts.line_chart(title, lines, "step", log_y=log)))
    return section("Learning curves", f'<div class="grid2">{"".join(cards)}</div>' if cards else "")


def floor(workspace: Workspace) -> str:
    """The VAE floor before and after stage A."""
    record = read_json(workspace.metrics / "train_vae.json") or {}
    if "floor_after" not in record:
        return ""
    before, after = record.get("floor_before", {}), record["floor_after"]
    rows = (
        ("abs_rel", "AbsRel", 4),
        ("delta1", "δ1", 4),
        ("boundary_f1", "boundary F1", 3),
        ("abs_rel_edges", "AbsRel beside depth edges", 4),
    )
    body = [
        [escape(label), _figure(before, key, digits), _figure(after, key, digits)]
        for key, label, digits in rows
    ]
    intro = (
        "<p>True depth, encoded and decoded: what the depth VAE alone loses. No U-Net can be "
        "better than this.</p>"
    )
    return section("Depth-VAE floor", intro, table(["", "image VAE", "after stage A"], body))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parity(workspace: Workspace) -> str:
    """Agreement of the exported graphs with PyTorch, as ``metrics/parity.json`` states it."""
    record = read_json(workspace.metrics / "parity.json")
    if not record:
        return ""
    compared = record.pop("comparisons", [])
    scored = [
        {"backend": backend, "set": dataset} | figures
        for backend, sets in record.pop("accuracy", {}).items()
        for dataset, figures in sets.items()
    ]
    rows = [[escape(k), text_cell(_shown(v))] for k, v in flatten(record).items()]
    return section(
        "Export: agreement with PyTorch",
        table(["Check", "Value"], rows),
        _grid("Graph by graph", compared),
        _grid("On held-out pictures", scored),
    )


def _grid(title: str, records: Sequence[Mapping[str, Any]]) -> str:
    """A row each, a column for every key that one of them has."""
    if not records:
        return ""
    keys = list(dict.fromkeys(key for record in records for key in record))
    rows = [[escape(_shown(record.get(key, "–"))) for key in keys] for record in records]
    return f"<h3>{escape(title)}</h3>" + table([key.replace("_", " ") for key in keys], rows)


def engines(workspace: Workspace) -> str:
    """Which engines were built for what, and which were not and why."""
    record = read_json(workspace.engines / "manifest.json")
    if not record:
        return ""
    rows = []
    for library, build in record.get("builds", {}).items():
        version = f"{library} {build.get('library_version', '')}"
        targets_of = ", ".join(build.get("compute_capabilities", []))
        for component, engine in build.get("engines", {}).items():
            size = f"{engine['bytes'] / 1e6:.1f} MB"
            rows.append([escape(version), escape(component), size, text_cell(targets_of)])
    for library, reason in record.get("not_built", {}).items():
        rows.append([escape(library), "–", "not built", text_cell(reason)])
    return section("Engines", table(["Library", "Component", "Size", "For / reason"], rows))
