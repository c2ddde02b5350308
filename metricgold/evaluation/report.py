"""The last stage: ``metrics/summary.json`` and one self-contained page with everything in it.

The page refers to nothing outside itself and holds no time stamp: equal inputs give
equal bytes.
"""

from __future__ import annotations

from html import escape

from metricgold import files
from metricgold.config import ProfileConfig
from metricgold.evaluation import sections
from metricgold.evaluation.page import document
from metricgold.evaluation.summary import (
    collect,
    dataset_records,
    merge_datasets,
    summary_table,
)
from metricgold.workspace import Workspace

__all__ = ["run", "summary_table"]

TITLE = "MetricGold: metric depth from one picture"


def _intro(config: ProfileConfig) -> str:
    steps = config.evaluate.num_inference_steps
    ensemble = config.evaluate.ensemble_size
    low, high = config.codec.depth_min_m, config.codec.depth_max_m
    how = f"{steps} denoising step{'s' if steps > 1 else ''}"
    if ensemble > 1:
        how += f", median of {ensemble} predictions"
    model = config.base_model.hub_id or "a toy-width base model trained from scratch"
    return (
        f"<h1>{escape(TITLE)}</h1>"
        f'<p class="soft">Held-out evaluation with {how}, depth range {low:g}–{high:g} m, '
        f"seed {config.seed}, starting from {escape(model)}.</p>"
    )


def build_page(config: ProfileConfig, workspace: Workspace) -> str:
    """The whole report as HTML.

    Raises:
        ReportError: a metrics file is missing or damaged.
    """
    summary = collect(config, workspace)
    records = dataset_records(workspace)
    used = {name: r for name, r in records.items() if r["frames"]}
    skipped = {name: r.get("reason", "") for name, r in records.items() if not r["frames"]}
    columns = {**used, "all": merge_datasets(records)} if len(used) > 1 else used
    demo = config.base_model.toy is not None
    body = (
        _intro(config),
        sections.headline(summary),
        sections.targets(summary) if demo else "",
        sections.panels(workspace, list(used)),
        sections.clouds(workspace, list(used)),
        sections.metrics(columns, skipped),
        sections.by_pixel(workspace, list(used)),
        sections.floor(workspace),
        sections.learning_curves(workspace),
        sections.parity(workspace),
        sections.engines(workspace),
    )
    return document(TITLE, "\n".join(part for part in body if part))


def run(config: ProfileConfig, workspace: Workspace) -> None:
    """Write ``metrics/summary.json`` and ``workspace.report/index.html``.

    Needs ``metrics/evaluate_<ds>.json`` of every dataset; the other inputs (VAE floor,
    parity, engines, learning curves, pictures, baseline benchmark) are shown where they
    exist.

    Raises:
        ReportError: an input is missing or damaged, or no dataset was evaluated.
    """
    page = build_page(config, workspace)
    files.write_json(workspace.metrics / "summary.json", collect(config, workspace))
    with files.replaced_folder(workspace.report) as folder:
        files.write_text(folder / "index.html", page)
