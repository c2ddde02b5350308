"""Evaluation in pieces: the very files of one machine, from shards here or on an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from made_frames import make_frame, write_shards
from toy import toy_model

from metricgold.config import ProfileConfig, load_config
from metricgold.data.shard_writer import ShardWriter
from metricgold.data.shards import encode_frame, shard_paths
from metricgold.evaluation import benchmark, pieces
from metricgold.evaluation.engine import MAX_BATCH
from metricgold.places import Place
from metricgold.spread import Spread
from metricgold.workspace import Workspace

PARAMS = Path(__file__).parents[2] / "params.yaml"
SCENES, FRAMES = 8, 5


def one_by_one(function: Callable[[Any], Any], items: list[Any], take: Callable[[Any], None]):
    for item in items:
        take(function(item))


def outputs(workspace: Workspace) -> dict[str, bytes]:
    roots = (workspace.metrics, workspace.plots, workspace.predictions)
    return {str(p): p.read_bytes() for r in roots for p in r.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def config() -> ProfileConfig:
    demo = load_config(PARAMS, "demo")
    hypersim = demo.datasets["hypersim"].model_copy(update={"train_size": (16, 24)})
    evaluate = demo.evaluate.model_copy(update={"pictures": 2})
    update = {"datasets": {**demo.datasets, "hypersim": hypersim}, "evaluate": evaluate}
    return demo.model_copy(update=update)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, config: ProfileConfig):
    """A workspace with three held-out shards, whose ends are no batches' ends, and the outputs
    of one machine. The last scene is of another size."""
    workspace = Workspace(tmp_path_factory.mktemp("evaluated"))
    folder = workspace.shards("hypersim")
    folder.mkdir(parents=True)
    write_shards(folder, "train", [make_frame(20, i, (16, 24)) for i in range(3)])
    with ShardWriter(folder, "holdout", shard_bytes=20_000) as writer:
        for scene in range(SCENES):
            size = (16, 24) if scene < SCENES - 1 else (20, 32)
            for number in range(FRAMES):
                writer.add(encode_frame(make_frame(scene, number, size), 95))
    toy_model(fov_matters=True).save_pretrained(workspace.model)
    benchmark.run(config, workspace, "hypersim")
    return workspace, outputs(workspace)


@pytest.fixture
def memory() -> Iterator[Place]:
    """An object store of this process."""
    yield Place("memory://bucket")
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pieces that were really measured."""
    done: list[str] = []

    def measure(piece: pieces.Piece) -> Any:
        done.append(piece.name)
        return original(piece)

    original = pieces._measure_piece
    monkeypatch.setattr(pieces, "_measure_piece", measure)
    return done


def test_pieces_give_the_very_files_of_one_machine(
    config: ProfileConfig, whole, tmp_path: Path, measured: list[str]
) -> None:
    workspace, expected = whole
    shared = Place(str(tmp_path / "shared"))
    assert len(expected) > 6
    benchmark.run(config, workspace, "hypersim", Spread(one_by_one, shared, piece_frames=1))
    assert outputs(workspace) == expected
    assert measured == ["00000", "00001", "00002", "00003"], "a batch each"
    assert not list((tmp_path / "shared").iterdir())


def test_what_a_broken_off_run_has_measured_is_not_measured_again(
    config: ProfileConfig, whole, tmp_path: Path, measured: list[str]
) -> None:
    def dies(function: Callable[[Any], Any], items: list[Any], take: Callable[[Any], None]) -> None:
        one_by_one(function, items[:2], take)
        raise KeyboardInterrupt

    workspace, expected = whole
    shared = Place(str(tmp_path / "shared"))
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(config, workspace, "hypersim", Spread(dies, shared, piece_frames=1))
    assert measured == ["00000", "00001"]
    benchmark.run(config, workspace, "hypersim", Spread(one_by_one, shared, piece_frames=1))
    assert measured == ["00000", "00001", "00002", "00003"]
    assert outputs(workspace) == expected


def test_an_object_store(
    config: ProfileConfig, whole, memory: Place, measured: list[str], monkeypatch: Any
) -> None:
    workspace, expected = whole
    monkeypatch.setattr(pieces._opened, "stamp", None, raising=False)
    benchmark.run(config, workspace, "hypersim", Spread(one_by_one, memory, piece_frames=1))
    assert outputs(workspace) == expected
    assert len(measured) == 3
    assert memory.names() == []


def test_pieces_are_whole_batches_and_know_their_shards(whole) -> None:
    paths = shard_paths(whole[0].shards("hypersim"), "holdout")
    assert len(paths) == 3
    everything = range(SCENES * FRAMES)
    by_batch = list(pieces.cut(paths, everything, 1))
    assert [len(indices) for indices, _ in by_batch] == [MAX_BATCH, MAX_BATCH, 3, 5]
    assert [i for indices, _ in by_batch for i in indices] == list(everything)
    assert [shards for _, shards in by_batch] == [[0, 1], [1, 2], [2], [2]]
    assert [len(i) for i, _ in pieces.cut(paths, everything, 20)] == [2 * MAX_BATCH, 8]
    by_shard = list(pieces.cut(paths, everything, None))
    assert [(len(i), shards) for i, shards in by_shard] == [(16, [0, 1]), (16, [1, 2]), (8, [2])]
    assert list(pieces.cut(paths, [3, 39], None)) == [([3], [0]), ([39], [2])]
