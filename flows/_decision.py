"""What was decided on a challenger, and why: JSON for machines, Markdown for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flows._gates import Gate
from metricgold import files
from metricgold.evaluation.verdicts import Verdict
from metricgold.workspace import Workspace

Outcome = Literal[
    "better",
    "first",
    "by hand",
    "not better",
    "gate failed",
    "champion already",
    "withdrawn",
    "not in git",
]
ACCEPTED = ("better", "first", "by hand")

TITLES: dict[Outcome, str] = {
    "better": "better than the champion",
    "first": "the first champion; it passed the gates, compared with no other",
    "by hand": "passed the gates; a person decided without a comparison",
    "not better": "not surely better: the champion stays",
    "gate failed": "a gate failed: not compared, the champion stays",
    "champion already": "these weights are the champion's",
    "withdrawn": "this model was champion and was withdrawn; not promoted again by itself",
    "not in git": "nothing can be registered outside of a git repository with a commit",
}


def now() -> str:
    """Date and time in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(kw_only=True)
class Decision:
    """On one challenger.

    Attributes:
        outcome: accepted are :data:`ACCEPTED`.
        champion: version of the champion it met; None: there was none.
        challenger: commit that keeps its run; None: not in git.
        version: it was registered as; None: it was not.
        remote: of DVC, that its files were pushed to; None: there is none, or not accepted.
        gates, verdicts, data: see :mod:`flows._gates` and
            :mod:`metricgold.evaluation.verdicts`; None where it did not come to that.
        rules: of params.yaml.
    """

    outcome: Outcome
    reasons: list[str]
    champion: str | None = None
    challenger: str | None = None
    version: str | None = None
    remote: str | None = None
    gates: list[Gate] = field(default_factory=list)
    verdicts: list[Verdict] | None = None
    data: dict[str, Any] | None = None
    rules: dict[str, Any] | None = None
    date: str = field(default_factory=now)

    @property
    def accepted(self) -> bool:
        """Whether it takes the champion's place."""
        return self.outcome in ACCEPTED

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"accepted": self.accepted, **asdict(self)}

    def markdown(self) -> str:
        """For a Prefect artifact, and for the terminal."""
        name = f"metricgold {self.version}" if self.version else "challenger"
        lines = [f"**{name}: {TITLES[self.outcome]}**", ""]
        if self.champion:
            lines += [f"The champion it met: {self.champion}.", ""]
        lines += [f"- {reason}" for reason in self.reasons]
        if self.verdicts:
            lines += ["", *_table(self.verdicts)]
        if self.gates:
            lines += ["", "| gate | passed | |", "|---|---|---|"]
            lines += [f"| {g.name} | {_yes(g.passed)} | {g.detail} |" for g in self.gates]
        if self.version:
            lines += ["", *_next_steps(self.version, self.remote)]
        return "\n".join(lines) + "\n"

    def write(self, root: Path) -> Path:
        """Write both into ``artifacts/promotion``; returns the JSON's path."""
        stamp = "".join(c for c in self.date[:26] if c.isdigit())
        path = Workspace(root).promotion / f"{stamp}-{(self.challenger or 'none')[:12]}.json"
        files.write_text(path.with_suffix(".md"), self.markdown())
        files.write_json(path, self.record())
        return path


def latest_decision(root: Path) -> Path | None:
    """The Markdown of the last decision that was written; None: there is none."""
    return max(Workspace(root).promotion.glob("*.md"), default=None)


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    head = "| figure | frames | champion | challenger | improvement | interval | wanted | passed |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for v in verdicts:
        wanted = f"> {v.margin:g}" if v.rule == "better" else f"≥ {-v.margin or 0:g}"
        interval = f"{v.low:+.4f} to {v.high:+.4f}" if v.low is not None else "–"
        cells = [
            v.figure,
            v.dataset or "all",
            *(f"{x:.4f}" if x is not None else "–" for x in (v.champion, v.challenger)),
            f"{v.improvement:+.4f}" if v.improvement is not None else "–",
            interval,
            wanted,
            _yes(v.passed),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _next_steps(version: str, remote: str | None) -> list[str]:
    files_are = (
        f"Its files are in the DVC remote '{remote}'."
        if remote
        else "No default DVC remote is set: its files are in this machine's cache only. To send "
        f"them later: `python -m flows.promotion checkout {version}`, then `dvc push`."
    )
    return [f"{files_are} To publish it: `git push origin --tags`."]


def _yes(passed: bool) -> str:
    return "yes" if passed else "**no**"
