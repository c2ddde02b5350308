"""Small charts as inline SVG: no image files, sharp on any screen, colours from the page's CSS.

The series are drawn with the CSS variables ``--series-0``, ``--series-1``, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
LEGEND_ROW = 16
COLOURS = 10
"""How many the page's style sheet has; more series begin anew."""


@dataclass(frozen=True)
class Series:
    """One named line or set of bars; ``faint`` draws it thin and pale, without a legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    faint: bool = False


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers alone beyond two decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    mantissas = (1, 2, 5) if high <= 100 * low else (1,)
    values = [m * 10.0**e for e in range(first, last + 1) for m in mantissas]
    return [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def octave_ticks(low: float, high: float) -> list[float]:
    """Powers of two inside [low, high]."""
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    return [2.0**e for e in range(first, last + 1)]


def number(value: float) -> str:
    """Short axis label."""
    if value != 0 and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def _scale(
    low: float, high: float, start: float, end: float, log: bool = False
) -> Callable[[float], float]:
    def position(value: float) -> float:
        a, b, v = (math.log(u) if log else u for u in (low, high, value))
        return start + (end - start) * ((v - a) / (b - a) if b > a else 0.5)

    return position


def _frame(
    title: str,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    body: str,
    legend: Sequence[tuple[str, int]],
    y_label: str = "",
) -> str:
    names = _legend(legend)
    more = LEGEND_ROW * (len(names) - 1)
    parts = [
        f'<svg viewBox="0 {-more} {WIDTH} {HEIGHT + more}" role="img" aria-label="{escape(title)}">'
    ]
    for y, text in y_ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for x, text in x_ticks:
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    if y_label:
        parts.append(f'<text x="4" y="{TOP + 8}">{escape(y_label)}</text>')
    parts.append(body)
    for row, named in enumerate(names):
        y = TOP - more + LEGEND_ROW * row
        for x, name, colour in named:
            parts.append(
                f'<text x="{x:.1f}" y="{y + 8}">{escape(name)}</text>'
                f'<rect x="{x - 14:.1f}" y="{y}" width="9" height="9" rx="2" '
                f'fill="var(--series-{colour})"/>'
            )
    return "".join(parts) + "</svg>"


def _legend(legend: Sequence[tuple[str, int]]) -> list[list[tuple[float, str, int]]]:
    """Rows of (x, name, colour), aligned to the right, as many as the names need; one at least."""
    rows: list[list[tuple[float, str, int]]] = [[]]
    x = WIDTH - RIGHT - 6.0
    for name, colour in reversed(legend):
        x -= 7.6 * len(name)
        if x < 18 and rows[0]:
            rows.insert(0, [])
            x = WIDTH - RIGHT - 6.0 - 7.6 * len(name)
        rows[0].insert(0, (x, name, colour))
        x -= 26
    return rows


def line_chart(title: str, series: Sequence[Series], x_label: str, log_y: bool = False) -> str:
    """Lines over a shared x axis; with ``log_y`` every value must be positive."""
    xs = [v for s in series for v in s.x]
    ys = [v for s in series for v in s.y]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    if not log_y:
        margin = 0.06 * (y_high - y_low) or 0.5
        y_low, y_high = min(y_low, y_low - margin), y_high + margin
    x_at = _scale(x_low, x_high, LEFT + 4, WIDTH - RIGHT - 4)
    y_at = _scale(y_low, y_high, HEIGHT - BOTTOM, TOP + 16, log_y)
    lines = []
    for s in series:
        points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in zip(s.x, s.y, strict=True))
        style = ' class="faint"' if s.faint else ""
        lines.append(
            f'<polyline{style} fill="none" stroke="var(--series-{s.colour})" points="{points}"/>'
        )
    y_values = log_ticks(y_low, y_high) if log_y else nice_ticks(y_low, y_high)
    named = [(s.name, s.colour) for s in series if not s.faint]
    return _frame(
        title,
        [(x_at(v), number(v)) for v in nice_ticks(x_low, x_high)],
        [(y_at(v), number(v)) for v in y_values],
        x_label,
        "".join(lines),
        named if len(named) > 1 else [],
    )


def bar_chart(title: str, labels: Sequence[str], series: Sequence[Series], x_label: str) -> str:
    """Bars from zero, one group a label; ``x`` of the series is not used."""
    top = max(v for s in series for v in s.y) * 1.08 or 1.0
    y_at = _scale(0.0, top, HEIGHT - BOTTOM, TOP + 16)
    group = (WIDTH - LEFT - RIGHT) / len(labels)
    bar = 0.72 * group / len(series)
    bars = []
    for j, s in enumerate(series):
        for i, value in enumerate(s.y):
            x = LEFT + group * (i + 0.14) + bar * j
            bars.append(
                f'<rect x="{x:.1f}" y="{y_at(value):.1f}" width="{max(bar - 2, 0.6 * bar):.1f}" '
                f'height="{HEIGHT - BOTTOM - y_at(value):.1f}" rx="2" '
                f'fill="var(--series-{s.colour})"><title>{escape(s.name)}, {escape(labels[i])}: '
                f"{value:.3f}</title></rect>"
            )
    return _frame(
        title,
        [(LEFT + group * (i + 0.5), escape(label)) for i, label in enumerate(labels)],
        [(y_at(v), number(v)) for v in nice_ticks(0.0, top)],
        x_label,
        "".join(bars),
        [(s.name, s.colour) for s in series],
    )


def histogram_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    octaves: bool = False,
) -> str:
    """Outlined, lightly filled steps from zero, one outline a series.

    Args:
        series: ``x`` holds the edges of the bins, one more than ``y`` has heights.
        x_range: ends of the x axis, no edge lies outside.
        octaves: a logarithmic x axis with ticks at powers of two; all edges are positive.
    """
    x_low, x_high = x_range
    top = max(v for s in series for v in s.y) * 1.08 or 1.0
    x_at = _scale(x_low, x_high, LEFT + 4, WIDTH - RIGHT - 4, octaves)
    y_at = _scale(0.0, top, HEIGHT - BOTTOM, TOP + 16)
    outlines = []
    for s in series:
        corners = [(s.x[0], 0.0)]
        for left, right, height in zip(s.x, s.x[1:], s.y, strict=False):
            corners += [(left, height), (right, height)]
        points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in [*corners, (s.x[-1], 0.0)])
        colour = f"var(--series-{s.colour})"
        outlines.append(f'<polygon fill="{colour}" stroke="{colour}" points="{points}"/>')
    ticks = octave_ticks(x_low, x_high) if octaves else nice_ticks(x_low, x_high)
    return _frame(
        title,
        [(x_at(v), number(v)) for v in ticks],
        [(y_at(v), number(v)) for v in nice_ticks(0.0, top)],
        x_label,
        "".join(outlines),
        [(s.name, s.colour) for s in series] if len(series) > 1 else [],
        y_label,
    )


def interval(low: float, high: float) -> str:
    """Label of a bin from ``low`` to below ``high``."""
    if low == 0 and high == 1:
        return "<1"
    return f"≥{low:g}" if math.isinf(high) else f"{low:g}–{high:g}"


def running_median(values: Sequence[float], window: int) -> list[float]:
    """Median of up to ``window`` values around each; shorter at the ends."""
    half = window // 2
    result = []
    for i in range(len(values)):
        part = sorted(values[max(0, i - half) : i + half + 1])
        middle = len(part) // 2
        result.append(part[middle] if len(part) % 2 else (part[middle - 1] + part[middle]) / 2)
    return result
