"""Faults of a run by ``dvc repro``, where no server is there: what is killed, what gets full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.integration.faults.case import STAGES, Bench, Fault, Hit, rerun
from tests.integration.faults.project import (
    GONE_S,
    STAGE_S,
    Project,
    errors,
    held,
    said,
    until,
)
from tests.integration.faults.state import freed

LONG = ("preprocess@hypersim", "train_unet", "export_onnx")
"""A conversion, a training, an export: where faults are tried that ask less for other places."""
SPARE = 64 << 20
"""Bytes that a small disk has more than what a finished project takes."""


# --- killed ---------------------------------------------------------------------------------


def kill_dvc(bench: Bench, stage: str) -> Hit:
    """Of dvc alone, as by the kernel out of memory."""
    process = bench.project.repro(stage)
    with held(bench.project, stage):
        at = time.monotonic()
        process.kill()
    gone = until(lambda: not bench.left(), GONE_S)
    said(process)
    return Hit(at, gone_s=gone)


def kill_stage(bench: Bench, stage: str) -> Hit:
    """Of the stage's process."""
    process = bench.project.repro(stage)
    with held(bench.project, stage) as pid:
        at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
    return ended(bench, process, at)


def interrupt(bench: Bench, stage: str) -> Hit:
    """Ctrl-C, which a terminal sends to dvc and the stage."""
    process = bench.project.repro(stage)
    with held(bench.project, stage) as pid:
        at = time.monotonic()
        for each in (process.pid, pid):
            os.kill(each, signal.SIGINT)
    return ended(bench, process, at)


def ended(bench: Bench, process: subprocess.Popen[str], at: float) -> Hit:
    """What is left when a run has failed, and what it said; a success is a problem."""
    text = said(process)
    gone = until(lambda: not bench.left(), GONE_S)
    hit = Hit(
        at, errors(text), max(gone or 0.0, time.monotonic() - at) if gone is not None else None
    )
    if process.returncode == 0:
        hit.problems.append("half of the work was taken for a success")
    if "Traceback (most recent call last)" in text:
        hit.problems.append("a traceback was shown")
    return hit


# --- the disk is full -----------------------------------------------------------------------


def no_tmpfs() -> str:
    """Why there can be no small disk."""
    return "" if os.geteuid() == 0 else "mounting a tmpfs needs root"


@contextmanager
def small_disk(bench: Bench, stage: str) -> Iterator[Bench]:
    """A copy of the project on a tmpfs, where only half of what the stage writes shall fit."""
    folder = Path(tempfile.mkdtemp(prefix="small_disk"))
    used = int(subprocess.check_output(["du", "-sB1", str(bench.project.folder)]).split()[0])
    size = f"size={used + SPARE}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        small = Bench(bench.project.copied(folder / "project"), folder)
        outs = tuple(bench.project.outs(stage))
        written = [small.project.folder / p for p in small.project.files if p.startswith(outs)]
        small.room = sum(path.stat().st_size for path in written) // 2
        with small:
            yield small
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill_disk(bench: Bench, stage: str) -> Hit:
    """Ballast takes the rest of the disk, and is removed when the run has failed."""
    at, ballast = time.monotonic(), bench.scratch / "ballast"
    with ballast.open("wb") as stream:
        left = shutil.disk_usage(bench.scratch).free - bench.room
        while left > 0:
            left -= stream.write(bytes(min(left, 1 << 20)))
    process = bench.project.repro(stage)
    hit = ended(bench, process, at)
    hit.at, hit.gone_s = time.monotonic(), 0.0  # nobody knows when it was full
    ballast.unlink()
    return hit


def after_full_disk(bench: Bench, stage: str, hit: Hit) -> str:
    """Where there was no room for a byte, DVC's own record is cut short."""
    record = bench.project.folder / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        return freed(bench, stage, hit)
    return rerun(bench, stage, hit)


