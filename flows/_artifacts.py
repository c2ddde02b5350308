"""What a run leaves on Prefect's page: progress, figures, pictures, links, its origin."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import yaml
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from metricgold.config import DATASET_NAMES
from metricgold.workspace import Workspace

DATA_REPORT_KEY = "metricgold-data-report"
DECISION_KEY = "metricgold-promotion"
METRICS_KEY = "metricgold-metrics"
ORIGIN_KEY = "metricgold-origin"
PICTURES_KEY = "metricgold-pictures"
REPORT_KEY = "metricgold-report"
SKIPPED_KEY = "metricgold-skipped"
PICTURE_WIDTH_PX = 640
PROGRESS_EVERY_S = 2.0

_BAR = re.compile(
    r"(?:(?P<what>[^|]*?):\s+)?(?P<percent>\d+)%\|[^|]*\|\s*(?P<count>\S+)\s+"
    r"\[(?P<gone>[\d:]+)<(?P<left>[\d:?]+)"
)


class Progress:
    """A progress artifact of the running task, from the bars that a stage prints."""

    def __init__(self, stage: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = "progress-" + re.sub(r"[^a-z0-9]+", "-", stage.lower())
        self._stage = stage
        self._clock = clock
        self._artifact: UUID | None = None
        self._next = 0.0

    def __call__(self, line: str) -> None:
        """Look at a line; a bar in it is shown, every two seconds at most and at its end."""
        bar = _BAR.search(line)
        if bar is None or (self._clock() < self._next and bar["percent"] != "100"):
            return
        self._next = self._clock() + PROGRESS_EVERY_S
        percent = float(bar["percent"])
        text = f"{self._stage}: {bar['what'] or 'working'}, {bar['count']}, {bar['left']} left"
        try:
            if self._artifact is None:
                self._artifact = cast(UUID, create_progress_artifact(percent, self._key, text))
            else:
                update_progress_artifact(self._artifact, percent, text)
        except httpx.HTTPError:
            pass  # the server is away or busy, which is no reason for a stage to end


def publish_metrics(rows: list[dict[str, Any]], after: str) -> None:
    """The figures of the run as a table."""
    description = f"Metrics after {after}" if rows else "No stage of this pipeline writes metrics."
    create_table_artifact(key=METRICS_KEY, table=rows, description=description)


def publish_decision(text: str) -> None:
    """Whether the new model was promoted, and why."""
    create_markdown_artifact(text, DECISION_KEY, "Champion and challenger")


def publish_pictures(root: Path) -> None:
    """A predicted picture of each dataset, small, and where the reports are."""
    workspace = Workspace(root)
    parts = [part for name in DATASET_NAMES for part in _picture(workspace.predictions / name)]
    if parts:
        create_markdown_artifact("\n\n".join(parts), PICTURES_KEY, "Held-out pictures")
    for folder, key in ((workspace.report, REPORT_KEY), (workspace.data_report, DATA_REPORT_KEY)):
        page = (folder / "index.html").resolve()
        if page.is_file():
            create_link_artifact(page.as_uri(), folder.name, key, "On the machine of the run")


def _picture(folder: Path) -> Iterable[str]:
    """Markdown of the first panel of a dataset, with the picture in it."""
    from PIL import Image

    listing = folder / "panels.json"
    if not listing.is_file() or not (entries := json.loads(listing.read_text(encoding="utf-8"))):
        return
    with Image.open(folder / entries[0]["file"]) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((PICTURE_WIDTH_PX, PICTURE_WIDTH_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    yield f"### {folder.name}\n![{folder.name}](data:image/png;base64,{data})"


def publish_origin(root: Path) -> list[str]:
    """Commit and DVC's hashes of every output as a table; returns tags that name them in short."""
    commit, changed = git_state(root)
    hashes = output_hashes(root)
    rows = [{"stage": stage, "path": path, "hash": md5} for stage, path, md5 in hashes]
    where = f"Commit {commit}{', with changes not committed' if changed else ''}"
    description = f"{where if commit else 'Not in git'}; hashes as in dvc.lock"
    create_table_artifact(key=ORIGIN_KEY, table=rows, description=description)
    model = str(Workspace().model)
    tags = [f"commit:{commit[:12]}{'+' if changed else ''}"] if commit else []
    return tags + [f"model:{md5[:12]}" for _, path, md5 in hashes if path == model]


def git_state(root: Path) -> tuple[str, bool]:
    """The commit that is checked out ('' outside of git), and whether tracked files differ."""

    def git(*arguments: str) -> str:
        """What it printed; nothing where it failed."""
        command = ["git", *arguments]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return commit, bool(commit and git("status", "--porcelain", "--untracked-files=no"))


def output_hashes(root: Path) -> list[tuple[str, str, str]]:
    """(stage, path, hash) of every output in dvc.lock."""
    lock = root / "dvc.lock"
    if not lock.is_file():
        return []
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    return [
        (stage, out["path"], out.get("md5", ""))
        for stage, body in stages.items()
        for out in body.get("outs", [])
    ]


def publish_skipped(reason: str) -> None:
    """Why a run did nothing."""
    create_markdown_artifact(f"**Skipped**: {reason}", SKIPPED_KEY, "This run did nothing")
