"""One fault at one stage: brought in, looked at, got out of, looked at again.

Every case begins with a finished project in which a stage is undone, and ends with the same
project, which must be as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.faults.project import (
    GONE_S,
    STAGE_S,
    MissedError,
    Project,
    Watch,
    errors,
    processes,
    said,
    until,
)
from tests.integration.faults.service import Service

STAGES = (
    *(f"{kind}@hypersim" for kind in ("source", "download", "preprocess")),
    *("data_report", "base_model", "train_vae", "cache_latents", "train_unet", "train_one_step"),
    *("train_light", "evaluate@hypersim", "export_onnx", "export_trt", "verify_onnx", "report"),
)
"""Every kind of stage; of those that exist once a dataset, one."""
ATTEMPTS = 3
"""To find a stage in the middle of its work."""


class Bench:
    """The project that faults are tried on, and a Prefect service of each kind when one is needed.

    A context manager: ends the services, and what a broken case has left.

    Attributes:
        room: bytes that are to be left on a disk that gets full.
    """

    def __init__(self, project: Project, scratch: Path) -> None:
        self.project = project
        self.scratch = scratch
        self.room = 0
        self._services: dict[str, Service] = {}

    def service(self, kind: str) -> Service:
        """That of a kind, up; the same one for later faults, of one kind at a time."""
        if kind not in self._services:
            self.end()
            made = Service(self.project, self.scratch / f"prefect_{kind}", kind)
            self._services[kind] = made
            made.__enter__()
        return self._services[kind]

    def end(self) -> None:
        """End every service."""
        while self._services:
            self._services.popitem()[1].__exit__()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self) -> None:
        """End the services, and kill what a broken case has left."""
        self.end()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def renew(self, finished: Project) -> None:
        """Put a copy of a finished project in place of this one, which a case has spoilt."""
        self.clear()
        self.project = finished.copied(self.project.folder)

    def left(self) -> dict[int, list[str]]:
        """Processes of runs: all that work in the project but what takes runs, and its server."""
        services = self._services.values()
        runners = {s.runner.pid for s in services if s.runner is not None}
        return {
            pid: words
            for pid, words in processes(self.project.folder).items()
            if pid not in runners and not any(s.is_server(words) for s in services)
        }


@dataclass
class Hit:
    """What happened from the fault on.

    Attributes:
        at: the moment of the fault (``time.monotonic``).
        told: what the run had to say of it.
        gone_s: seconds until nothing of the run was left; None: it went on.
        goes_on: the run is expected to end by itself.
        run: id of the flow run.
        problems: what is not as it must be; a way out adds its own.
    """

    at: float
    told: str = ""
    gone_s: float | None = None
    goes_on: bool = False
    run: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: of the row.
        stages: where it is tried.
        disturb: brings it in while the stage is at work.
        recover: the way out; what had to be done, in a few words.
        wants: why it cannot be tried here; '' where it can.
        most_gone_s: a run that ends must be gone after so many seconds.
        undo: the stage is undone first, so that there is something to do.
        place: another project to try it on, with a reference of its own.
    """

    name: str
    stages: tuple[str, ...]
    disturb: Callable[[Bench, str], Hit]
    recover: Callable[[Bench, str, Hit], str]
    wants: Callable[[], str] = lambda: ""
    most_gone_s: float = GONE_S
    undo: bool = True
    place: Callable[[Bench, str], AbstractContextManager[Bench]] = lambda bench, stage: nullcontext(
        bench
    )


@dataclass
class Row:
    """The outcome of one fault at one stage; it held if there are no ``problems``."""

    fault: str
    stage: str
    outcome: str
    gone_s: float | None = None
    recovery_s: float | None = None
    trainers: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: bool = False

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def tried(fault: Fault, bench: Bench, stage: str) -> Row:
    """Bring ``fault`` into ``stage`` and out again; the project is looked at after both."""
    if reason := fault.wants():
        return Row(fault.name, stage, f"not tried: {reason}", skipped=True)
    with fault.place(bench, stage) as place:
        for _ in range(ATTEMPTS):
            try:
                return _tried(fault, place, stage)
            except MissedError as error:
                missed = str(error)
                until(lambda: not place.left(), STAGE_S)
    return Row(fault.name, stage, "missed", problems=[missed])


def _tried(fault: Fault, bench: Bench, stage: str) -> Row:
    project = bench.project
    if fault.undo:
        project.forget(stage)
    with Watch(project.folder) as watch:
        hit = fault.disturb(bench, stage)
        if fault.undo:
            hit.problems += [f"after it: {what}" for what in project.lost(stage)]
        way_out = fault.recover(bench, stage, hit)
        recovery = time.monotonic() - hit.at
    problems = hit.problems + project.differs()
    if watch.most > 1:
        problems.append(f"{watch.most} processes of a stage at once")
    if until(lambda: not bench.left(), GONE_S) is None:
        problems.append(f"left running: {sorted(bench.left().values())}")
    if hit.gone_s is None and not hit.goes_on:
        problems.append(f"still running after {GONE_S:g} s")
    if hit.gone_s is not None and hit.gone_s > fault.most_gone_s:
        problems.append(f"gone only after {hit.gone_s:.1f} s")
    outcome = "; ".join(part for part in (hit.told, way_out) if part)
    row = Row(fault.name, stage, outcome, hit.gone_s, recovery, watch.most, problems)
    return _rounded(row)


def _rounded(row: Row) -> Row:
    for name in ("gone_s", "recovery_s"):
        value = getattr(row, name)
        setattr(row, name, None if value is None else round(value, 1))
    return row


def rerun(bench: Bench, stage: str, hit: Hit) -> str:
    """``dvc repro`` of the stage: it must succeed, and run no other stage than this one."""
    process = bench.project.repro(stage)
    text = said(process)
    if process.returncode != 0:
        hit.problems.append(f"the rerun failed: {errors(text)}")
    ran = [line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")]
    if others := sorted(set(ran) - {stage}):
        hit.problems.append(f"ran again though finished: {', '.join(others)}")
    if not ran:
        return "there was nothing left to do"
    return f"dvc repro{' went on from its checkpoint' if 'resuming at step' in text else ''}"


def nothing(bench: Bench, stage: str, hit: Hit) -> str:
    """There is nothing to recover from."""
    return ""
