"""Preprocessing in pieces: the very files of one machine, each piece once, at any place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from flows import _spread
from metricgold import spread as spreading
from metricgold.config import ProfileConfig
from metricgold.data import download, pieces, preprocess, source
from metricgold.data.dataset import DatasetError
from metricgold.data.registry import get_dataset
from metricgold.errors import UserError
from metricgold.places import Place, PlaceError
from metricgold.spread import Spread
from metricgold.workspace import Workspace

NAMES = ("hypersim", "virtual_kitti", "tartanair")


def one_by_one(function: Callable[[Any], Any], items: list[Any], take: Callable[[Any], None]):
    for item in items:
        take(function(item))


def small(mapped: Any, shared: Place) -> Spread:
    """Pieces of less than a group's bytes."""
    return Spread(mapped, shared, piece_bytes=20_000, piece_frames=4)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def memory() -> Iterator[Place]:
    """An object store of this process."""
    yield Place("memory://bucket")
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory, tiny_data_config: ProfileConfig):
    """A workspace with archives of all datasets, and the hashes of what one machine makes."""
    workspace = Workspace(tmp_path_factory.mktemp("whole"))
    found = {}
    for name in NAMES:
        source.run(tiny_data_config, workspace, name)
        download.run(tiny_data_config, workspace, name)
        preprocess.run(tiny_data_config, workspace, name)
        found[name] = hashes(workspace.shards(name))
        assert {"train-000.h5", "holdout-000.h5", "report.json"} == set(found[name])
    return workspace, found


@pytest.fixture
def workspace(tmp_path: Path, downloaded) -> Workspace:
    """One with the same archives and nothing else."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "raw").symlink_to(downloaded[0].raw(""))
    return Workspace(tmp_path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pieces that were really converted."""
    done: list[str] = []

    def convert(piece: pieces.Piece, folder: Path) -> Any:
        done.append(piece.name)
        return original(piece, folder)

    original = pieces._convert_piece
    monkeypatch.setattr(pieces, "_convert_piece", convert)
    return done


@pytest.mark.parametrize("name", NAMES)
def test_pieces_give_the_very_files_of_one_machine(
    tiny_data_config: ProfileConfig,
    workspace: Workspace,
    downloaded,
    tmp_path: Path,
    name: str,
    counted: list[str],
) -> None:
    spread = small(one_by_one, Place(str(tmp_path / "shared")))
    preprocess.run(tiny_data_config, workspace, name, spread)
    assert hashes(workspace.shards(name)) == downloaded[1][name]
    assert len(counted) >= 3
    assert not list((tmp_path / "shared").iterdir())


