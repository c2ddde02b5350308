"""DVC's files are written whole, whenever DVC is ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dvc.fs import LocalFileSystem
from dvc.utils import serialize
from dvc.utils.serialize import _common, _yaml

from flows._dvc_files import write_whole

BEFORE = "schema: '2.0'\nstages:\n  train_unet:\n    cmd: python\n"


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock file, and a DVC that writes such files whole until the test is over."""
    for module in (_common, _yaml):
        monkeypatch.setattr(module, "_dump_data", _common._dump_data)
    write_whole()
    path = tmp_path / "dvc.lock"
    path.write_text(BEFORE, encoding="utf-8")
    return path


def change(path: Path) -> None:
    with serialize.modify_yaml(str(path), fs=LocalFileSystem()) as data:
        data["stages"]["train_vae"] = {"cmd": "sh"}


def test_what_breaks_off_leaves_the_old_file(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(data: Any, stream: Any) -> None:
        stream.write("schema: '2.0'\nstages:\n")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_yaml, "_dump", half)
        with pytest.raises(KeyboardInterrupt):
            change(lock)
        with pytest.raises(KeyboardInterrupt):
            serialize.dump_yaml(str(lock), {"stages": {}})
    assert lock.read_text(encoding="utf-8") == BEFORE
    assert list(lock.parent.iterdir()) == [lock]


def test_what_ends_well_is_what_dvc_writes(lock: Path) -> None:
    change(lock)
    assert lock.read_text(encoding="utf-8") == BEFORE + "  train_vae:\n    cmd: sh\n"
    link = lock.with_name("link")
    link.symlink_to(lock.name)
    change(link)
    assert link.is_symlink()
    serialize.dump_yaml(str(lock), {"stages": {}})
    assert serialize.load_yaml(str(lock)) == {"stages": {}}
