"""Archives to shards: decode, judge, encode and count frame after frame, in several processes."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metricgold import __version__
from metricgold.config import DatasetConfig, DatasetName, PreprocessConfig, ProfileConfig
from metricgold.data.dataset import SPLITS, DatasetError, FrameError, FrameRef, Split
from metricgold.data.registry import get_dataset
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import SCHEMA_VERSION, EncodedFrame, encode_frame
from metricgold.data.statistics import (
    FrameStatistics,
    SplitStatistics,
    depth_percentiles,
    measure,
)
from metricgold.progress import progress_bar

HARMLESS = {"weight", "mirrors", "train_size", "streaming", "max_missing_share"}
"""Settings of a dataset that do not change what becomes of its archives."""
DAMAGED = "cannot be decoded"
"""Begins the reason of every frame that is damaged; what of it is told after a colon."""
OTHER_SIZE = f"{DAMAGED}: not of the size of the scene's first frame"
MIN_RGB_RANGE = 10
"""Pictures whose values span less are blank."""
_ARCHIVES_NAMED = 4
"""Archives that a scene's provenance names; a hash over all of them stands beside."""
_CHUNK = 8
_EXAMPLES = 5
"""Keys of left-out frames that the report names for each reason."""


@dataclass(frozen=True)
class _Job:
    """A run of neighbouring frames for one worker call."""

    dataset: str
    raw: Path
    refs: list[FrameRef]
    settings: DatasetConfig
    preprocess: PreprocessConfig
    depth_max_m: float


@dataclass(frozen=True)
class _Outcome:
    """An encoded frame, or the reason why it is left out."""

    split: Split
    key: str
    frame: EncodedFrame | None
    reason: str = ""
    statistics: FrameStatistics | None = None


@dataclass
class Tally:
    """What the report says of one split."""

    kept: int = 0
    scenes: set[str] = field(default_factory=set)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    statistics: SplitStatistics = field(default_factory=SplitStatistics)

    def add(self, outcome: _Outcome) -> None:
        """Count one frame."""
        if outcome.frame is None or outcome.statistics is None:
            self.rejected[outcome.reason] += 1
            if self.rejected[outcome.reason] <= _EXAMPLES:
                self.examples.setdefault(outcome.reason, []).append(outcome.key)
            return
        self.kept += 1
        self.scenes.add(outcome.frame.scene)
        self.statistics.add(outcome.statistics)

    def merge(self, other: Tally) -> None:
        """Add what was counted of other frames, which come after these."""
        self.kept += other.kept
        self.scenes |= other.scenes
        self.rejected += other.rejected
        for reason, keys in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *keys][:_EXAMPLES]
        self.statistics.merge(other.statistics)

    def record(self) -> dict[str, Any]:
        """All of it, for JSON; the inverse of :meth:`from_record`."""
        statistics = {**vars(self.statistics)}
        statistics["depth_counts"] = self.statistics.depth_counts.tolist()
        return {**vars(self), "scenes": sorted(self.scenes), "statistics": statistics}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Tally:
        """The inverse of :meth:`record`."""
        statistics = dict(record["statistics"])
        statistics["sizes"] = Counter(statistics["sizes"])
        statistics["depth_counts"] = np.array(statistics["depth_counts"], np.int64)
        return cls(
            record["kept"],
            set(record["scenes"]),
            Counter(record["rejected"]),
            dict(record["examples"]),
            SplitStatistics(**statistics),
        )

    def report(self) -> dict[str, Any]:
        """The split's part of ``report.json``."""
        return {
            "frames": self.kept,
            "scenes": len(self.scenes),
            "rejected": dict(sorted(self.rejected.items())),
            "rejected_examples": dict(sorted(self.examples.items())),
            "mean_valid_ratio": round(sum(self.statistics.valid_ratio) / max(1, self.kept), 6),
            "depth_percentiles_m": depth_percentiles(self.statistics.depth_counts),
            **self.statistics.report(),
        }


def convert(
    config: ProfileConfig,
    dataset: DatasetName,
    raw: Path,
    folder: Path,
    pool: Executor | None,
    hashes: Mapping[str, str],
    show_progress: bool = True,
    part: tuple[int, int] = (0, 1),
) -> dict[Split, Tally]:
    """Write the shards of the archives in ``raw`` into ``folder``; returns what was counted.

    ``hashes`` are the SHA-256 of the archives by their paths, for the scenes' provenance.
    ``part`` (k, n): only the scenes whose first frame is in the k-th (from 0) of n equal shares.

    Without a pool everything is done in this process. Memory does not grow with the number of
    frames: only a few jobs are under way.

    Raises:
        DatasetError: an archive is missing, or the frames do not fit the configuration.
    """
    refs = _share(_index(dataset, raw, config.datasets[dataset]), *part)
    tallies: dict[Split, Tally] = {split: Tally() for split in SPLITS}
    sizes: dict[str, tuple[int, ...]] = {}
    provenance = _provenance(config, dataset, refs, hashes)
    with (
        ShardWriter(folder, "train", provenance=provenance) as train,
        ShardWriter(folder, "holdout", provenance=provenance) as holdout,
        progress_bar(
            description="preprocessing", total=len(refs), unit="frame", disable=not show_progress
        ) as bar,
    ):
        writers = {"train": train, "holdout": holdout}
        jobs = _jobs(dataset, raw, refs, config)
        for outcome in itertools.chain.from_iterable(
            _outcomes(jobs, pool, 3 * config.preprocess.workers)
        ):
            if outcome.frame is not None:  # a scene's frames are stored in one array
                shape = outcome.frame.depth.shape
                if sizes.setdefault(outcome.frame.scene, shape) != shape:
                    outcome = _Outcome(outcome.split, outcome.key, None, OTHER_SIZE)
            tallies[outcome.split].add(outcome)
            if outcome.frame is not None:
                writers[outcome.split].add(outcome.frame)
            bar.update()
    return tallies


