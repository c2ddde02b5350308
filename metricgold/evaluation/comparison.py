"""Models in one table on equal terms: the same frames, pixels, range and figures for all.

``results.json`` (with what is needed to repeat it), ``per_image.csv`` and ``index.html``.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from metricgold import __version__, files
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, decode_frame
from metricgold.evaluation.cost import Cost, costs
from metricgold.evaluation.engine import Evaluation, Scores, evaluate
from metricgold.evaluation.predictor_names import PredictorName
from metricgold.evaluation.predictors import Invariance, Observation, Predictor
from metricgold.evaluation.ranges import DEPTH_BINS, EDGE_DISTANCES_PX

COMPARED = ("abs_rel", "delta1", "boundary_f1", "affine_abs_rel", "affine_disparity_abs_rel")
"""Figures whose differences are tested, where both models have them."""
COST_PICTURES = 10


class HashedFrames(Sequence[Frame]):
    """A reader that remembers the checksums of what was read."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.crc32: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.reader)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Frame]: ...
    def __getitem__(self, index: Any) -> Any:
        """A frame; a slice gives a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        encoded = self.reader.encoded(index)
        self.crc32[index] = encoded.crc32
        return decode_frame(encoded)

    def digest(self) -> str:
        """SHA-256 over the names and checksums of all frames that were read."""
        lines = (f"{self.reader.keys[i]} {crc:08x}\n" for i, crc in sorted(self.crc32.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass
class Comparison:
    """What came out.

    Attributes:
        models: as they were named.
        predictors: by label.
        evaluation: of all of them.
        data: what they were evaluated on.
        seed: of the bootstrap.
        costs: by label, where asked for.
    """

    models: list[PredictorName]
    predictors: dict[str, Predictor]
    evaluation: Evaluation
    data: dict[str, Any]
    depth_range_m: tuple[float, float]
    seed: int = 0
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Of the models, in order; the first is what the others are compared with."""
        return [model.label for model in self.models]

    def record(self, label: str) -> dict[str, float]:
        """A model's mean figures, with ``<name>_low`` and ``<name>_high`` of the compared ones."""
        scores = self.evaluation.scores[label]
        found = scores.means()
        for name in COMPARED:
            if name in found:
                low, high = self.evaluation.interval(label, name, self.seed)
                found |= {f"{name}_low": low, f"{name}_high": high}
        return found

    def differences(self) -> Iterator[tuple[str, str, float, float, float]]:
        """(model, figure, difference to the first model, low, high), of figures both have."""
        first, *others = self.labels
        have = set(self.evaluation.scores[first].names)
        for other in others:
            for name in COMPARED:
                if name in have and name in self.evaluation.scores[other].names:
                    yield (
                        other,
                        name,
                        *self.evaluation.difference(other, first, name, self.seed),
                    )

    def figure_to_rank_by(self, label: str) -> str:
        """The AbsRel of a model's own track."""
        return rank_figure(self.evaluation.scores[label])


def rank_figure(scores: Scores) -> str:
    """The AbsRel of a model's own track."""
    return {
        Invariance.METRIC: "abs_rel",
        Invariance.AFFINE_DEPTH: "affine_abs_rel",
        Invariance.AFFINE_DISPARITY: "affine_disparity_abs_rel",
    }[scores.invariance]


def compare(
    reader: ShardReader,
    chosen: Sequence[int],
    models: Sequence[PredictorName],
    depth_range_m: tuple[float, float],
    *,
    device: str,
    sequences: bool = False,
    with_costs: bool = False,
    seed: int = 0,
) -> Comparison:
    """Evaluate ``models`` on the ``chosen`` frames; see :func:`engine.evaluate`.

    Raises:
        UserError: a model cannot be loaded, or gives something that is no depth.
    """
    measured = {}
    if with_costs:  # first, while nothing else is in memory
        step = max(1, len(chosen) // COST_PICTURES)
        some = [reader[i] for i in chosen[::step][:COST_PICTURES]]
        shown = [Observation(f.key, f.rgb, f.intrinsics) for f in some]
        measured = {model.label: costs(model, shown, device) for model in models}
    predictors = {model.label: model.open(device) for model in models}
    frames = HashedFrames(reader)
    found = evaluate(frames, chosen, predictors, depth_range_m, sequences=sequences)
    provenance = reader.provenance(found.indices[0])
    data = {
        "frames": len(found.keys),
        "scenes": len(set(found.scenes)),
        "sha256": frames.digest(),
        "depth_range_m": list(depth_range_m),
        "dataset": provenance.get("dataset"),
        "licence": provenance.get("licence"),
    }
    return Comparison(list(models), predictors, found, data, depth_range_m, seed, measured)


def results(found: Comparison, command: Sequence[str]) -> dict[str, Any]:
    """``results.json``."""
    return {
        "metricgold": __version__,
        "commit": commit(),
        "command": list(command),
        "seed": found.seed,
        "data": found.data,
        "models": {model.label: _model(found, model) for model in found.models},
        "differences": [
            {
                "model": label,
                "reference": found.labels[0],
                "figure": name,
                "difference": difference,
                "low": low,
                "high": high,
            }
            for label, name, difference, low, high in found.differences()
        ],
    }


def _model(found: Comparison, model: PredictorName) -> dict[str, Any]:
    scores = found.evaluation.scores[model.label]
    return {
        "kind": model.kind,
        "target": model.target,
        "options": dict(model.options),
        "gives": str(scores.invariance),
        "parameters": found.predictors[model.label].parameters,
        "figures": found.record(model.label),
        "by_depth_m": _finite(scores.by_depth.rows(DEPTH_BINS)),
        "by_distance_to_edge_px": _finite(scores.by_edge.rows(EDGE_DISTANCES_PX)),
        "cost": [asdict(cost) for cost in found.costs.get(model.label, [])],
    }


def _finite(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float | None]]:
    return [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in rows]


def write_table(path: Path, found: Evaluation) -> None:
    """A row for every frame and model, empty where a model has not the figure."""
    names = list(dict.fromkeys(n for scores in found.scores.values() for n in scores.names))

    def rows() -> Iterator[list[Any]]:
        for label, scores in found.scores.items():
            nothing = np.full(len(found.keys), np.nan)
            columns = [scores.column(n) if n in scores.names else nothing for n in names]
            for i, (key, scene) in enumerate(zip(found.keys, found.scenes, strict=True)):
                values = (float(column[i]) for column in columns)
                yield [label, key, scene, *("" if math.isnan(v) else v for v in values)]

    files.write_csv(path, ["model", "key", "scene", *names], rows())


def commit() -> str | None:
    """The Git commit of this code, with ``+changes`` where files differ; None outside of Git."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # else it is somebody else's repository
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
