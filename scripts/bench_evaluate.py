"""Times evaluation beside a straightforward loop over metrics: docs/benchmarks/evaluate.json.

Usage: python scripts/bench_evaluate.py [--frames 40] [--size 480x640] [--rounds 5] [--out FILE]

Both read the same lossless shard, are given the same predictions (with an uncertainty) and compute
the same figures; that they are equal is checked. The straightforward way is one function for each
figure, which masks and computes for itself, picture after picture, in numpy. Ours is
``metricgold.evaluation.engine``. A round runs both, one after the other; figures are medians of
rounds, the ratio is the median of the rounds' ratios. A third case says how much of ours is the
work itself: the same code with a single measuring thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _header import header
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt, gaussian_filter
from scipy.stats import rankdata

from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import ShardReader, encode_frame, shard_paths
from metricgold.evaluation.engine import evaluate
from metricgold.evaluation.predictors import Estimate, Observation, Predictor
from metricgold.evaluation.ranges import DEPTH_BINS, EDGE_DISTANCES_PX
from metricgold.geometry import intrinsics_from_fov
from metricgold.memory import keep_freed_memory
from metricgold.progress import progress_bar

RANGE_M = (0.1, 80.0)
THRESHOLDS = np.linspace(1.05, 1.25, 10)
OUT = Path("docs/benchmarks/evaluate.json")
Map = NDArray[Any]


def made_frame(index: int, size: tuple[int, int]) -> Frame:
    """A room of boxes: smooth surfaces, sharp edges, holes."""
    rng = np.random.default_rng(index)
    height, width = size
    y, x = np.mgrid[:height, :width]
    depth = 3.0 + 6.0 * y / height + 0.5 * np.sin(x / 40)
    for _ in range(12):
        top, left = rng.integers(0, height), rng.integers(0, width)
        box = np.s_[top : top + rng.integers(20, 200), left : left + rng.integers(20, 200)]
        depth[box] = rng.uniform(0.8, 20) * (1 + 0.1 * x[box] / width)
    valid = gaussian_filter(rng.standard_normal(size), 8) > -0.08
    rgb = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    rgb = rgb.repeat(8, axis=0).repeat(8, axis=1)
    camera = intrinsics_from_fov(60, height, width)
    nothing = np.zeros(size, bool)
    return Frame(f"room/{index:04d}", "room", rgb, depth.astype(np.float32), valid, nothing, camera)


def made_estimate(frame: Frame, index: int) -> Estimate:
    """The truth, blurred and noisy, and a doubt that knows a little of the error."""
    rng = np.random.default_rng(1000 + index)
    blurred = gaussian_filter(frame.depth, 1.5)
    noise = gaussian_filter(rng.standard_normal(frame.depth.shape), 4) * 2
    depth = (blurred * np.exp(noise)).astype(np.float32)
    doubt = np.abs(depth - frame.depth) + rng.uniform(0, 1, depth.shape)
    return Estimate(depth, doubt.astype(np.float32))


class Given(Predictor):
    """Predictions that are there already."""

    def __init__(self, answers: dict[str, Estimate]) -> None:
        self.answers = answers

    def predict(self, observations: Sequence[Observation]) -> list[Estimate]:
        """As they are."""
        return [self.answers[o.key] for o in observations]


def at(values: Map, mask: Map) -> Map:
    """Masked, in float64."""
    return values[mask].astype(np.float64)


def boundary(pred: Map, gt: Map, mask: Map) -> tuple[float, float, float]:
    """F1, precision and recall as Depth Pro defines them: threshold by threshold."""

    def edges(depth: Map, threshold: float) -> list[Map]:
        depth = depth.astype(np.float64)
        left, right = depth[:, :-1], depth[:, 1:]
        upper, lower = depth[:-1], depth[1:]
        across, down = mask[:, :-1] & mask[:, 1:], mask[:-1] & mask[1:]
        return [
            (left / right > threshold) & across,
            (right / left > threshold) & across,
            (upper / lower > threshold) & down,
            (lower / upper > threshold) & down,
        ]

    f1s, precisions, recalls = [], [], []
    for threshold in THRESHOLDS:
        of_pred, of_gt = edges(pred, threshold), edges(gt, threshold)
        pairs = list(zip(of_pred, of_gt, strict=True))
        precision = np.mean([(p & g).sum() / max(p.sum(), 1) for p, g in pairs])
        recall = np.mean([(p & g).sum() / max(g.sum(), 1) for p, g in pairs])
        both = precision + recall
        f1s.append(2 * precision * recall / both if both else 0.0)
        precisions.append(precision)
        recalls.append(recall)
    weights = THRESHOLDS / THRESHOLDS.sum()
    return float(weights @ f1s), float(weights @ precisions), float(weights @ recalls)


def fitted(pred: Map, gt: Map, mask: Map, inverse: bool) -> Map:
    """Prediction after least squares in depth or inverse depth, clipped."""
    x, y = at(pred, mask), at(gt, mask)
    if inverse:
        x, y = 1 / x, 1 / y
    scale, shift = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]
    source = pred.astype(np.float64)
    if inverse:
        return 1 / np.clip(scale / source + shift, 1 / RANGE_M[1], 1 / RANGE_M[0])
    return np.clip(scale * source + shift, *RANGE_M)


def abs_rel(pred: Map, gt: Map, mask: Map) -> float:
    """Mean relative error."""
    return float(np.mean(np.abs(at(pred, mask) - at(gt, mask)) / at(gt, mask)))


def delta(k: int) -> Callable[[Map, Map, Map], float]:
    """Share of pixels within a factor."""

    def metric(pred: Map, gt: Map, mask: Map) -> float:
        p, d = at(pred, mask), at(gt, mask)
        return float(np.mean(np.maximum(p / d, d / p) < 1.25**k))

    return metric


def silog(pred: Map, gt: Map, mask: Map) -> float:
    """Scale-invariant logarithmic error."""
    g = np.log(at(pred, mask)) - np.log(at(gt, mask))
    return 100 * math.sqrt(np.mean(g**2) - np.mean(g) ** 2)


def uncertainty(pred: Map, gt: Map, doubt: Map, mask: Map) -> tuple[float, float]:
    """nAUSE and Spearman; there are no ties here."""
    error = np.abs(at(pred, mask) - at(gt, mask)) / at(gt, mask)
    unsure = at(doubt, mask) / at(pred, mask)
    spearman = np.corrcoef(rankdata(unsure), rankdata(error))[0, 1]
    by_doubt, by_error = error[np.argsort(unsure, kind="stable")], np.sort(error)
    curve, oracle = [], []
    for share in np.linspace(1, 0, 100, endpoint=False):
        kept = max(1, round(share * len(error)))
        curve.append(by_doubt[:kept].mean())
        oracle.append(by_error[:kept].mean())
    area = np.mean(np.array(curve) - oracle)
    return float(area / np.mean(error.mean() - np.array(oracle))), float(spearman)


SIMPLE: dict[str, Callable[[Map, Map, Map], float]] = {
    "abs_rel": abs_rel,
    "sq_rel": lambda p, d, m: float(np.mean((at(p, m) - at(d, m)) ** 2 / at(d, m))),
    "rmse": lambda p, d, m: math.sqrt(np.mean((at(p, m) - at(d, m)) ** 2)),
    "rmse_log": lambda p, d, m: math.sqrt(np.mean((np.log(at(p, m)) - np.log(at(d, m))) ** 2)),
    "log10": lambda p, d, m: float(np.mean(np.abs(np.log10(at(p, m)) - np.log10(at(d, m))))),
    "delta1": delta(1),
    "delta2": delta(2),
    "delta3": delta(3),
    "silog": silog,
    "scale_ratio": lambda p, d, m: float(np.median(at(p, m) / at(d, m))),
}


def edge_distance(gt: Map, mask: Map) -> Map:
    """Pixels to the nearest depth edge of more than 10 %."""
    beside = np.zeros(gt.shape, bool)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        a, b = gt[first].astype(np.float64), gt[second].astype(np.float64)
        edge = (np.maximum(a, b) > 1.1 * np.minimum(a, b)) & mask[first] & mask[second]
        beside[first] |= edge
        beside[second] |= edge
    return distance_transform_cdt(~beside, "chessboard")


def straightforward(reader: ShardReader, given: Given, doubt: bool) -> dict[str, Any]:
    """Mean figures and errors by bin, one thing after the other."""
    rows = []
    depth_bins, edge_bins = np.zeros((2, len(DEPTH_BINS))), np.zeros((2, len(EDGE_DISTANCES_PX)))
    for index in range(len(reader)):
        frame = reader[index]
        estimate = given.answers[frame.key]
        pred, gt = estimate.depth, frame.depth
        mask = frame.valid_mask & (gt >= RANGE_M[0]) & (gt <= RANGE_M[1])
        row = {name: metric(pred, gt, mask) for name, metric in SIMPLE.items()}
        names = ("boundary_f1", "boundary_precision", "boundary_recall")
        row |= dict(zip(names, boundary(pred, gt, mask), strict=True))
        for name, inverse in (("affine", False), ("affine_disparity", True)):
            aligned = fitted(pred, gt, mask, inverse)
            row[f"{name}_abs_rel"] = abs_rel(aligned, gt, mask)
            row[f"{name}_delta1"] = delta(1)(aligned, gt, mask)
        if doubt:
            found = uncertainty(pred, gt, estimate.uncertainty, mask)
            row |= dict(zip(("nause", "spearman"), found, strict=True))
        away = edge_distance(gt, mask)
        for bins, edges, values in (
            (depth_bins, DEPTH_BINS, gt),
            (edge_bins, EDGE_DISTANCES_PX, away),
        ):
            for i, (low, high) in enumerate(edges):
                inside = mask & (values >= low) & (values < high)
                bins[0, i] += inside.sum()
                bins[1, i] += np.sum(np.abs(at(pred, inside) - at(gt, inside)) / at(gt, inside))
        rows.append(row)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"means": means, "by_depth": depth_bins, "by_edge": edge_bins}


def ours(reader: ShardReader, given: Given, workers: int | None) -> dict[str, Any]:
    """The same by the engine."""
    scores = evaluate(reader, range(len(reader)), {"": given}, RANGE_M, workers=workers).scores[""]
    return {
        "means": scores.means(),
        "by_depth": scores.by_depth.sums[:2],
        "by_edge": scores.by_edge.sums[:2],
    }


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Both ways must give the same.

    Raises:
        AssertionError: they do not.
    """
    assert found["means"].keys() == expected["means"].keys(), (found["means"], expected["means"])
    for name, value in expected["means"].items():
        np.testing.assert_allclose(found["means"][name], value, rtol=1e-6, err_msg=name)
    for kind in ("by_depth", "by_edge"):
        np.testing.assert_allclose(found[kind], expected[kind], rtol=1e-9, err_msg=kind)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def measure(reader: ShardReader, answers: dict[str, Estimate], rounds: int) -> dict[str, Any]:
    """Frames a second of all ways, with and without an uncertainty to judge."""
    result: dict[str, Any] = {}
    for doubt in (False, True):
        given = Given(answers if doubt else {k: Estimate(e.depth) for k, e in answers.items()})
        ways: dict[str, Callable[[], Any]] = {
            "straightforward": lambda g=given, d=doubt: straightforward(reader, g, d),
            "one measuring thread": lambda g=given: ours(reader, g, 1),
            "ours": lambda g=given: ours(reader, g, None),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in progress_bar(range(rounds), description="rounds", unit="round"):
            found = {}
            for name, call in ways.items():
                took, found[name] = timed(call)
                seconds[name].append(took)
            check(found["ours"], found["straightforward"])
            check(found["one measuring thread"], found["straightforward"])
        ratios = [
            slow / quick
            for slow, quick in zip(seconds["straightforward"], seconds["ours"], strict=True)
        ]
        result["with uncertainty" if doubt else "depth"] = {
            "frames_a_second": {
                name: round(len(reader) / statistics.median(each), 2)
                for name, each in seconds.items()
            },
            "times_as_fast": round(statistics.median(ratios), 2),
            "times_as_fast_of_rounds": [round(ratio, 2) for ratio in ratios],
        }
    return result


def main() -> None:
    """Make the shard, time both ways, write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    keep_freed_memory()  # for both ways, as the commands do it
    height, width = (int(n) for n in arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        answers = {}
        with ShardWriter(Path(scratch), "holdout") as writer:
            for index in range(arguments.frames):
                frame = made_frame(index, (height, width))
                writer.add(encode_frame(frame, None))
                answers[frame.key] = made_estimate(frame, index)
        reader = ShardReader(shard_paths(Path(scratch), "holdout"))
        result = header(torch.device("cpu")) | {
            "size": [height, width],
            "frames": arguments.frames,
            "rounds": arguments.rounds,
            "results": measure(reader, answers, arguments.rounds),
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
