"""The page of a comparison: tables, charts, pictures from best to worst, points in 3-D."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader
from metricgold.evaluation import charts, point_view, sections
from metricgold.evaluation.charts import Series
from metricgold.evaluation.comparison import Comparison
from metricgold.evaluation.engine import TEMPORAL
from metricgold.evaluation.page import chart_card, document, embedded, section, table
from metricgold.evaluation.pictures import Picture, clouds_of, panel, pick_ranks
from metricgold.evaluation.predictors import Invariance
from metricgold.evaluation.ranges import DEPTH_BINS, EDGE_DISTANCES_PX
from metricgold.evaluation.sections import AFFINE_ROWS, METRIC_ROWS, UNCERTAINTY_ROWS, metric_table

TITLE = "MetricGold: models compared"
MORE_ROWS = (*UNCERTAINTY_ROWS, (TEMPORAL, "change from frame to frame, |Δ ln|", 4))
NAMES = {key: label for key, label, _ in (*METRIC_ROWS, *AFFINE_ROWS, *MORE_ROWS)}


def build(found: Comparison, reader: ShardReader, command: str, pictures: int, clouds: int) -> str:
    """The whole page as HTML; predicts the shown frames once more."""
    shown = _shown(found, reader, max(pictures, clouds))
    parts = (
        _intro(found, command),
        _tables(found),
        _differences(found),
        _costs(found),
        _charts(found),
        _panels(found, shown[:pictures]),
        _clouds(found, shown[:clouds]),
    )
    return document(TITLE, "\n".join(part for part in parts if part))


def _intro(found: Comparison, command: str) -> str:
    data = found.data
    low, high = found.depth_range_m
    return (
        f"<h1>{escape(TITLE)}</h1>"
        f"<p>{data['frames']} pictures of {data['scenes']} scenes"
        f"{' of ' + escape(str(data['dataset'])) if data['dataset'] else ''}, pixels whose true "
        f"depth is {low:g} to {high:g} m. Every figure is computed per picture, then averaged; "
        "the small line is the 95 % bootstrap interval over scenes.</p>"
        f'<p class="soft"><code>{escape(command)}</code><br>data {data["sha256"][:16]}</p>'
    )


def _tables(found: Comparison) -> str:
    records = {label: found.record(label) for label in found.labels}
    for record in records.values():
        record |= {"frames": found.data["frames"], "scenes": found.data["scenes"]}
    metric = {
        label: record
        for label, record in records.items()
        if found.predictors[label].invariance is Invariance.METRIC
    }
    affine = [row for row in AFFINE_ROWS if any(row[0] in r for r in records.values())]
    more = [row for row in MORE_ROWS if any(row[0] in r for r in records.values())]
    return (
        section(
            "Metric depth",
            "<p>No scale, no shift, no median is taken from the truth.</p>",
            metric_table(metric, METRIC_ROWS) if metric else "",
        )
        + section(
            "Affine-invariant track",
            "<p>Scale and shift of every picture are fitted to the truth, in depth or in inverse "
            "depth. Never to be mixed with the figures above.</p>",
            metric_table(records, affine) if affine else "",
        )
        + section(
            "Uncertainty and sequences",
            "<p>nAUSE: 0 is an uncertainty that ranks pixels by their true error, 1 one that knows "
            "nothing.</p>",
            metric_table(records, more),
        )
        * bool(more)
    )


def _differences(found: Comparison) -> str:
    rows = []
    for label, name, difference, low, high in found.differences():
        sure = low > 0 or high < 0
        better = (difference > 0) == (name in ("delta1", "boundary_f1"))
        verdict = ("better" if better else "worse") if sure else "no difference shown"
        style = ("yes" if better else "no") if sure else ""
        rows.append(
            [
                escape(label),
                escape(NAMES[name]),
                f"{difference:+.4f}<small>{low:+.4f} to {high:+.4f}</small>",
                f'<small class="{style}">{verdict}</small>',
            ]
        )
    if not rows:
        return ""
    return section(
        f"Against {found.labels[0]}",
        "<p>Differences picture by picture, with the 95 % interval of a paired bootstrap over "
        "scenes: a difference is shown where the interval leaves out 0.</p>",
        table(["Model", "Figure", "Difference", ""], rows),
    )


def _costs(found: Comparison) -> str:
    rows = [
        [
            escape(label),
            "–" if cost.steps is None else str(cost.steps),
            f"{cost.milliseconds:.0f}",
            f"{cost.peak_bytes / 2**20:.0f}",
            "–" if cost.parameters is None else f"{cost.parameters / 1e6:.2f}",
        ]
        for label, each in found.costs.items()
        for cost in each
    ]
    if not rows:
        return ""
    devices = {cost.device for each in found.costs.values() for cost in each}
    return section(
        "Cost",
        f"<p>One picture at a time on {escape(', '.join(sorted(devices)))}, each model in a "
        "process of its own; on a CPU the memory is the whole process's.</p>",
        table(["Model", "Steps", "ms a picture", "Peak MiB", "M parameters"], rows),
    )


def _charts(found: Comparison) -> str:
    cards = []
    for kind, bins, axis in (
        ("by_depth", DEPTH_BINS, "true depth [m]"),
        ("by_edge", EDGE_DISTANCES_PX, "distance to the nearest depth edge [px]"),
    ):
        rows = {
            label: getattr(scores, kind).rows(bins)
            for label, scores in found.evaluation.scores.items()
        }
        if not next(iter(rows.values())):
            continue  # no edges in a sparse truth
        labels = [charts.interval(row["from"], row["to"]) for row in next(iter(rows.values()))]
        series = [
            Series(label, [], [row["abs_rel"] for row in each], i % charts.COLOURS)
            for i, (label, each) in enumerate(rows.items())
        ]
        title = f"AbsRel by {axis.partition(' [')[0]}"
        cards.append(chart_card(title, charts.bar_chart(title, labels, series, axis)))
    note = (
        "<p>Of models without metres after alignment.</p>"
        if any(p.invariance is not Invariance.METRIC for p in found.predictors.values())
        else ""
    )
    return section("Error by distance", note, f'<div class="grid2">{"".join(cards)}</div>')


def _shown(found: Comparison, reader: ShardReader, count: int) -> list[tuple[Frame, str]]:
    """Frames to look at, worst first, with what the first model got for each."""
    first = found.labels[0]
    name = found.figure_to_rank_by(first)
    errors = found.evaluation.scores[first].column(name).tolist()
    ranks = sorted(pick_ranks(errors, count), key=lambda rank: -rank.percentile)
    return [
        (
            reader[found.evaluation.indices[rank.position]],
            f"rank {rank.percentile:.0f} %: {NAMES[name]} {rank.abs_rel:.3f}",
        )
        for rank in ranks
    ]


def _panels(found: Comparison, shown: Sequence[tuple[Frame, str]]) -> str:
    worst = _worst(found, 5)
    parts = []
    for frame, said in shown:
        figures = [
            embedded(_jpeg(panel(frame, predictor, found.depth_range_m)), "jpeg", label)
            for label, predictor in found.predictors.items()
        ]
        parts.append(f"<h3>{escape(frame.key)}, {escape(said)}</h3>{''.join(figures)}")
    return section(
        "Pictures from worst to best",
        f"<p>Picture, true depth, prediction and relative error; ranks are those of "
        f"{escape(found.labels[0])}.</p>"
        if parts
        else "",
        *parts,
        worst,
    )


def _worst(found: Comparison, count: int) -> str:
    rows = []
    for label, scores in found.evaluation.scores.items():
        name = found.figure_to_rank_by(label)
        errors = scores.column(name)
        for position in np.argsort(-errors, kind="stable")[:count]:
            key = found.evaluation.keys[position]
            rows.append([escape(label), escape(key), f"{errors[position]:.3f}"])
    return "<h3>Worst pictures of each</h3>" + table(["Model", "Picture", "AbsRel"], rows)


def _clouds(found: Comparison, shown: Sequence[tuple[Frame, str]]) -> str:
    views = []
    for frame, said in shown:
        clouds = clouds_of(frame, found.predictors, found.depth_range_m)
        views.append((f"{frame.key}, {said}", point_view.content(clouds)))
    return sections.point_views(views)


def _jpeg(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