# --- a source dies --------------------------------------------------------------------------

MIRROR = """
import os, sys, time
from pathlib import Path
from metricgold.data.mirror_server import Faults, MirrorServer

class Log(list):
    def append(self, entry):
        print(*entry, flush=True)

faults = Faults(drop_after=int(sys.argv[2]) or None, log=Log())
with MirrorServer(Path(sys.argv[1]), faults) as mirror:
    print(mirror.url, flush=True)
    while faults.drops:
        time.sleep(0.002)
    os._exit(1)
"""
"""Serves a folder; once it has sent so many bytes of a file it is dead."""
ARCHIVES = "rendered"


@contextmanager
def mirrored(bench: Bench, stage: str) -> Iterator[Bench]:
    """A copy whose dataset comes from a server of its own, in another process."""
    name = stage.partition("@")[2]
    with tempfile.TemporaryDirectory(prefix="mirrored") as folder:
        project = bench.project.copied(Path(folder) / "project")
        shutil.copytree(project.folder / f"artifacts/source/{name}", project.folder / ARCHIVES)
        path = project.folder / "params.yaml"
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = params["profiles"]["smoke"]["datasets"][name]
        del settings["procedural"]
        settings["mirrors"] = ["$FAULT_MIRROR"]
        path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        project.timed = f"artifacts/raw/{name}"
        with mirror(project):
            project.finish(f"preprocess@{name}")
        with Bench(project, Path(folder)) as made:
            yield made


@contextmanager
def mirror(project: Project, dies_after: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """The server, which the project's stages find."""
    log = project.folder / "mirror.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", MIRROR, ARCHIVES, str(dies_after)],
            cwd=project.folder,
            env=project.env,
            stdout=output,
        )
    try:
        until(lambda: log.read_text(encoding="utf-8").endswith("\n"), STAGE_S)
        project.extra["FAULT_MIRROR"] = log.read_text(encoding="utf-8").splitlines()[0]
        yield process
    finally:
        process.kill()
        process.wait()


def source_dies(bench: Bench, stage: str) -> Hit:
    """In the middle of the largest file."""
    project = bench.project
    sizes = [p.stat().st_size for p in (project.folder / ARCHIVES).rglob("*") if p.is_file()]
    with mirror(project, max(sizes) // 2) as process:
        run = project.repro(stage)
        process.wait(STAGE_S)
        at = time.monotonic()
        hit = ended(bench, run, at)
    kept = sum(p.stat().st_size for path in project.scratch(stage) for p in path.rglob("*.part"))
    hit.told += f" ({kept} bytes of what was begun were kept)"
    if not kept:
        hit.problems.append("what had arrived of the file was not kept")
    return hit


def source_is_back(bench: Bench, stage: str, hit: Hit) -> str:
    """The download goes on where it was; the shards are made of it anew."""
    project = bench.project
    with mirror(project):
        way = rerun(bench, stage, hit)
        shards = stage.replace("download", "preprocess")
        said(project.repro(shards))
    if "bytes=" not in (project.folder / "mirror.log").read_text(encoding="utf-8"):
        hit.problems.append("the file was fetched from its beginning again")
    return f"{way}, asked for the rest only"


LOCAL: tuple[Fault, ...] = (
    Fault(name="SIGKILL of dvc", stages=STAGES, disturb=kill_dvc, recover=rerun),
    Fault(name="SIGKILL of the stage", stages=STAGES, disturb=kill_stage, recover=rerun),
    Fault(name="Ctrl-C", stages=("train_unet",), disturb=interrupt, recover=rerun),
    Fault(
        name="disk full",
        stages=STAGES,
        disturb=fill_disk,
        recover=after_full_disk,
        wants=no_tmpfs,
        place=small_disk,
    ),
    Fault(
        name="source dies",
        stages=("download@virtual_kitti",),
        disturb=source_dies,
        recover=source_is_back,
        place=mirrored,
    ),
)
