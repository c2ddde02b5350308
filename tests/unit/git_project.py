"""A git repository with the files that a finished run leaves; no DVC, no user known to git."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
PARTS = ("metricgold", "onnx", "engines")


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def forget_user(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """As in a fresh clone on a fresh machine: git must not guess an identity either."""
    for role in ("AUTHOR", "COMMITTER"):
        for key in ("NAME", "EMAIL"):
            monkeypatch.delenv(f"GIT_{role}_{key}", raising=False)
    home.mkdir(exist_ok=True)
    (home / "gitconfig").write_text("[user]\n    useConfigOnly = true\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def write_run(root: Path, name: str) -> None:
    """Outputs, figures and ``dvc.lock`` of a run; ``name`` stands for all that it made."""
    outs = [{"path": f"artifacts/{part}", "md5": f"{part}-{name}.dir"} for part in PARTS]
    lock = {"schema": "2.0", "stages": {"all": {"cmd": "x", "outs": outs}}}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    figure = {"A": 0.3, "B": 0.2}.get(name, 0.25)
    for path, content in {
        "metrics/summary.json": {"abs_rel": figure, "delta1": 0.5, "frames": 8, "scenes": 4},
        "metrics/parity.json": {"passed": True},
        "artifacts/onnx/manifest.json": {"precision": "fp32"},
        "artifacts/engines/manifest.json": {"builds": {}, "not_built": {"tensorrt": "no GPU"}},
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(content), encoding="utf-8")
    (root / "artifacts/metricgold").mkdir(exist_ok=True)
    (root / "artifacts/metricgold/README.md").write_text(f"# Checkpoint {name}\n")


def make_repository(root: Path) -> Path:
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / ".gitignore").write_text("/artifacts/\n")
    (root / "code.py").write_text("x = 1\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text("profile: smoke\n")
    write_run(root, "A")
    git(root, "add", ".")
    git(root, *AUTHOR, "commit", "-q", "-m", "start")
    return root
