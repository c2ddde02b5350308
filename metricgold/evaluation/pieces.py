"""Evaluation in pieces: some frames of a set to what every model got for each, on any machine.

Pieces consist of whole batches, since a network's last digits may depend on what else is in the
batch. Whoever asked puts the frames' figures together in order, as if it had measured them.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from metricgold.data.files import sha256_of
from metricgold.data.shards import ShardReader
from metricgold.evaluation.engine import (
    Evaluation,
    FrameScores,
    gathered,
    of_one_size,
    score_frames,
)
from metricgold.evaluation.figures import Score
from metricgold.evaluation.predictors import Predictor
from metricgold.evaluation.ranges import Binned
from metricgold.places import Place
from metricgold.progress import progress_bar
from metricgold.spread import Record, Spread, check_code, code_hash, done_once, hashed

MakePredictors = Callable[[Path], Mapping[str, Predictor]]
"""From the folder of a checkpoint; it is sent to other machines, so it must be one to pickle."""
_opened = threading.local()


@dataclass(frozen=True)
class Piece:
    """One task.

    Attributes:
        name: of its record in ``folder``.
        shards: the shards that its frames are in.
        first: number in the whole set of the first frame of these shards.
        indices: of the frames, in the whole set.
        model: path in the checkpoint, and place, of every file of it.
        stamp: hash of model, frames and settings.
        code: hash of the code that must do it.
    """

    name: str
    shards: tuple[Place, ...]
    first: int
    indices: tuple[int, ...]
    model: tuple[tuple[str, Place], ...]
    make_predictors: MakePredictors
    depth_range_m: tuple[float, float]
    folder: Place
    stamp: str
    code: str


def evaluate_piece(piece: Piece) -> Record:
    """Evaluate a piece, unless its record is there; returns the record.

    Raises:
        UserError: as :func:`metricgold.evaluation.engine.evaluate`, or this machine runs other
            code.
    """
    check_code(piece.code)
    return done_once(piece.folder, piece.name, lambda folder: _measure_piece(piece))


def _measure_piece(piece: Piece) -> Record:
    with ExitStack() as stack:
        paths = [stack.enter_context(place.at_hand()) for place in piece.shards]
        reader = ShardReader(paths)
        stack.callback(reader.close)
        scored = score_frames(
            reader,
            [index - piece.first for index in piece.indices],
            _predictors(piece),
            piece.depth_range_m,
            show_progress=False,
        )
        frames = [_to_record(frame, piece.first) for frame in scored]
    print(f"piece {piece.name}: {len(frames)} frames, on {platform.node()}")
    return {"frames": frames}


def _predictors(piece: Piece) -> Mapping[str, Predictor]:
    """Those of the piece; a thread opens them once, and none shares its own with another."""
    if getattr(_opened, "stamp", None) != piece.stamp:
        with TemporaryDirectory(prefix="metricgold-model-") as scratch:
            folder = Path(scratch)
            for path, place in piece.model:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if place.local is not None:
                    target.symlink_to(place.local)
                else:
                    place.get(target)
            _opened.predictors, _opened.stamp = piece.make_predictors(folder), piece.stamp
    return dict(_opened.predictors)


def _to_record(frame: FrameScores, first: int) -> Record:
    scores = {
        name: [score.figures, score.by_depth.sums.tolist(), score.by_edge.sums.tolist()]
        for name, score in frame.scores.items()
    }
    return {
        "index": frame.index + first,
        "key": frame.key,
        "scene": frame.scene,
        "scores": scores,
    }


def _from_record(record: Mapping[str, Any]) -> FrameScores:
    scores = {
        name: Score(figures, _binned(by_depth), _binned(by_edge))
        for name, (figures, by_depth, by_edge) in record["scores"].items()
    }
    return FrameScores(record["index"], record["key"], record["scene"], scores)


def _binned(sums: list[list[float]]) -> Binned:
    made = Binned(len(sums[0]))
    made.sums[:] = np.array(sums)
    return made


def cut(
    paths: Sequence[Path], chosen: Sequence[int], most: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """(frames, numbers of the shards that they are in) of each piece, in order.

    Args:
        most: frames after which a piece ends with its batch; None: pieces end where a shard does,
            for machines that must fetch whole shards.
    """
    reader = ShardReader(paths)
    ends = list(accumulate(len(ShardReader([path])) for path in paths))
    sizes: dict[str, tuple[int, ...]] = {}

    def size_of(index: int) -> tuple[int, ...]:
        """The frames of a scene have one size."""
        scene = reader.scene_of(index)
        if scene not in sizes:
            sizes[scene] = reader.encoded(index).depth.shape
        return sizes[scene]

    def shard_of(index: int) -> int:
        return int(np.searchsorted(ends, index, "right"))

    piece: list[int] = []
    for batch in of_one_size(chosen, size_of):
        full = len(piece) >= most if most else piece and shard_of(piece[0]) != shard_of(batch[0])
        if piece and full:
            yield piece, list(range(shard_of(piece[0]), shard_of(piece[-1]) + 1))
            piece = []
        piece += batch
    yield piece, list(range(shard_of(piece[0]), shard_of(piece[-1]) + 1))
    reader.close()


def evaluate_spread(
    paths: Sequence[Path],
    chosen: Sequence[int],
    model: Path,
    make_predictors: MakePredictors,
    predictors: Mapping[str, Predictor],
    depth_range_m: tuple[float, float],
    spread: Spread,
    settings: Any,
) -> Evaluation:
    """:func:`metricgold.evaluation.engine.evaluate` by other machines, with the same figures.

    A piece whose record is in ``spread.shared`` is not done again; when all is gathered, nothing
    is left there.

    Args:
        paths: the shards.
        chosen: frames in them, in order, one at least.
        model: folder of the checkpoint.
        predictors: what ``make_predictors`` makes of it.
        settings: what ``make_predictors`` depends on besides, as JSON.
    """
    files = sorted(path for path in model.rglob("*") if path.is_file())
    content = [[path.name, sha256_of(path)] for path in (*paths, *files)]
    decided = [content, list(chosen), depth_range_m, settings, spread.piece_frames]
    stamp = hashed([*decided, code_hash()])[:16]
    name = f"evaluate-{stamp}"
    made = spread.shared.absolute / name
    shards = [spread.reachable(Place(str(p)), f"{name}/shards/{p.name}") for p in paths]
    checkpoint = tuple(
        (path, spread.reachable(Place(str(model / path)), f"{name}/model/{path}"))
        for path in (file.relative_to(model).as_posix() for file in files)
    )
    at_hand = all(place.local is not None for place in shards)
    starts = [0, *accumulate(len(ShardReader([path])) for path in paths)]
    pieces = [
        Piece(
            f"{number:05d}",
            tuple(shards[shard] for shard in needed),
            starts[needed[0]],
            tuple(indices),
            checkpoint,
            make_predictors,
            depth_range_m,
            made,
            stamp,
            code_hash(),
        )
        for number, (indices, needed) in enumerate(
            cut(paths, chosen, spread.piece_frames if at_hand else None)
        )
    ]
    found: list[FrameScores] = []
    with progress_bar(description="evaluate", total=len(chosen), unit="frame") as bar:

        def take(record: Record) -> None:
            """Note the next piece."""
            found.extend(_from_record(frame) for frame in record["frames"])
            bar.update(len(record["frames"]))

        spread.map(evaluate_piece, pieces, take)
    made.remove()
    return gathered(found, predictors, len(chosen), depth_range_m)
