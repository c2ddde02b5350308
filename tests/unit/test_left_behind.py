"""What a crash of the machine or a full disk leaves in .dvc, and how it is put right."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cache_check
from flows._locks import free_left_locks


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that is no DVC, though it speaks of it."""
    code = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, "two dvc repro", "dvc.yaml"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def dvc() -> Iterator[int]:
    """A process whose command line is that of DVC."""
    code = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, "-m", "dvc", "repro"])
    yield process.pid
    process.kill()
    process.wait()


def record(root: Path, content: dict[str, Any] | str) -> Path:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_only_what_a_running_dvc_holds_stays(tmp_path: Path, sleeper: int, dvc: int) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held = {"pid": dvc, "cmd": "dvc repro"}
    left = [{"pid": pid, "cmd": "dvc repro"} for pid in (sleeper, gone.pid)]
    path = record(
        tmp_path,
        {
            "write": {"unet": left[0], "latents": held},
            "read": {"shards": [left[1], held], "vae": [left[0]]},
        },
    )
    dropped = free_left_locks(tmp_path)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "write": {"latents": held},
        "read": {"shards": [held]},
    }
    assert sorted(line.partition(":")[0] for line in dropped) == ["shards", "unet", "vae"]
    assert free_left_locks(tmp_path) == []


@pytest.mark.parametrize("text", ["", '{"write": {"a": {"pid": 1'])
def test_a_record_that_was_cut_short_is_removed(tmp_path: Path, text: str) -> None:
    path = record(tmp_path, text)
    (told,) = free_left_locks(tmp_path)
    assert "cut short" in told
    assert not path.exists()


def test_where_there_is_no_record_nothing_is_done(tmp_path: Path) -> None:
    assert free_left_locks(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def stored(root: Path, name: str, content: bytes) -> Path:
    """An output in the workspace, linked to its object in the cache."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    path = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.link(path, root / name)
    path.chmod(0o444)
    return path


def test_a_damaged_object_goes_with_its_links(tmp_path: Path) -> None:
    good, bad = stored(tmp_path, "good.bin", b"good" * 9), stored(tmp_path, "bad.bin", b"bad" * 9)
    outs = [{"path": "good.bin"}, {"path": "bad.bin"}, {"path": "absent.bin"}]
    lock = {"schema": "2.0", "stages": {"made": {"outs": outs}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    half_written = good.with_name(good.name + ".tmp")
    half_written.write_bytes(b"DVC is at it")
    cache = tmp_path / ".dvc" / "cache"
    assert cache_check.damaged(cache) == []

    before = bad.stat()
    bad.chmod(0o644)
    with bad.open("r+b") as stream:  # as it rots: nothing but the content tells
        stream.write(b"B")
    bad.chmod(0o444)
    os.utime(bad, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache_check.damaged(cache) == [bad]
    assert cache_check.remove(tmp_path, [bad]) == [tmp_path / "bad.bin"]
    assert not bad.exists()
    assert not (tmp_path / "bad.bin").exists()
    assert (tmp_path / "good.bin").read_bytes() == b"good" * 9
    assert half_written.exists()