def test_threads_of_this_process(
    tiny_data_config: ProfileConfig,
    workspace: Workspace,
    downloaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    threads = _spread.mapper("threads", "preprocess@tartanair", 3)
    spread = small(threads, Place(str(tmp_path / "shared")))
    preprocess.run(tiny_data_config, workspace, "tartanair", spread)
    assert hashes(workspace.shards("tartanair")) == downloaded[1]["tartanair"]


def test_what_a_broken_off_run_has_done_is_not_done_again(
    tiny_data_config: ProfileConfig,
    workspace: Workspace,
    downloaded,
    tmp_path: Path,
    counted: list[str],
) -> None:
    def dies(function: Callable[[Any], Any], items: list[Any], take: Callable[[Any], None]) -> None:
        one_by_one(function, items[:2], take)
        raise KeyboardInterrupt

    place = Place(str(tmp_path / "shared"))
    with pytest.raises(KeyboardInterrupt):
        preprocess.run(tiny_data_config, workspace, "hypersim", small(dies, place))
    assert counted == ["00000", "00001"]
    assert hashes(workspace.shards("hypersim")) == {}
    changed = tiny_data_config.model_copy(
        update={"preprocess": tiny_data_config.preprocess.model_copy(update={"rgb_quality": 50})}
    )
    preprocess.run(changed, workspace, "hypersim", small(one_by_one, place))
    everything = [f"{number:05d}" for number in range(len(counted) - 2)]
    assert counted[2:] == everything, "nothing made with other settings may be taken"
    del counted[:]
    preprocess.run(tiny_data_config, workspace, "hypersim", small(one_by_one, place))
    assert counted == everything[2:]
    assert hashes(workspace.shards("hypersim")) == downloaded[1]["hypersim"]


def test_object_store_for_archives_and_pieces(
    tiny_data_config: ProfileConfig,
    workspace: Workspace,
    downloaded,
    tmp_path: Path,
    memory: Place,
) -> None:
    raw = workspace.raw("hypersim")
    for path in hashes(raw):
        (memory / "raw" / path).put(raw / path)
    spread = small(one_by_one, memory / "shared")
    before = memory.names()
    preprocess.run(tiny_data_config, workspace, "hypersim", spread)
    assert hashes(workspace.shards("hypersim")) == downloaded[1]["hypersim"]
    assert memory.names() == before
    elsewhere = Workspace(tmp_path / "elsewhere")
    preprocess.run(tiny_data_config, elsewhere, "hypersim", spread, memory / "raw")
    assert hashes(elsewhere.shards("hypersim")) == downloaded[1]["hypersim"]


def test_damaged_or_absent_archives_are_refused(
    tiny_data_config: ProfileConfig, workspace: Workspace, memory: Place
) -> None:
    raw, spread = workspace.raw("hypersim"), small(one_by_one, memory / "shared")
    for path in hashes(raw):
        (memory / "raw" / path).put(raw / path)
    scene = next(path for path in hashes(raw) if path.endswith(".zip"))
    good = (memory / "raw" / scene).read()
    assert good is not None
    (memory / "raw" / scene).write(good[:-1] + b"x")
    with pytest.raises(DatasetError, match=f"{scene}: damaged"):
        preprocess.run(tiny_data_config, workspace, "hypersim", spread, memory / "raw")
    (memory / "raw" / scene).remove()
    with pytest.raises(DatasetError, match=f"{scene}: is gone"):
        preprocess.run(tiny_data_config, workspace, "hypersim", spread, memory / "raw")


def test_a_machine_with_other_code_refuses(
    tiny_data_config: ProfileConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Place(str(tmp_path))
    piece = pieces.Piece("00000", tiny_data_config, "hypersim", (), (0, 1), there, "other")
    with pytest.raises(UserError, match="has another version here"):
        pieces.make_piece(piece)


def test_archives_that_a_machine_does_not_see(
    tiny_data_config: ProfileConfig, tmp_path: Path
) -> None:
    file = pieces.PieceFile("a.zip", Place(str(tmp_path / "a.zip")), 1, "")
    there, code = Place(str(tmp_path / "made")), spreading.code_hash()
    piece = pieces.Piece("00000", tiny_data_config, "hypersim", (file,), (0, 1), there, code)
    with pytest.raises(DatasetError, match=r"a\.zip: not on .*orchestration\.shared"):
        pieces.make_piece(piece)
    assert not (tmp_path / "made").exists()


def test_cutting_keeps_order_and_takes_common_files_along() -> None:
    common = "metadata_camera_parameters.csv"
    reader = get_dataset("hypersim")
    assert reader.group_of(common) is None
    files = [
        pieces.PieceFile(path, Place(path), size, "")
        for path, size in ((common, 5), ("scenes/b.zip", 30), ("scenes/a.zip", 60), ("scenes/c", 5))
    ]

    def told(divisible: bool) -> list[tuple[list[str], tuple[int, int]]]:
        cuts = pieces.cut(reader, files, 40, divisible)
        return [([file.path for file in needed], part) for needed, part in cuts]

    a, rest = [common, "scenes/a.zip"], [common, "scenes/b.zip", "scenes/c"]
    assert told(divisible=True) == [(a, (0, 2)), (a, (1, 2)), (rest, (0, 1))]
    assert told(divisible=False) == [(a, (0, 1)), (rest, (0, 1))]


def test_whose_record_is_there_is_not_made(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "made"))

    def make(folder: Path) -> dict[str, Any]:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("content")
        return {"number": 0.1}

    def never(folder: Path) -> dict[str, Any]:
        raise AssertionError

    assert spreading.done_once(place, "a", make) == {"number": 0.1}
    assert spreading.done_once(place, "a", never) == {"number": 0.1}
    assert place.names() == ["a.json", "a/deep/file"]
    with pytest.raises(AssertionError):
        spreading.done_once(place, "b", never)
    assert place.names() == ["a.json", "a/deep/file"]


@pytest.mark.parametrize("kind", ["path", "uri", "store"])
def test_places(tmp_path: Path, memory: Place, kind: str) -> None:
    folder = {"path": str(tmp_path), "uri": tmp_path.as_uri(), "store": f"{memory}/"}[kind]
    place = Place(folder) / "below" / "file"
    assert (place.size(), place.read(), (Place(folder) / "below").names()) == (None, None, [])
    place.write(b"one")
    place.write(b"three")
    assert (place.size(), place.read()) == (5, b"three")
    assert Place(folder).names() == ["below/file"]
    with place.at_hand() as path:
        assert path.read_bytes() == b"three"
    copy = tmp_path / "other" / "copy"
    place.get(copy)
    assert copy.read_bytes() == b"three"
    (Place(folder) / "put").put(copy)
    assert (Place(folder) / "put").read() == b"three"
    assert (Place(folder) / "below").size() is None, "a folder is no file"
    (Place(folder) / "below").remove()
    (Place(folder) / "below").remove()
    assert place.read() is None
    with pytest.raises(PlaceError, match="file: no such file"):
        place.get(copy)
    assert copy.read_bytes() == b"three"
    assert sorted(path.name for path in copy.parent.iterdir()) == ["copy"]


def test_protocols_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlaceError, match="nosuch://a: cannot be opened"):
        Place("nosuch://a").read()

    def missing(*arguments: Any, **more: Any) -> Any:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(PlaceError, match=r"^gs://a/b: gs:// needs .*'metricgold\[gcs\]'$"):
        Place("gs://a/b").read()


