"""`scripts/environment.py`: when `.venv` is left alone, brought up to date, or made anew."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script over a copy of the files it reads, with nothing really installed."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts/environment.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements").mkdir()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "requirements/lock.txt").write_text("numpy==2.0\n")
    for name, value in {
        "ROOT": tmp_path,
        "VENV": tmp_path / ".venv",
        "STAMP": tmp_path / ".venv/metricgold-installed",
    }.items():
        monkeypatch.setattr(module, name, value)
    module.made = made = []  # type: ignore[attr-defined]

    class Builder:
        def __init__(self, **options: Any) -> None:
            made.append("anew" if options["clear"] else "updated")

        def create(self, folder: Path) -> None:
            folder.mkdir(exist_ok=True)

    monkeypatch.setattr(venv, "EnvBuilder", Builder)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0))
    return module


def make(script: ModuleType, monkeypatch: pytest.MonkeyPatch, extras: str = "cpu") -> list[str]:
    """What one more `make setup` did."""
    script.made.clear()
    monkeypatch.setattr(sys, "argv", ["environment.py", "--extras", extras])
    script.main()
    return list(script.made)


def test_nothing_changed_nothing_done(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(script, monkeypatch) == ["anew"]
    assert make(script, monkeypatch) == []


def test_new_pins_update_and_other_extras_start_anew(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(script, monkeypatch)
    (script.ROOT / "requirements/lock.txt").write_text("numpy==2.1\n")
    assert make(script, monkeypatch) == ["updated"]
    assert make(script, monkeypatch, "cpu,rtx") == ["anew"]


@pytest.mark.parametrize("what", ["version", "base_prefix"])
def test_another_interpreter_starts_anew(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    make(script, monkeypatch)
    monkeypatch.setattr(sys, what, "another")
    assert make(script, monkeypatch) == ["anew"]


def test_a_failed_install_is_tried_again(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(script, monkeypatch)
    (script.ROOT / "requirements/lock.txt").write_text("numpy==2.1\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match="pip could not install"):
        make(script, monkeypatch)
    assert not script.STAMP.exists()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0))
    assert make(script, monkeypatch) == ["anew"]


def test_cpu_and_gpu_exclude_each_other(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="names both cpu and gpu"):
        script.chosen_extras("gpu, cpu,rtx")
    assert script.chosen_extras("cpu,sd2") == "cpu,sd2"
