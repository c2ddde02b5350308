"""The data report's histograms, each in one card: datasets together, or each alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metricgold.data.dataset import SPLITS, Split
from metricgold.evaluation.charts import Series, histogram_chart
from metricgold.evaluation.page import chart_card

Records = dict[str, dict[str, Any]]
"""Dataset to its ``report.json``."""

SPLIT_TITLES: dict[Split, str] = {"train": "training", "holdout": "held out"}
_HOLDOUT_COLOUR = 5


def percentages(histogram: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Edges and heights in percent of all that was counted; both empty without a count."""
    total = sum(histogram.get("counts", ()))
    shares = [100 * count / total for count in histogram.get("counts", ())]
    return list(histogram.get("edges", ())), shares


@dataclass(frozen=True)
class Kind:
    """A histogram of ``report.json`` and how it is drawn; on every chart with the same x axis.

    ``scale`` multiplies the edges. The axis spans all that is there and a ``margin`` at either
    end, or ``limits``.
    """

    key: str
    title: str
    x_label: str
    y_label: str = "% of frames"
    octaves: bool = False
    scale: float = 1.0
    margin: float = 0.0
    limits: tuple[float, float] | None = None

    def series(self, part: Mapping[str, Any], name: str, colour: int) -> Series:
        """The histogram of one split."""
        edges, shares = percentages(part[self.key])
        return Series(name, [self.scale * edge for edge in edges], shares, colour)

    def card(self, used: Records, heading: str, series: Sequence[Series]) -> list[str]:
        """A card with those series that have a bin; none without such."""
        filled = [s for s in series if s.y]
        if not filled:
            return []
        edges = [e for r in used.values() for s in SPLITS for e in self.series(r[s], "", 0).x]
        ends = self.limits or (min(edges) - self.margin, max(edges) + self.margin)
        chart = histogram_chart(heading, filled, self.x_label, self.y_label, ends, self.octaves)
        return [chart_card(heading, chart)]


DEPTH = Kind("depth_histogram_m", "depth", "depth [m]", "% of valid pixels", octaves=True)
FOVS = (
    Kind("fov_y_deg", "vertical FOV", "angle [°]", margin=5),
    Kind("fov_x_deg", "horizontal FOV", "angle [°]", margin=5),
)
SHARES = (
    Kind("valid_ratio", "valid pixels", "share of the frame [%]", scale=100, limits=(0, 100)),
    Kind("sky_share", "sky", "share of the frame [%]", scale=100, limits=(0, 100)),
)


def together(used: Records, kind: Kind) -> list[str]:
    """A card for each split, with the datasets side by side."""
    cards = []
    for split, split_title in SPLIT_TITLES.items():
        records = enumerate(used.items())
        series = [kind.series(record[split], name, i) for i, (name, record) in records]
        cards += kind.card(used, f"{split_title}: {kind.title}", series)
    return cards


def alone(used: Records, kinds: Sequence[Kind]) -> list[str]:
    """A card for each dataset and kind, with training and held out side by side."""
    cards = []
    for colour, (name, record) in enumerate(used.items()):
        for kind in kinds:
            train = kind.series(record["train"], SPLIT_TITLES["train"], colour)
            held_out = kind.series(record["holdout"], SPLIT_TITLES["holdout"], _HOLDOUT_COLOUR)
            cards += kind.card(used, f"{name}: {kind.title}", [train, held_out])
    return cards