def test_what_a_store_says_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def cat_file(self, path: str) -> bytes:
            raise ConnectionError("Could not\nconnect")

    monkeypatch.setattr(fsspec, "url_to_fs", lambda uri, **more: (Broken(), uri))
    with pytest.raises(PlaceError, match=r"^s3://a/b: cannot be read: Could not connect$") as told:
        Place("s3://a/b").read()
    assert isinstance(told.value.__cause__, ConnectionError), "so that the stage is tried again"


@pytest.mark.parametrize(
    "name", ["spark", "dask://", "dask://host", "threads://a:1", "ray://a b:1"]
)
def test_unknown_runners_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no such runner; take threads, dask, dask://HOST:PORT"):
        _spread.mapper(name, "preprocess@hypersim", 1)


def test_a_cluster_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UserError, match=r"none answers; start one with 'python -m flows\.serve'"):
        _spread.mapper("dask://scheduler:8786", "preprocess@hypersim", 1)


@pytest.mark.parametrize(
    ("environment", "section"), [(None, None), ("threads", "dask"), (None, "threads")]
)
def test_one_name_says_where(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: str | None,
    section: str | None,
) -> None:
    settings = {"runner": section, "shared": "s3://bucket/x"} if section else {}
    (tmp_path / "params.yaml").write_text(json.dumps({"orchestration": settings}))
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", _spread.RUNNER, _spread.SHARED):
        monkeypatch.delenv(name, raising=False)
    if environment:
        monkeypatch.setenv(_spread.RUNNER, environment)
    found = _spread.chosen_spread("preprocess@hypersim", 2)
    if environment is None and section is None:
        assert found is None
    else:
        assert found is not None
        assert isinstance(found.map, _spread._Threads)
        assert found.shared == Place("s3://bucket/x")
