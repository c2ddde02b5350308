"""Scene streaming: the same shards as without it, resumed after anything, within its budget."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import logged

from metricgold.config import DatasetConfig, ProceduralConfig, ProfileConfig
from metricgold.data import budget, conversion, download, preprocess, source, streaming
from metricgold.data.inspection import verify
from metricgold.data.mirror_server import Faults, MirrorServer
from metricgold.data.registry import get_dataset
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.data.source import SourceIndex
from metricgold.data.transfer import DownloadError
from metricgold.workspace import Workspace

Serve = Callable[..., MirrorServer]


def content(workspace: Workspace, dataset: str) -> list[Any]:
    """Everything that is in the shards of a dataset, in order."""
    found = []
    for split in ("train", "holdout"):
        reader = ShardReader(shard_paths(workspace.shards(dataset), split))
        for index in range(len(reader)):
            provenance = json.dumps(reader.provenance(index))
            crc = reader.encoded(index).crc32
            found.append((split, reader.scene_of(index), crc, provenance))
        reader.close()
    return found


def without_licence(found: list[Any]) -> list[Any]:
    """Rendered archives have none; served by a mirror they are taken for the dataset's own."""
    return [(*rest, json.loads(told) | {"licence": ""}) for *rest, told in found]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, tiny_data_config: ProfileConfig):
    """(folder of Hypersim archives, workspace that was made from it as a whole, its report)."""
    workspace = Workspace(tmp_path_factory.mktemp("whole"))
    scenes = ProceduralConfig(train_scenes=7, holdout_scenes=2, frames_per_scene=4, size=(24, 32))
    settings = DatasetConfig(weight=1, procedural=scenes, train_size=(16, 24))
    datasets = {**tiny_data_config.datasets, "hypersim": settings}
    config = tiny_data_config.model_copy(update={"datasets": datasets})
    source.run(config, workspace, "hypersim")
    download.run(config, workspace, "hypersim")
    return (
        workspace.source("hypersim"),
        workspace,
        preprocess.run(config, workspace, "hypersim"),
    )


@pytest.fixture
def streamed(tmp_path: Path, tiny_data_config: ProfileConfig, rendered):
    """(workspace, function that runs all three stages by streaming from a mirror)."""
    workspace = Workspace(tmp_path / "project")

    def run(mirror: str, config: ProfileConfig = tiny_data_config, **changes: Any) -> dict:
        settings = DatasetConfig(
            weight=1, mirrors=(mirror,), train_size=(16, 24), streaming=True, **changes
        )
        datasets = {**config.datasets, "hypersim": settings}
        config = config.model_copy(update={"datasets": datasets})
        source.run(config, workspace, "hypersim")
        download.run(config, workspace, "hypersim")
        return preprocess.run(config, workspace, "hypersim")

    return workspace, run


@pytest.mark.parametrize("name", ["hypersim", "virtual_kitti", "tartanair"])
def test_streaming_gives_the_same_shards_and_report(
    tmp_path: Path, tiny_data_config: ProfileConfig, name: str
) -> None:
    found = []
    for streamed in (False, True):
        settings = tiny_data_config.datasets[name].model_copy(update={"streaming": streamed})
        datasets = {**tiny_data_config.datasets, name: settings}
        config = tiny_data_config.model_copy(update={"datasets": datasets})
        workspace = Workspace(tmp_path / str(streamed))
        source.run(config, workspace, name)
        manifest = download.run(config, workspace, name)
        assert manifest["streaming"] is streamed
        assert bool(manifest["files"]) is not streamed
        report = preprocess.run(config, workspace, name)
        found.append((content(workspace, name), report))
        assert all(
            problem is None
            for path in workspace.shards(name).glob("*.h5")
            for problem in verify(path)
        )
    assert found[0] == found[1]
    assert not list(workspace.raw(name).rglob("*.zip"))
    assert not workspace.scratch(f"stream_{name}").exists()