def settings_that_matter(config: ProfileConfig, dataset: DatasetName) -> list[Any]:
    """All settings that decide what becomes of archives, for a hash."""
    return [
        SCHEMA_VERSION,
        config.datasets[dataset].model_dump(mode="json", exclude=HARMLESS),
        config.preprocess.model_dump(mode="json", exclude={"workers"}),
        config.codec.model_dump(mode="json"),
    ]


def _provenance(
    config: ProfileConfig,
    dataset: DatasetName,
    refs: list[FrameRef],
    hashes: Mapping[str, str],
) -> Callable[[str], dict[str, Any]]:
    """What a scene's shard says of where it comes from."""
    archives: dict[str, set[str]] = {}
    for ref in refs:
        archives.setdefault(ref.scene, set()).update((ref.rgb.archive, ref.depth.archive))
    settings = config.datasets[dataset]
    procedural = settings.procedural is not None

    def of(scene: str) -> dict[str, Any]:
        """As it is written."""
        lines = [f"{hashes.get(path, '')}  {path}" for path in sorted(archives[scene])]
        return {
            "dataset": dataset,
            "licence": "" if procedural else get_dataset(dataset).licence,
            "archives": lines[:_ARCHIVES_NAMED],
            "archives_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "crop": settings.crop,
            "rgb_quality": config.preprocess.rgb_quality,
            "depth_max_m": config.codec.depth_max_m,
            "metricgold": __version__,
        }

    return of


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    """Processes that convert frames; none for one worker, which needs no other process."""
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield pool


def _index(dataset: str, raw: Path, settings: DatasetConfig) -> list[FrameRef]:
    try:
        refs = get_dataset(dataset).index(raw, settings)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{dataset}: {error.filename} was not downloaded; check the mirror and run 'download'"
        ) from None
    return sorted(refs, key=lambda ref: (ref.scene, ref.key))


def _share(refs: list[FrameRef], number: int, of: int) -> list[FrameRef]:
    """Of frames in the order of their scenes, whole scenes that begin in one of equal shares."""
    first: dict[str, int] = {}
    for position, ref in enumerate(refs):
        first.setdefault(ref.scene, position)
    return [ref for ref in refs if first[ref.scene] * of // len(refs) == number]


def _jobs(dataset: str, raw: Path, refs: list[FrameRef], config: ProfileConfig) -> Iterator[_Job]:
    settings = config.datasets[dataset]  # type: ignore[index]
    for start in range(0, len(refs), _CHUNK):
        chunk = refs[start : start + _CHUNK]
        depth_max_m = config.codec.depth_max_m
        yield _Job(dataset, raw, chunk, settings, config.preprocess, depth_max_m)


def _outcomes(
    jobs: Iterator[_Job], pool: Executor | None, under_way: int
) -> Iterator[list[_Outcome]]:
    """Results in order, with only ``under_way`` jobs begun or waiting to be written."""
    if pool is None:
        yield from map(_process, jobs)
        return
    waiting = deque(pool.submit(_process, job) for job in itertools.islice(jobs, under_way))
    while waiting:
        done = waiting.popleft().result()
        waiting.extend(pool.submit(_process, job) for job in itertools.islice(jobs, 1))
        yield done


def _process(job: _Job) -> list[_Outcome]:
    """Decode, judge and encode a run of frames; runs in a worker process."""
    reader = get_dataset(job.dataset)
    outcomes = []
    for ref in job.refs:
        try:
            frame = reader.read(job.raw, ref, job.settings, job.depth_max_m)
        except DatasetError as error:
            if error.__cause__ is None:  # not the frame's fault: the configuration is wrong
                raise
            kind = error.kind if isinstance(error, FrameError) else ""
            reason = f"{DAMAGED}: {kind}" if kind else DAMAGED
            outcomes.append(_Outcome(ref.split, ref.key, None, reason))
            continue
        reason = rejection(frame, job.preprocess)
        if reason:
            outcomes.append(_Outcome(ref.split, ref.key, None, reason))
            continue
        encoded = encode_frame(frame, job.preprocess.rgb_quality)
        _ = encoded.crc32  # computed here, not in the process that writes
        outcomes.append(_Outcome(ref.split, ref.key, encoded, statistics=measure(encoded)))
    return outcomes


def rejection(frame: Frame, config: PreprocessConfig) -> str:
    """Why a frame is of no use, or an empty string."""
    if frame.valid_ratio < max(config.min_valid_ratio, 1e-9):
        return "too few valid pixels"
    depth = frame.depth[frame.valid_mask]
    if float(depth.max() - depth.min()) < config.min_depth_range_m:
        return "depth range too small"
    if int(frame.rgb.max()) - int(frame.rgb.min()) < MIN_RGB_RANGE:
        return "picture is blank"
    return ""
