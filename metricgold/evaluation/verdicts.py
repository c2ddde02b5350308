"""Is a new model better than the one in use, by the rules of ``params.yaml``?

The paired bootstrap of :func:`metricgold.evaluation.metrics.bootstrap_interval` over the scenes of
all datasets, every frame counting the same, as in ``metrics/summary.json``. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from metricgold.config import PromotionConfig
from metricgold.errors import UserError
from metricgold.evaluation.metrics import bootstrap_interval

if TYPE_CHECKING:
    from metricgold.evaluation.engine import Evaluation

CHAMPION, CHALLENGER = "champion", "challenger"

LOWER_IS_BETTER = (
    "abs_rel",
    "sq_rel",
    "rmse",
    "rmse_log",
    "log10",
    "silog",
    "affine_abs_rel",
    "affine_disparity_abs_rel",
    "nause",
)
HIGHER_IS_BETTER = (
    "delta1",
    "delta2",
    "delta3",
    "boundary_f1",
    "boundary_precision",
    "boundary_recall",
    "sky_iou",
    "affine_delta1",
    "affine_disparity_delta1",
    "spearman",
)
SIGN = dict.fromkeys(LOWER_IS_BETTER, -1.0) | dict.fromkeys(HIGHER_IS_BETTER, 1.0)
"""What a figure's difference is multiplied with, so that an improvement is positive."""

Rule = Literal["better", "not worse"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one rule says.

    Attributes:
        figure, dataset: what is compared, and where; None: on all frames.
        champion, challenger: means over the frames that have the figure; None: none has.
        improvement, low, high: mean of the paired differences, positive where the challenger is
            better, and its interval; None: no frame has the figure of both.
        margin: what the rule allows or asks for, in the figure's unit.
    """

    rule: Rule
    figure: str
    dataset: str | None
    champion: float | None
    challenger: float | None
    improvement: float | None
    low: float | None
    high: float | None
    margin: float
    passed: bool

    @property
    def sentence(self) -> str:
        """In words."""
        where = self.dataset or "all frames"
        if self.improvement is None:
            lacking = [n for n in (CHAMPION, CHALLENGER) if getattr(self, n) is None]
            return f"{self.figure} on {where}: {' and '.join(lacking)} without; {self._outcome}"
        return (
            f"{self.figure} on {where}: {self.champion:.4f} -> {self.challenger:.4f}, improvement "
            f"{self.improvement:+.4f} [{self.low:+.4f}, {self.high:+.4f}]; {self._outcome}"
        )

    @property
    def _outcome(self) -> str:
        wanted = "more than" if self.rule == "better" else "no less than"
        margin = self.margin if self.rule == "better" else -self.margin or 0.0
        return f"wanted is surely {wanted} {margin:+g}: {'yes' if self.passed else 'no'}"


def check_rules(rules: PromotionConfig) -> None:
    """Refuse rules on figures of which nobody knows which way is better.

    Raises:
        UserError: names the figure and those that can be used.
    """
    for name in (*rules.better, *rules.not_worse, *rules.not_worse_on_any):
        if name not in SIGN:
            raise UserError(
                f"params.yaml: promotion: '{name}' is no figure to promote by; "
                f"take from {', '.join(SIGN)}"
            )


def judge(evaluations: Mapping[str, Evaluation], rules: PromotionConfig) -> list[Verdict]:
    """What each rule says of evaluations by dataset; all must pass."""
    return list(_verdicts(evaluations, rules))


def _verdicts(found: Mapping[str, Evaluation], rules: PromotionConfig) -> Iterator[Verdict]:
    for figure, margin in rules.better.items():
        yield _verdict("better", figure, margin, found, rules)
    for figure, margin in rules.not_worse.items():
        yield _verdict("not worse", figure, margin, found, rules)
    for figure, margin in rules.not_worse_on_any.items():
        for dataset, alone in found.items():
            yield _verdict("not worse", figure, margin, {dataset: alone}, rules, dataset)


def _verdict(
    rule: Rule,
    figure: str,
    margin: float,
    found: Mapping[str, Evaluation],
    rules: PromotionConfig,
    dataset: str | None = None,
) -> Verdict:
    old, new = _values(found, CHAMPION, figure), _values(found, CHALLENGER, figure)
    gain = SIGN[figure] * (new - old)
    both = np.isfinite(gain)
    improvement = low = high = None
    if both.any():
        scenes = [f"{name}/{scene}" for name, one in found.items() for scene in one.scenes]
        drawn = [scene for scene, there in zip(scenes, both, strict=True) if there]
        improvement = float(gain[both].mean())
        low, high = bootstrap_interval(
            gain[both].tolist(),
            drawn,
            seed=rules.seed,
            resamples=rules.resamples,
            level=rules.level,
        )
    if low is None:  # a figure that both lack got no worse; one that was lost did
        passed = rule == "not worse" and not np.isfinite(old).any()
    else:
        passed = low > margin if rule == "better" else low >= -margin
    return Verdict(
        rule=rule,
        figure=figure,
        dataset=dataset,
        champion=_mean(old),
        challenger=_mean(new),
        improvement=improvement,
        low=low,
        high=high,
        margin=margin,
        passed=passed,
    )


def _values(found: Mapping[str, Evaluation], model: str, figure: str) -> NDArray[np.float64]:
    """A figure of all frames of all datasets; NaN where a frame has none."""
    columns = []
    for one in found.values():
        scores = one.scores[model]
        has = figure in scores.names
        columns.append(scores.column(figure) if has else np.full(len(one.keys), np.nan))
    return np.concatenate(columns)


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