def test_an_interrupted_run_goes_on_with_the_next_group(
    streamed, rendered, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, run = streamed
    archives, whole, report = rendered
    (tmp_path / "mirror").symlink_to(archives)
    converted: list[Path] = []

    def dies(*arguments: Any, **more: Any) -> Any:
        """Power goes out in the third group."""
        if len(converted) == 2:
            raise KeyboardInterrupt
        converted.append(arguments[2])
        return conversion.convert(*arguments, **more)

    monkeypatch.setattr(streaming, "convert", dies)
    with pytest.raises(KeyboardInterrupt):
        run(serve().url)
    assert not list(workspace.shards("hypersim").glob("*"))
    monkeypatch.undo()
    faults = Faults()
    again = run(serve(faults).url)
    scenes = sorted((archives / "scenes").iterdir())
    asked = {path for method, path, _, _ in logged(faults) if method == "GET"}
    assert not {f"/scenes/{path.name}" for path in scenes[:2]} & asked
    assert f"/scenes/{scenes[-1].name}" in asked
    assert without_licence(content(workspace, "hypersim")) == without_licence(
        content(whole, "hypersim")
    )
    ours = {k: v for k, v in again.items() if k not in ("source", "download")}
    assert ours == {k: v for k, v in report.items() if k not in ("source", "download")}


@pytest.mark.parametrize("moment", ["before the record", "before the deletion"])
def test_a_crash_while_packing_loses_nothing(
    streamed, rendered, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    workspace, run = streamed
    archives, whole, _ = rendered
    (tmp_path / "mirror").symlink_to(archives)
    monkeypatch.setattr(streaming, "SHARD_BYTES", 1)
    write_json = streaming.write_json

    def dies(path: Path, content: Any) -> None:
        """Power goes out around the second packing."""
        second = path.name == "packed.json" and len(content["groups"]) == 2
        if second and moment == "before the record":
            raise KeyboardInterrupt
        write_json(path, content)
        if second:
            raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        run(serve().url)
    monkeypatch.setattr(streaming, "write_json", write_json)
    run(serve().url)
    assert len(shard_paths(workspace.shards("hypersim"), "train")) > 2
    assert without_licence(sorted(content(workspace, "hypersim"))) == without_licence(
        sorted(content(whole, "hypersim"))
    )


def test_the_archives_on_disk_keep_to_the_budget(
    streamed, rendered, serve: Serve, tmp_path: Path, tiny_data_config: ProfileConfig
) -> None:
    workspace, run = streamed
    (tmp_path / "mirror").symlink_to(rendered[0])
    peak, done = 0, threading.Event()

    def watch() -> None:
        """Adds up the fetched files, again and again."""
        nonlocal peak
        while not done.is_set():
            sizes = {}
            for folder, _, names in os.walk(workspace.scratch("stream_hypersim") / "fetched"):
                for name in set(names) - {"verified.json", "log.txt"}:
                    with contextlib.suppress(OSError):
                        status = os.stat(os.path.join(folder, name))
                        sizes[status.st_ino] = status.st_size
            peak = max(peak, sum(sizes.values()))
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run(serve().url)
    finally:
        done.set()
        thread.join()
    index = SourceIndex.load(workspace.source("hypersim"))
    reader = get_dataset("hypersim")
    plan = budget.streaming_budget(reader, index.files)
    archives = plan.peak - 2 * plan.final  # the estimate of all shards, twice while packed
    assert 0.3 * archives < peak < archives
    everything = sum(path.stat().st_size for path in rendered[0].rglob("*.zip"))
    assert archives < 0.8 * everything


def test_a_budget_that_is_too_small_is_refused_up_front(
    streamed, rendered, serve: Serve, tmp_path: Path, tiny_data_config: ProfileConfig
) -> None:
    _, run = streamed
    (tmp_path / "mirror").symlink_to(rendered[0])
    limits = tiny_data_config.download.model_copy(update={"max_disk_gb": 1e-5})
    faults = Faults()
    with pytest.raises(DownloadError, match=r"max_disk_gb allows 1e-05 GB; free some space"):
        run(serve(faults).url, tiny_data_config.model_copy(update={"download": limits}))
    assert not [path for _, path, _, sent in logged(faults) if sent and path.endswith(".zip")]


def test_a_scene_that_is_missing_upstream_is_counted(
    streamed, rendered, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, run = streamed
    (tmp_path / "mirror/scenes").mkdir(parents=True)
    gone, *there = sorted(p for p in rendered[0].rglob("*") if p.is_file() and p.suffix == ".zip")
    for path in [*there, *rendered[0].glob("*.csv")]:
        shutil.copy(path, tmp_path / "mirror" / path.relative_to(rendered[0]))
    with pytest.raises(DownloadError, match="listed files are missing upstream"):
        run(serve().url)
    report = run(serve().url, max_missing_share=0.9)
    assert report["download"]["missing"] == 8
    assert "tolerated" in capsys.readouterr().out
    assert gone.stem not in {scene.split("/")[0] for _, scene, *_ in content(workspace, "hypersim")}
