"""Faults of what lies around: DVC's cache, locks that were left, a second run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.faults.case import Bench, Fault, Hit, nothing, rerun
from tests.integration.faults.project import errors, held, said, until

SECOND_S = 40.0
"""Patience with a second run that is refused."""


# --- the cache ------------------------------------------------------------------------------


def object_of(bench: Bench, stage: str) -> Path:
    """The largest object among a stage's outputs that no other stage has."""
    project, cache = bench.project, bench.project.cache
    others = set[str]().union(*(project.objects(s) for s in project.lock if s != stage))
    paths = [cache / name[:2] / name[2:] for name in project.objects(stage) - others]
    return max((p for p in paths if p.is_file()), key=lambda path: path.stat().st_size)


def damage(change: Callable[[Path], None], tells: bool) -> Callable[[Bench, str], Hit]:
    """A fault that changes the object in its place; ``tells``: time and size show it."""

    def disturb(bench: Bench, stage: str) -> Hit:
        path = object_of(bench, stage)
        before = path.stat()
        path.chmod(0o644)
        change(path)
        path.chmod(0o444)
        if not tells:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return Hit(time.monotonic(), gone_s=0.0)

    return disturb


def flip(path: Path) -> None:
    """One byte in the middle."""
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))


def cut(path: Path) -> None:
    """The second half is gone."""
    os.truncate(path, path.stat().st_size // 2)


def object_is_gone(bench: Bench, stage: str) -> Hit:
    """The object, and the stage's outputs with it."""
    object_of(bench, stage).unlink()
    for out in bench.project.outs(stage):
        path = bench.project.folder / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Hit(time.monotonic(), gone_s=0.0)


def checked(bench: Bench, stage: str, hit: Hit) -> str:
    """``python -m flows.cache_check`` finds it, ``dvc repro`` makes it again."""
    command = [sys.executable, "-m", "flows.cache_check"]
    folder, env = bench.project.folder, bench.project.env
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 1 or "1 damaged objects" not in done.stdout:
        hit.problems.append(f"cache_check did not find it: {done.stdout} {done.stderr}")
    return f"flows.cache_check found it, {rerun(bench, stage, hit)}"


# --- locks ----------------------------------------------------------------------------------


def gone_pid() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def dvc_record(bench: Bench, stage: str, pid: int) -> None:
    """Leave DVC's locks as a run that writes the stage's outputs does."""
    folder = bench.project.folder
    holder = {"pid": pid, "cmd": f"dvc repro {stage}"}
    paths = [str(folder / out) for out in bench.project.outs(stage)]
    content = json.dumps({"write": dict.fromkeys(paths, holder), "read": {}})
    (folder / ".dvc" / "tmp" / "rwlock").write_text(content, encoding="utf-8")
    (folder / ".dvc" / "tmp" / "lock").write_text(f"{pid}\n", encoding="utf-8")


def dead_dvc(bench: Bench, stage: str) -> Hit:
    """DVC's locks and the stage's own, of processes that have ended."""
    dvc_record(bench, stage, gone_pid())
    own = bench.project.folder / ".work" / "locks" / f"{stage}.lock"
    own.write_text(str(gone_pid()), encoding="utf-8")
    return Hit(time.monotonic(), gone_s=0.0)


def foreign_pid(bench: Bench, stage: str) -> Hit:
    """After a restart of the machine another program has the number."""
    dvc_record(bench, stage, os.getpid())
    return refused(bench, stage)


def cut_record(bench: Bench, stage: str) -> Hit:
    """A full disk cut DVC's record short."""
    (bench.project.folder / ".dvc" / "tmp" / "rwlock").write_text("", encoding="utf-8")
    return refused(bench, stage)


def refused(bench: Bench, stage: str) -> Hit:
    """``dvc repro``, which DVC refuses with what to do."""
    at, process = time.monotonic(), bench.project.repro(stage)
    text = said(process)
    hit = Hit(at, f"dvc repro: {errors(text)}", gone_s=0.0)
    if process.returncode == 0:
        hit.told = "dvc repro went through"
    return hit


def freed(bench: Bench, stage: str, hit: Hit) -> str:
    """What the flow does before it runs stages; then DVC runs."""
    code = "from pathlib import Path; from flows._locks import free_left_locks as free"
    command = [sys.executable, "-c", f"{code}; print(len(free(Path())))"]
    folder, env = bench.project.folder, bench.project.env
    freed = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return f"train-metricgold frees {freed.stdout.strip()} by itself, {rerun(bench, stage, hit)}"


# --- two runs at once -----------------------------------------------------------------------


def second_repro(bench: Bench, stage: str) -> Hit:
    """Another ``dvc repro`` of the same stage while the first one is at work."""
    first = bench.project.repro(stage)
    with held(bench.project, stage):
        at = time.monotonic()
        second = bench.project.repro(stage)
        until(lambda: second.poll() is not None, SECOND_S)
        waits = second.poll() is None
    told = [said(second), said(first)]
    hit = Hit(
        at, "the second one waits" if waits else f"the second: {errors(told[0])}", goes_on=True
    )
    if first.returncode:
        hit.problems.append(f"the first one failed: {errors(told[1])}")
    return hit


ONE = ("train_unet",)
STATE: tuple[Fault, ...] = (
    Fault(
        name="cache object cut short",
        stages=ONE,
        disturb=damage(cut, tells=True),
        recover=checked,
        undo=False,
    ),
    Fault(
        name="cache object rotten, its time unchanged",
        stages=ONE,
        disturb=damage(flip, tells=False),
        recover=checked,
        undo=False,
    ),
    Fault(
        name="cache object and output gone",
        stages=ONE,
        disturb=object_is_gone,
        recover=rerun,
        undo=False,
    ),
    Fault(
        name="locks left by dead processes",
        stages=ONE,
        disturb=dead_dvc,
        recover=rerun,
    ),
    Fault(
        name="lock whose process number another program has",
        stages=ONE,
        disturb=foreign_pid,
        recover=freed,
    ),
    Fault(
        name="lock record cut short",
        stages=ONE,
        disturb=cut_record,
        recover=freed,
    ),
    Fault(
        name="two dvc repro at once",
        stages=ONE,
        disturb=second_repro,
        recover=nothing,
    ),
)
