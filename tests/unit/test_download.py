"""The stages source and download: mirrors, verification, missing files, reruns."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_zip import made_zip
from served import logged

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data import download, fetching, preprocess, source
from metricgold.data.files import human_bytes
from metricgold.data.mirror_server import Faults, file_url
from metricgold.data.mirrors import expand, open_mirrors
from metricgold.data.transfer import DownloadError
from metricgold.errors import UserError
from metricgold.workspace import Workspace


@pytest.fixture
def stage(tmp_path: Path, tiny_data_config: ProfileConfig):
    """(workspace, function that runs source and download of TartanAir from given mirrors)."""
    workspace = Workspace(tmp_path / "project")
    files = tmp_path / "mirror"
    for kind in ("image", "depth"):
        for difficulty in ("Easy", "Hard"):
            member = f"office/{difficulty}/P000/{kind}_left/x.bin"
            made_zip(files / f"office/{difficulty}/{kind}_left.zip", {member: os.urandom(5000)})

    def run(*mirrors: str, missing: float = 0.0, listed: bool = True) -> dict:
        settings = DatasetConfig(
            weight=1, mirrors=mirrors, train_size=(8, 8), include=("office",),
            max_missing_share=missing,
        )  # fmt: skip
        datasets = {**tiny_data_config.datasets, "tartanair": settings}
        config = tiny_data_config.model_copy(update={"datasets": datasets})
        if listed:
            source.run(config, workspace, "tartanair")
        return download.run(config, workspace, "tartanair")

    return workspace, files, run


def test_a_folder_is_a_mirror(stage, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    workspace, files, run = stage
    monkeypatch.setenv("TARTANAIR_MIRROR", str(files))
    manifest = run("$TARTANAIR_MIRROR")
    paths = [entry["path"] for entry in manifest["files"]]
    assert paths == [
        f"office/{d}/{k}_left.zip" for d in ("Easy", "Hard") for k in ("image", "depth")
    ]
    assert manifest["files"][0]["url"] == "$TARTANAIR_MIRROR/office/Easy/image_left.zip"
    total = sum((files / path).stat().st_size for path in paths)
    assert manifest["total_bytes"] == total
    for path in paths:
        assert (workspace.raw("tartanair") / path).read_bytes() == (files / path).read_bytes()
    assert f"{human_bytes(total)} to fetch" in capsys.readouterr().out
    on_disk = json.loads((workspace.raw("tartanair") / "manifest.json").read_text())
    assert on_disk == manifest


def test_licence_and_budget_are_told_and_the_manifest_keeps_them(stage, serve, capsys) -> None:
    _, _, run = stage
    manifest = run(serve().url)
    out = capsys.readouterr().out
    assert "tartanair: licence CC BY 4.0" in out
    assert re.search(
        r"[\d.]+ kB to download, at most [\d.]+ kB on disk at once, .* in the end", out
    )
    assert manifest["licence"].startswith("CC BY 4.0")
    for entry in manifest["files"]:
        age = datetime.now(UTC) - datetime.fromisoformat(entry["fetched_at"])
        assert timedelta(seconds=-2) < age < timedelta(minutes=5)


def test_ctrl_c_keeps_what_is_there(stage, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _, run = stage
    whole = fetching.Store.remember
    order = itertools.count(1)
    pressed = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def interrupted(store: fetching.Store, entry: fetching.Fetched) -> None:
        """The second file is there when Ctrl-C is pressed; those after it take their time."""
        number = next(order)
        if number > 2:
            pressed.wait(10)
            time.sleep(0.3)
        whole(store, entry)
        if number == 2:
            signal.pthread_kill(main, signal.SIGINT)
            pressed.set()

    monkeypatch.setattr(fetching.Store, "remember", interrupted)
    # Python does not listen where the tests are a shell's background job: SIGINT is ignored there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(serve().url)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert not workspace.raw("tartanair").exists()
    faults = Faults()
    assert len(run(serve(faults).url)["files"]) == 4
    assert len([entry for entry in logged(faults) if entry[0] == "GET"]) <= 2


def test_a_rerun_fetches_only_what_is_not_whole(stage, serve) -> None:
    workspace, _, run = stage
    first = run(serve().url)
    raw = workspace.raw("tartanair")
    shutil.rmtree(raw)  # as DVC does before a rerun
    damaged = workspace.scratch("download_tartanair") / "files/office/Hard/depth_left.zip"
    data = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(data[:-1] + b"?")
    faults = Faults()
    again = run(serve(faults).url)
    fetched = [entry[1] for entry in logged(faults) if entry[0] == "GET"]
    assert fetched == ["/office/Hard/depth_left.zip"]
    assert [e["sha256"] for e in again["files"]] == [e["sha256"] for e in first["files"]]


def test_published_files_serve_a_rerun_without_scratch(stage, serve) -> None:
    workspace, _, run = stage
    run(serve().url)
    shutil.rmtree(workspace.scratch("download_tartanair"))
    faults = Faults()
    run(serve(faults).url)
    assert [entry for entry in faults.log if entry[0] == "GET"] == []


def test_a_changed_upstream_file_is_fetched_again(stage, serve) -> None:
    workspace, files, run = stage
    run(serve().url)
    made_zip(
        files / "office/Easy/image_left.zip", {"office/Easy/P000/image_left/y": os.urandom(99)}
    )
    run(serve().url)
    got = workspace.raw("tartanair") / "office/Easy/image_left.zip"
    assert got.read_bytes() == (files / "office/Easy/image_left.zip").read_bytes()


def test_the_next_mirror_is_tried(stage, serve) -> None:
    workspace, _, run = stage
    server = serve()
    broken = serve(Faults(html=True))
    manifest = run(broken.url, server.url)
    assert all(entry["url"].startswith(server.url) for entry in manifest["files"])
    log = (workspace.scratch("download_tartanair") / "log.txt").read_text()
    assert "web page" in log
    assert "trying the next mirror" in log


def test_missing_files_are_counted_or_fatal(stage, serve, capsys) -> None:
    workspace, files, run = stage
    (files / "office/Hard/depth_left.zip").unlink()
    with pytest.raises(DownloadError, match=r"1 of 4 listed files are missing.*office/Hard/depth"):
        run(serve().url, missing=0.2)
    assert not (workspace.raw("tartanair") / "manifest.json").exists()
    manifest = run(serve().url, missing=0.25)
    assert manifest["missing"] == ["office/Hard/depth_left.zip"]
    assert len(manifest["files"]) == 3
    assert "1 of 4 listed files are missing upstream (25.0%)" in capsys.readouterr().out


def test_a_truncated_upstream_zip_is_fatal_and_the_rest_is_kept(stage, serve) -> None:
    workspace, files, run = stage
    path = files / "office/Hard/depth_left.zip"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DownloadError, match=r"office/Hard/depth_left\.zip: damaged or cut short"):
        run(serve().url)
    kept = workspace.scratch("download_tartanair") / "files"
    assert (kept / "office/Easy/image_left.zip").exists()
    assert not (kept / "office/Hard/depth_left.zip").exists()
    assert not workspace.raw("tartanair").exists()


def test_a_file_that_changed_since_it_was_listed_is_refused(stage, serve) -> None:
    _, files, run = stage
    server = serve()
    run(server.url)
    made_zip(files / "office/Easy/image_left.zip", {"a": b"x"})
    shutil.rmtree(stage[0].scratch("download_tartanair"))
    shutil.rmtree(stage[0].raw("tartanair"))
    with pytest.raises(DownloadError, match=r"image_left\.zip: \d+ bytes instead of \d+"):
        run(server.url, listed=False)


def test_too_small_a_disk_is_refused_up_front(
    stage, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, run = stage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10))
    faults = Faults()
    with pytest.raises(DownloadError, match=r"tartanair: .* are needed but only 10 B are free"):
        run(serve(faults).url)
    assert not [entry for entry in faults.log if entry[0] == "GET"]


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(UserError, match="environment variable NOT_SET_HERE, which is not set"):
        expand("$NOT_SET_HERE/tartanair")
    monkeypatch.setenv("NOT_SET_HERE", "/data")
    assert expand("${NOT_SET_HERE}/tartanair") == "/data/tartanair"


def test_a_mirror_that_is_nothing_is_told(tmp_path: Path) -> None:
    mirrors = [str(tmp_path / "nowhere")]
    with pytest.raises(UserError, match="neither a URL nor a folder"), open_mirrors(mirrors, None):
        pass


def test_special_characters_in_paths() -> None:
    assert file_url("http://h/base/", "a b/c#d.zip") == "http://h/base/a%20b/c%23d.zip"


# --- from rendering to shards ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["hypersim", "virtual_kitti", "tartanair"])
def test_procedural_stages_end_to_end(
    tmp_path: Path, tiny_data_config: ProfileConfig, name: str
) -> None:
    workspace = Workspace(tmp_path)
    index = source.run(tiny_data_config, workspace, name)
    manifest = download.run(tiny_data_config, workspace, name)
    report = preprocess.run(tiny_data_config, workspace, name)
    assert [file.path for file in index.files] == [entry["path"] for entry in manifest["files"]]
    assert manifest["missing"] == []
    seen = {
        s: report[s]["frames"] + sum(report[s]["rejected"].values()) for s in ("train", "holdout")
    }
    assert seen == {"train": 12, "holdout": 4}
    assert report["train"]["frames"] >= 6
    if name == "hypersim":
        raw, rendered = workspace.raw(name), workspace.source(name)
        for path in (raw / "scenes").iterdir():
            fetched = zipfile.ZipFile(path).namelist()
            everything = zipfile.ZipFile(rendered / "scenes" / path.name).namelist()
            assert set(everything) - set(fetched) == {n for n in everything if "preview" in n}


def test_a_dataset_left_out_says_so(tmp_path: Path, tiny_data_config: ProfileConfig) -> None:
    settings = DatasetConfig(weight=0, train_size=(8, 8))
    datasets = {**tiny_data_config.datasets, "hypersim": settings}
    config = tiny_data_config.model_copy(update={"datasets": datasets})
    workspace = Workspace(tmp_path)
    assert source.run(config, workspace, "hypersim").reason == "weight 0 in this profile"
    assert download.run(config, workspace, "hypersim")["files"] == []
    report = preprocess.run(config, workspace, "hypersim")
    assert report["reason"] == "weight 0 in this profile"
    assert report["train"]["frames"] == 0
