"""Stage ``preprocess``: verified archives to filtered, checked shards and ``report.json``."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricgold.config import DatasetConfig, PreprocessConfig, ProfileConfig
from metricgold.data.dataset import SPLITS, DatasetError, FrameRef, Split
from metricgold.data.files import fresh_folder, read_json
from metricgold.data.registry import get_dataset
from metricgold.data.sample import Frame
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import EncodedFrame, encode_frame
from metricgold.files import write_json
from metricgold.progress import progress_bar
from metricgold.workspace import Workspace

MIN_RGB_RANGE = 10
"""Pictures whose values span less are blank."""
_CHUNK = 16
_PERCENTILES = (0, 1, 10, 25, 50, 75, 90, 99, 100)
_LOG_DEPTH_EDGES = np.linspace(np.log(1e-3), np.log(1e3), 1401)  # 1 % steps
_DAMAGED = "cannot be decoded"


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
    valid_ratio: float = 0.0
    depth_counts: NDArray[np.int64] | None = None


@dataclass
class _Tally:
    """What the report says of one split."""

    kept: int = 0
    scenes: set[str] = field(default_factory=set)
    rejected: Counter[str] = field(default_factory=Counter)
    valid_ratio_sum: float = 0.0
    depth_counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(_LOG_DEPTH_EDGES) - 1, np.int64)
    )

    def add(self, outcome: _Outcome) -> None:
        if outcome.frame is None or outcome.depth_counts is None:
            self.rejected[outcome.reason] += 1
            return
        self.kept += 1
        self.scenes.add(outcome.frame.scene)
        self.valid_ratio_sum += outcome.valid_ratio
        self.depth_counts += outcome.depth_counts

    def report(self) -> dict[str, Any]:
        return {
            "frames": self.kept,
            "scenes": len(self.scenes),
            "rejected": dict(sorted(self.rejected.items())),
            "mean_valid_ratio": round(self.valid_ratio_sum / max(1, self.kept), 6),
            "depth_percentiles_m": depth_percentiles(self.depth_counts),
        }


def run(config: ProfileConfig, workspace: Workspace, dataset: str) -> dict[str, Any]:
    """Write the shards of ``dataset`` and ``report.json``; returns the report.

    Raises:
        UserError: the download is missing or damaged, too many frames cannot be decoded,
            or no training frame is left.
    """
    manifest = read_json(workspace.raw(dataset) / "manifest.json", made_by="download")
    reader = get_dataset(dataset)
    settings = config.datasets[reader.name]
    folder = fresh_folder(workspace.shards(dataset))
    tallies: dict[Split, _Tally] = {split: _Tally() for split in SPLITS}
    if settings.enabled:
        refs = _index(reader.name, workspace.raw(dataset), settings)
        jobs = _jobs(reader.name, workspace.raw(dataset), refs, config)
        _write(jobs, len(refs), folder, config.preprocess.workers, tallies)
        _check(reader.name, tallies, settings)
    report: dict[str, Any] = {
        "dataset": dataset,
        "source": manifest["source"],
        "reason": "" if settings.enabled else "weight 0 in this profile",
        **{split: tally.report() for split, tally in tallies.items()},
    }
    write_json(folder / "report.json", report)
    counts = ", ".join(
        f"{t.kept} {s} ({sum(t.rejected.values())} left out)" for s, t in tallies.items()
    )
    print(f"{dataset}: {report['reason'] or counts}")
    return report


def _index(dataset: str, raw: Path, settings: DatasetConfig) -> list[FrameRef]:
    try:
        refs = get_dataset(dataset).index(raw, settings)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{dataset}: {error.filename} was not downloaded; check the mirror and run 'download'"
        ) from None
    if not refs:
        raise DatasetError(
            f"{dataset}: no frame found in {raw}; check datasets.{dataset}.include and exclude"
        )
    return sorted(refs, key=lambda ref: (ref.scene, ref.key))


def _jobs(dataset: str, raw: Path, refs: list[FrameRef], config: ProfileConfig) -> Iterator[_Job]:
    settings = config.datasets[dataset]  # type: ignore[index]
    for start in range(0, len(refs), _CHUNK):
        chunk = refs[start : start + _CHUNK]
        depth_max_m = config.codec.depth_max_m
        yield _Job(dataset, raw, chunk, settings, config.preprocess, depth_max_m)


def _write(
    jobs: Iterator[_Job], total: int, folder: Path, workers: int, tallies: dict[Split, _Tally]
) -> None:
    """Run the jobs in a pool and write what comes back in order, both splits side by side."""
    with (
        ShardWriter(folder, "train") as train,
        ShardWriter(folder, "holdout") as holdout,
        progress_bar(description="preprocessing", total=total, unit="frame") as bar,
    ):
        writers = {"train": train, "holdout": holdout}
        for outcome in itertools.chain.from_iterable(_outcomes(jobs, workers)):
            tallies[outcome.split].add(outcome)
            if outcome.frame is not None:
                writers[outcome.split].add(outcome.frame)
            bar.update()


def _outcomes(jobs: Iterator[_Job], workers: int) -> Iterator[list[_Outcome]]:
    """Results in order, with only a few jobs under way, so that memory stays small."""
    if workers == 1:
        yield from map(_process, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(_process, job) for job in itertools.islice(jobs, 4 * workers)]
        while waiting:
            done = waiting.pop(0).result()
            waiting += [pool.submit(_process, job) for job in itertools.islice(jobs, 1)]
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
            outcomes.append(_Outcome(ref.split, ref.key, None, _DAMAGED))
            continue
        reason = rejection(frame, job.preprocess)
        if reason:
            outcomes.append(_Outcome(ref.split, ref.key, None, reason))
            continue
        log_depth = np.log(frame.depth[frame.valid_mask])
        counts = np.histogram(log_depth, _LOG_DEPTH_EDGES)[0].astype(np.int64)
        encoded = encode_frame(frame, job.preprocess.rgb_quality)
        outcomes.append(_Outcome(ref.split, ref.key, encoded, "", frame.valid_ratio, counts))
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


def depth_percentiles(counts: NDArray[np.int64]) -> dict[str, float]:
    """Percentiles in metres (to 1 %) from counts over the log-depth bins; empty without counts."""
    if not counts.sum():
        return {}
    share = np.cumsum(counts) / counts.sum()
    centres = (_LOG_DEPTH_EDGES[:-1] + _LOG_DEPTH_EDGES[1:]) / 2
    first = np.flatnonzero(counts)[0]
    found = {}
    for percentile in _PERCENTILES:
        bin_index = max(first, int(np.searchsorted(share, percentile / 100 - 1e-12)))
        found[f"p{percentile}"] = round(float(np.exp(centres[bin_index])), 4)
    return found


def _check(dataset: str, tallies: dict[Split, _Tally], settings: DatasetConfig) -> None:
    damaged = sum(tally.rejected[_DAMAGED] for tally in tallies.values())
    seen = sum(t.kept + sum(t.rejected.values()) for t in tallies.values())
    if damaged > settings.max_missing_share * seen:
        raise DatasetError(
            f"{dataset}: {damaged} of {seen} frames cannot be decoded; max_missing_share allows "
            f"{settings.max_missing_share:.1%}, delete the archives and run 'download' again"
        )
    if not tallies["train"].kept:
        raise DatasetError(
            f"{dataset}: no training frame is left (of {seen}); loosen preprocess.min_valid_ratio "
            f"or datasets.{dataset}.holdout"
        )
