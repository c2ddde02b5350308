"""An evaluation set from its native files to lossless holdout shards and ``report.json``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricgold import __version__
from metricgold.config import DownloadConfig
from metricgold.data.archives import close_archives, read_part
from metricgold.data.dataset import DatasetError, Part
from metricgold.data.evaluation_sets.base import EvaluationRef, EvaluationSet
from metricgold.data.evaluation_sets.registry import get_evaluation_set
from metricgold.data.evaluation_sets.sources import RawFiles, check_disk, obtain, shard_bytes
from metricgold.data.files import human_bytes, sha256_of
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import SCHEMA_VERSION, encode_frame
from metricgold.data.statistics import SplitStatistics, depth_percentiles, measure
from metricgold.errors import UserError
from metricgold.files import replaced_folder, write_json
from metricgold.progress import progress_bar

MAX_BAD_SHARE = 0.01
"""Share of the official frames that may be missing or damaged."""
REPORT_SCHEMA = 1


def prepare(
    name: str, source: str | None, out: Path, download: DownloadConfig, partial: bool = False
) -> dict[str, Any]:
    """Write the shards of evaluation set ``name`` into ``out``; returns the report.

    ``out`` appears only when everything is done. Downloads stay in a folder beside it, whose
    name is printed, so that a rerun fetches only what is not there.

    Args:
        source: None for the publisher's addresses, else a base URL or a folder.
        partial: accept that more than 1 % of the official frames are missing.

    Raises:
        UserError: the name is unknown, files cannot be had, more than 1 % of the frames are
            damaged or (without ``partial``) missing, or ``out`` holds something else.
    """
    member = get_evaluation_set(name)
    check_out(out)
    scratch = out.with_name(f".{out.name}.work")
    try:
        raw = obtain(member, source, scratch, download)
        refs = member.frames(raw.folder)
        outcome = _Outcome(member, refs)
        outcome.check_missing(raw, partial)
        present = [ref for ref in refs if not ref.missing]
        needed = shard_bytes(member, len(present))
        print(f"{name}: {len(present)} frames, about {human_bytes(needed)} of shards")
        check_disk(name, out, needed)
        with replaced_folder(out) as folder:
            _write(outcome, raw.folder, present, folder)
            outcome.check_damaged()
            report = outcome.report(source, raw)
            write_json(folder / "report.json", report)
    finally:
        close_archives()
    print(f"{name}: wrote {out} ({report['frames']} of {report['expected_frames']} frames)")
    if scratch.exists():
        print(f"{name}: {scratch} keeps what was downloaded or unpacked; delete it when done")
    return report


def check_out(out: Path) -> None:
    """Refuse to replace anything but an earlier result.

    Raises:
        UserError: ``out`` is a file, or a folder with other things in it.
    """
    if out.is_dir():
        try:
            earlier = "evaluation_set" in json.loads((out / "report.json").read_text("utf-8"))
        except (OSError, ValueError):
            earlier = not any(out.iterdir())
        if earlier:
            return
    if out.exists():
        raise UserError(f"{out}: exists and is no prepared evaluation set; name another --out")


@dataclass
class _Outcome:
    """What became of the official frames."""

    member: EvaluationSet
    refs: list[EvaluationRef]
    scenes: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    kept: int = 0
    statistics: SplitStatistics = field(default_factory=SplitStatistics)
    hashes: dict[Part, str] = field(default_factory=dict)

    @property
    def expected(self) -> int:
        """Number of official frames."""
        known = len(self.refs)
        return known if self.member.lists_all else max(known, self.member.expected_frames)

    @property
    def missing(self) -> dict[str, str]:
        """Key to the first missing file, of frames that are known by name."""
        return {ref.key: ref.missing[0] for ref in self.refs if ref.missing}

    @property
    def missing_count(self) -> int:
        """Missing frames, those without a name included."""
        return len(self.missing) + self.expected - len(self.refs)

    def check_missing(self, raw: RawFiles, partial: bool) -> None:
        """Print what is missing; refuse too much of it."""
        count, expected, name = self.missing_count, self.expected, self.member.name
        if count == expected:
            example = next(iter(self.missing.values()), "no frame was found")
            raise DatasetError(
                f"{name}: none of the {expected} frames is in {raw.folder} (first missing: "
                f"{example}); {self.member.supply or 'name the folder that holds its files'}"
            )
        if not count:
            return
        first = next(iter(self.missing.values()), "not known by name")
        told = f"{name}: {count} of {expected} frames are missing, the first: {first}"
        if count > MAX_BAD_SHARE * expected and not partial:
            raise DatasetError(
                f"{told}; more than {MAX_BAD_SHARE:.0%} makes figures incomparable, fetch them or "
                "add --partial"
            )
        print(told)

    def check_damaged(self) -> None:
        """Refuse too many damaged frames, and a result without frames."""
        seen = self.kept + len(self.empty) + len(self.damaged)
        if self.damaged and (len(self.damaged) > MAX_BAD_SHARE * seen or not self.kept):
            first = next(iter(self.damaged.values()))
            raise DatasetError(
                f"{self.member.name}: {len(self.damaged)} of {seen} frames are damaged, more than "
                f"{MAX_BAD_SHARE:.0%}; the first: {first}"
            )
        if not self.kept:
            raise DatasetError(f"{self.member.name}: no frame has a pixel inside its mask")

    def report(self, source: str | None, raw: RawFiles) -> dict[str, Any]:
        """``report.json``."""
        member = self.member
        everything = hashlib.sha256("\n".join(sorted(self.hashes.values())).encode()).hexdigest()
        return {
            "schema": REPORT_SCHEMA,
            "shard_schema": SCHEMA_VERSION,
            "evaluation_set": member.name,
            "licence": member.licence,
            "homepage": member.homepage,
            "citation": member.citation,
            "source": source or "publisher",
            "depth_range_m": list(member.depth_range_m),
            "complete": self.kept == self.expected,
            "expected_frames": self.expected,
            "frames": self.kept,
            "scenes": len(self.scenes),
            "missing": {"count": self.missing_count, "frames": self.missing},
            "rejected": {
                "damaged": {"count": len(self.damaged), "frames": self.damaged},
                "no valid pixel": {"count": len(self.empty), "frames": self.empty},
            },
            "depth_percentiles_m": depth_percentiles(self.statistics.depth_counts),
            **self.statistics.report(),
            "inputs": {
                "files": len(self.hashes),
                "sha256_of_sha256s": everything,
                "archives": raw.archives,
            },
        }


def _write(outcome: _Outcome, raw: Path, refs: list[EvaluationRef], folder: Path) -> None:
    """Read, judge and store every frame; damaged ones are named as they are met."""
    sizes: dict[str, tuple[int, ...]] = {}
    member = outcome.member
    provenance = {"dataset": member.name, "licence": member.licence, "metricgold": __version__}
    with (
        ShardWriter(folder, "holdout", provenance=lambda _: provenance) as writer,
        progress_bar(description=outcome.member.name, total=len(refs), unit="frame") as bar,
    ):
        for ref in refs:
            bar.update()
            try:
                frame = outcome.member.read(raw, ref)
                if frame.depth.shape != sizes.setdefault(ref.scene, frame.depth.shape):
                    raise DatasetError(
                        f"frame {ref.key}: {frame.depth.shape} px, others of its scene are "
                        f"{sizes[ref.scene]}"
                    )
            except DatasetError as error:
                outcome.damaged[ref.key] = str(error)
                bar.write(f"damaged: {error}")
                continue
            _hash(raw, ref, outcome.hashes)
            if not frame.valid_mask.any():
                outcome.empty.append(ref.key)
                continue
            encoded = encode_frame(frame, None)
            writer.add(encoded)
            outcome.statistics.add(measure(encoded))
            outcome.scenes.add(ref.scene)
            outcome.kept += 1


def _hash(raw: Path, ref: EvaluationRef, hashes: dict[Part, str]) -> None:
    """SHA-256 of the frame's files that were not hashed before."""
    for part in ref.parts.values():
        if part not in hashes:
            inside = bool(part.member)
            digest = hashlib.sha256(read_part(raw, part)).hexdigest() if inside else None
            hashes[part] = digest or sha256_of(raw / part.archive)
