"""Preprocessing in pieces: some archives of a dataset to shards and a record, on any machine.

A piece is the archives of a few groups (``Dataset.group_of``), or a share of the scenes of one
large group. Whoever asked puts the pieces' frames together, in order, into the very shards and
report that one machine alone would have written.
"""

from __future__ import annotations

import itertools
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricgold.config import DatasetName, ProfileConfig
from metricgold.data.budget import grouped
from metricgold.data.conversion import Tally, convert, settings_that_matter
from metricgold.data.dataset import SPLITS, Dataset, DatasetError, Split
from metricgold.data.files import sha256_of
from metricgold.data.registry import get_dataset
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.places import Place
from metricgold.progress import progress_bar
from metricgold.spread import Record, Spread, check_code, code_hash, done_once, hashed


@dataclass(frozen=True)
class PieceFile:
    """An archive, or a small file that every piece needs; ``place`` is where machines find it."""

    path: str
    place: Place
    size: int
    sha256: str


@dataclass(frozen=True)
class Piece:
    """One task.

    Attributes:
        name: of its record in ``folder``.
        part: (k, n), the k-th of n shares of the scenes in ``files``.
        code: hash of the code that must do it.
    """

    name: str
    config: ProfileConfig
    dataset: DatasetName
    files: tuple[PieceFile, ...]
    part: tuple[int, int]
    folder: Place
    code: str


def cut(
    reader: Dataset, files: Sequence[PieceFile], piece_bytes: int, divisible: bool
) -> list[tuple[tuple[PieceFile, ...], tuple[int, int]]]:
    """(files, share) of each piece, in the order of their scenes.

    Args:
        divisible: a group larger than ``piece_bytes`` is shared out; each of its pieces needs all
            of its files, so this is for machines that need not fetch them.
    """
    common = tuple(file for file in files if reader.group_of(file.path) is None)
    pieces: list[tuple[tuple[PieceFile, ...], tuple[int, int]]] = []
    gathered: list[PieceFile] = []
    for group in grouped(reader, files).values():
        size = sum(file.size for file in group)
        if gathered and sum(file.size for file in gathered) + size > piece_bytes:
            pieces.append((common + tuple(gathered), (0, 1)))
            gathered = []
        shares = max(1, round(size / piece_bytes)) if divisible else 1
        if shares > 1:
            pieces += [(common + tuple(group), (number, shares)) for number in range(shares)]
        else:
            gathered += group
    if gathered:
        pieces.append((common + tuple(gathered), (0, 1)))
    return pieces


def make_piece(piece: Piece) -> Record:
    """Convert a piece, unless its record is there; returns the record.

    Raises:
        UserError: an archive is not what it should be, or this machine runs other code.
    """
    check_code(piece.code)
    return done_once(piece.folder, piece.name, lambda folder: _convert_piece(piece, folder))


def _convert_piece(piece: Piece, folder: Path) -> Record:
    with tempfile.TemporaryDirectory(prefix="metricgold-raw-") as scratch:
        raw = Path(scratch)
        for file in piece.files:
            _bring(file, raw / file.path)
        first = piece.part[0] == 0
        warnings = get_dataset(piece.dataset).findings(raw) if first else []
        hashes = {file.path: file.sha256 for file in piece.files}
        tallies = convert(piece.config, piece.dataset, raw, folder, None, hashes, False, piece.part)
    frames = sum(tally.kept for tally in tallies.values())
    print(f"{piece.dataset}, piece {piece.name}: {frames} frames, on {platform.node()}")
    return {
        "warnings": warnings,
        "shards": {split: [p.name for p in shard_paths(folder, split)] for split in SPLITS},
        "tallies": {split: tally.record() for split, tally in tallies.items()},
    }


def _bring(file: PieceFile, target: Path) -> None:
    """A file where the dataset's reader looks for it: a link where it is here, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    local = file.place.local
    if local is not None:
        if not local.is_file():
            raise DatasetError(
                f"{local}: not on {platform.node()}; machines that share no file system need "
                "a place that all of them reach (orchestration.shared)"
            )
        target.symlink_to(local)
        return
    file.place.get(target)
    if sha256_of(target) != file.sha256:
        raise DatasetError(f"{file.place}: damaged, its SHA-256 is not the expected one")


def convert_spread(
    config: ProfileConfig,
    dataset: DatasetName,
    manifest: Mapping[str, Any],
    raw: Place,
    folder: Path,
    spread: Spread,
) -> tuple[dict[Split, Tally], list[str]]:
    """:func:`metricgold.data.conversion.convert` by other machines: the same files in ``folder``.

    A piece whose record is in ``spread.shared`` is not done again; when all is put together,
    nothing is left there.

    Args:
        manifest: of the stage ``download``.
        raw: the folder that it describes.

    Returns:
        What was counted, and what looks wrong with the data (``Dataset.findings``).

    Raises:
        UserError: as there, or a machine failed.
    """
    entries = [(e["path"], e["size"], e["sha256"]) for e in manifest["files"]]
    divisible = raw.local is not None and spread.one_file_system
    settings = settings_that_matter(config, dataset)
    stamp = hashed([settings, entries, code_hash(), spread.piece_bytes, divisible])[:16]
    name = f"preprocess-{dataset}-{stamp}"
    made = spread.shared.absolute / name
    files = [
        PieceFile(path, spread.reachable(raw / path, f"{name}/raw/{path}"), size, sha256)
        for path, size, sha256 in entries
    ]
    pieces = [
        Piece(f"{number:05d}", config, dataset, needed, part, made, code_hash())
        for number, (needed, part) in enumerate(
            cut(get_dataset(dataset), files, spread.piece_bytes, divisible)
        )
    ]
    with _Assembly(folder, made, len(pieces)) as assembly:
        spread.map(make_piece, pieces, assembly.take)
    made.remove()
    return assembly.tallies, assembly.warnings


class _Assembly:
    """Writes the frames of pieces, which come in order, into the shards of the whole."""

    def __init__(self, folder: Path, made: Place, pieces: int) -> None:
        self.tallies: dict[Split, Tally] = {split: Tally() for split in SPLITS}
        self.warnings: list[str] = []
        self._made = made
        self._number = itertools.count()
        self._provenance: dict[str, dict[str, Any]] = {}
        self._writers: dict[Split, ShardWriter] = {
            split: ShardWriter(folder, split, provenance=self._provenance.__getitem__)
            for split in SPLITS
        }
        self._open = ExitStack()
        self._bar = progress_bar(description="preprocessing", total=pieces, unit="piece")

    def __enter__(self) -> _Assembly:
        for context in (self._bar, *self._writers.values()):
            self._open.enter_context(context)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def take(self, record: Record) -> None:
        """Add the next piece."""
        piece = self._made / f"{next(self._number):05d}"
        self.warnings += record["warnings"]
        for split in SPLITS:
            self.tallies[split].merge(Tally.from_record(record["tallies"][split]))
            for shard in record["shards"][split]:
                with (piece / shard).at_hand() as path:
                    self._add(path, self._writers[split])
        self._bar.update()

    def _add(self, path: Path, writer: ShardWriter) -> None:
        reader = ShardReader([path])
        for index in range(len(reader)):
            frame = reader.encoded(index)
            if frame.scene not in self._provenance:
                self._provenance[frame.scene] = reader.provenance(index)
            writer.add(frame)
        reader.close()
