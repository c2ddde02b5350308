"""A small DVC project of its own, and a real Prefect server to run it on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.service import MINI_PIPELINE, ROOT, Served, command, run, wait_for


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a DVC project without git into the test's folder."""

    def make(pipeline: str) -> Path:
        (tmp_path / "dvc.yaml").write_text(pipeline, encoding="utf-8")
        (tmp_path / "params.yaml").write_text("profile: demo\nsteps: 3\n", encoding="utf-8")
        shutil.copy(ROOT / "prefect.toml", tmp_path)
        if not (tmp_path / ".dvc").exists():
            run(command("dvc"), "init", "-q", "--no-scm", cwd=tmp_path)
        return tmp_path

    return make


@pytest.fixture
def served(make_project: Callable[[str], Path]) -> Iterator[Served]:
    """The deployment, served from the small project."""
    service = Served(make_project(MINI_PIPELINE))
    try:
        wait_for(service.up, 150, "server and deployment up")
        yield service
    finally:
        service.end()
