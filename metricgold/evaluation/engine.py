"""Frames past several models, once: reading, predicting and measuring at the same time.

A thread reads ahead, this one predicts, others measure; few frames are in memory at a time,
however many there are. What is kept of a frame are its name and its figures.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from metricgold.data.sample import Frame
from metricgold.errors import UserError
from metricgold.evaluation.figures import Score, Truth, check, score
from metricgold.evaluation.metrics import bootstrap_interval
from metricgold.evaluation.predictors import Estimate, Invariance, Observation, Predictor
from metricgold.evaluation.ranges import DEPTH_BINS, EDGE_DISTANCES_PX, Binned
from metricgold.evaluation.temporal import temporal_error
from metricgold.progress import progress_bar

BATCH_PIXELS = 2**18
MAX_BATCH = 16
READ_AHEAD = 4
TEMPORAL = "temporal_error"
_Item = TypeVar("_Item")


class EvaluationError(UserError):
    """Nothing can be evaluated; the message says what is missing and what to run."""


class Scores:
    """Figures of one model: a number for every frame and name, and errors by kind of pixel.

    Attributes:
        invariance: of the model.
        by_depth, by_edge: over all pixels of all frames.
    """

    def __init__(self, invariance: Invariance) -> None:
        self.invariance = invariance
        self.by_depth, self.by_edge = Binned(len(DEPTH_BINS)), Binned(len(EDGE_DISTANCES_PX))
        self._columns: dict[str, array[float]] = {}
        self._frames = 0

    @property
    def names(self) -> list[str]:
        """Of the figures."""
        return list(self._columns)

    def add(self, frame_score: Score) -> None:
        """Count one frame; a figure it has not is NaN there."""
        for name in frame_score.figures:
            if name not in self._columns:
                self._columns[name] = array("d", [np.nan] * self._frames)
        for name, column in self._columns.items():
            column.append(frame_score.figures.get(name, np.nan))
        self.by_depth.add(frame_score.by_depth)
        self.by_edge.add(frame_score.by_edge)
        self._frames += 1

    def column(self, name: str) -> NDArray[np.float64]:
        """A figure of every frame; NaN where a frame has none."""
        return np.array(self._columns[name])

    def rows(self) -> list[dict[str, float]]:
        """All figures of each frame."""
        columns = [column.tolist() for column in self._columns.values()]
        return [dict(zip(self.names, v, strict=True)) for v in zip(*columns, strict=True)]

    def mean(self, name: str) -> float:
        """Of the frames that have the figure, each counting the same."""
        return float(np.nanmean(self.column(name)))

    def means(self) -> dict[str, float]:
        """The mean of every figure."""
        return {name: self.mean(name) for name in self._columns}


@dataclass
class Evaluation:
    """Several models on the same frames.

    Attributes:
        indices, keys, scenes: of the evaluated frames, in order.
        scores: by the model's name.
    """

    scores: dict[str, Scores]
    indices: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    scenes: list[str] = field(default_factory=list)

    def interval(self, model: str, name: str, seed: int) -> tuple[float, float]:
        """95 % bootstrap interval of a mean figure, whole scenes drawn."""
        return self._interval(self.scores[model].column(name), seed)

    def difference(
        self, model: str, other: str, name: str, seed: int
    ) -> tuple[float, float, float]:
        """Mean of ``model`` less that of ``other`` and its interval, paired by frame."""
        values = self.scores[model].column(name) - self.scores[other].column(name)
        return float(np.nanmean(values)), *self._interval(values, seed)

    def _interval(self, values: NDArray[np.float64], seed: int) -> tuple[float, float]:
        known = np.isfinite(values)
        scenes = [s for s, there in zip(self.scenes, known, strict=True) if there]
        return bootstrap_interval(values[known].tolist(), scenes, seed=seed)


@dataclass(frozen=True)
class FrameScores:
    """What every model, by name, got for one frame."""

    index: int
    key: str
    scene: str
    scores: dict[str, Score]


def evaluate(
    frames: Sequence[Frame],
    chosen: Sequence[int],
    predictors: Mapping[str, Predictor],
    depth_range_m: tuple[float, float],
    *,
    sequences: bool = False,
    workers: int | None = None,
) -> Evaluation:
    """Figures of every predictor for every chosen frame; frames without truth are left out.

    Args:
        frames: of which each is read once, by another thread.
        chosen: which, in order.
        depth_range_m: true depth outside is not evaluated.
        sequences: frames that follow each other in a scene also get :data:`TEMPORAL`.
        workers: threads that measure; default as many as there are cores.

    Raises:
        EvaluationError: an estimate is not what it should be, or no frame has a true depth.
    """
    scored = score_frames(
        frames, chosen, predictors, depth_range_m, sequences=sequences, workers=workers
    )
    return gathered(scored, predictors, len(chosen), depth_range_m)


def gathered(
    scored: Iterable[FrameScores],
    predictors: Mapping[str, Predictor],
    asked: int,
    depth_range_m: tuple[float, float],
) -> Evaluation:
    """What was found of frames, in order; ``asked`` is how many there were.

    Raises:
        EvaluationError: no frame has a true depth.
    """
    found = Evaluation({name: Scores(p.invariance) for name, p in predictors.items()})
    for frame in scored:
        found.indices.append(frame.index)
        found.keys.append(frame.key)
        found.scenes.append(frame.scene)
        for name, one in frame.scores.items():
            found.scores[name].add(one)
    if not found.keys:
        low, high = depth_range_m
        raise EvaluationError(
            f"none of the {asked} frames has a true depth between {low:g} and {high:g} m"
        )
    return found


def score_frames(
    frames: Sequence[Frame],
    chosen: Sequence[int],
    predictors: Mapping[str, Predictor],
    depth_range_m: tuple[float, float],
    *,
    sequences: bool = False,
    workers: int | None = None,
    show_progress: bool = True,
) -> Iterator[FrameScores]:
    """Of each frame with a true depth, in order, as :func:`evaluate` does it."""
    workers = workers or os.cpu_count() or 1
    pending: deque[tuple[int, Frame, Future[dict[str, Score] | None]]] = deque()

    def finished(most: int) -> Iterator[FrameScores]:
        while len(pending) > most:
            index, frame, future = pending.popleft()
            bar.update()
            if (scores := future.result()) is not None:
                yield FrameScores(index, frame.key, frame.scene, scores)

    previous: _Measured | None = None
    with (
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(workers, "measure") as pool,
        progress_bar(
            description="evaluate", total=len(chosen), unit="frame", disable=not show_progress
        ) as bar,
    ):
        try:
            for batch in batches(_read_ahead(frames, chosen, reader)):
                estimates = _estimates(predictors, [frame for _, frame in batch])
                for position, (index, frame) in enumerate(batch):
                    own = {name: each[position] for name, each in estimates.items()}
                    measured = _Measured(index, frame, own)
                    before = previous if sequences else None
                    future = pool.submit(_measure, measured, before, predictors, depth_range_m)
                    pending.append((index, frame, future))
                    previous = measured
                    yield from finished(2 * workers)
            yield from finished(0)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def batches(frames: Iterator[tuple[int, Frame]]) -> Iterator[list[tuple[int, Frame]]]:
    """Consecutive (index, frame) of equal size together, bounded in pixels and in number."""
    return of_one_size(frames, lambda numbered: numbered[1].depth.shape)


def of_one_size(
    items: Iterable[_Item], size_of: Callable[[_Item], tuple[int, ...]]
) -> Iterator[list[_Item]]:
    """The batches of whatever has a size [H, W]."""
    batch: list[_Item] = []
    shape: tuple[int, ...] = ()
    for item in items:
        size = size_of(item)
        if batch:
            most = max(1, min(MAX_BATCH, BATCH_PIXELS // (shape[0] * shape[1])))
            if len(batch) >= most or size != shape:
                yield batch
                batch = []
        batch.append(item)
        shape = size
    if batch:
        yield batch


def _read_ahead(
    frames: Sequence[Frame], chosen: Sequence[int], reader: ThreadPoolExecutor
) -> Iterator[tuple[int, Frame]]:
    waiting: deque[tuple[int, Future[Frame]]] = deque()
    rest = iter(chosen)
    while True:
        while len(waiting) < READ_AHEAD and (index := next(rest, None)) is not None:
            waiting.append((index, reader.submit(frames.__getitem__, index)))
        if not waiting:
            return
        index, future = waiting.popleft()
        yield index, future.result()


def _estimates(
    predictors: Mapping[str, Predictor], frames: Sequence[Frame]
) -> dict[str, list[Estimate]]:
    shown = [Observation(f.key, f.rgb, f.intrinsics) for f in frames]
    found = {}
    for name, predictor in predictors.items():
        try:
            found[name] = predictor.predict(shown)
        except UserError as error:
            raise EvaluationError(f"{name}: {error}") from None
        if len(found[name]) != len(shown):
            raise EvaluationError(
                f"{name}: {len(found[name])} estimates for {len(shown)} pictures, the first "
                f"{shown[0].key}"
            )
    return found


@dataclass(frozen=True)
class _Measured:
    index: int
    frame: Frame
    estimates: dict[str, Estimate]

    def follows(self, other: _Measured) -> bool:
        """Whether it is the next frame of the same sequence."""
        same = self.frame.scene == other.frame.scene
        return same and self.index == other.index + 1 and self.shape == other.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """[H, W]."""
        return self.frame.depth.shape


def _measure(
    this: _Measured,
    before: _Measured | None,
    predictors: Mapping[str, Predictor],
    depth_range_m: tuple[float, float],
) -> dict[str, Score] | None:
    """By model; None for a frame without truth."""
    truth = Truth(this.frame, depth_range_m)
    if truth.empty:
        return None
    scores = {}
    for name, estimate in this.estimates.items():
        invariance = predictors[name].invariance
        if wrong := check(estimate, truth, invariance):
            raise EvaluationError(f"{name}: {this.frame.key}: {wrong}")
        scores[name] = score(truth, estimate, invariance)
    if before is not None and this.follows(before):
        earlier = Truth(before.frame, depth_range_m)
        if (earlier.mask & truth.mask).any():
            masks = np.stack([earlier.mask, truth.mask])
            truths = np.stack([before.frame.depth, this.frame.depth])
            for name, estimate in this.estimates.items():
                if predictors[name].invariance is Invariance.METRIC:
                    both = np.stack([before.estimates[name].depth, estimate.depth])
                    error = temporal_error(both, truths, masks)
                    scores[name].figures[TEMPORAL] = error
    return scores
