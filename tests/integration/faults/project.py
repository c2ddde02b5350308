"""A finished run of the smoke profile, of which single stages can be undone and run again.

What is compared: ``dvc.lock``, every file of every output, every object of DVC's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.integration.service import ROOT, command, environment, pipeline_files, run

STAGE_S, GONE_S = 400.0, 15.0
"""Patience with one stage, and with processes that shall end (their own grace is
ten seconds)."""
NO_ENGINES = "raise ImportError('left out here: an engine is not the same bytes twice')\n"
"""In place of TensorRT-RTX, where it is installed; outputs could not be compared otherwise."""
LONGEST = 160
"""Letters of an error in a table."""
KINDS = frozenset(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
"""Stages without their datasets."""

Lock = dict[str, dict[str, Any]]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@dataclass
class Project:
    """A folder with the pipeline.

    Attributes:
        lock, files: ``dvc.lock`` and MD5s of a run that nothing disturbed.
        timed: an output whose ``manifest.json`` holds the time at which it was made, so that it is
            another one each time; only its other files are compared.
        extra: environment variables of its processes.
    """

    folder: Path
    lock: Lock = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    timed: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """Of its processes: its own code, this interpreter, no server."""
        code = {"PYTHONPATH": str(self.folder), "METRICGOLD_PYTHON": sys.executable}
        return environment(**code, **self.extra)

    def finish(self, *stages: str) -> Project:
        """Run what is stale, undisturbed; what comes out is the reference."""
        run(command("dvc"), "repro", *stages, cwd=self.folder, env=self.env)
        self.lock = self.read_lock()
        outs = [out for stage in self.lock for out in self.outs(stage)]
        self.files = {path: md5(self.folder / path) for out in outs for path in self._inside(out)}
        return self

    def copied(self, folder: Path) -> Project:
        """The same in another folder, in place of what is there; hard links inside of it stay."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        subprocess.run(["cp", "-a", f"{self.folder}/.", str(folder)], check=True)
        return Project(folder, self.lock, self.files, self.timed, dict(self.extra))

    def read_lock(self) -> Lock:
        """The stages of ``dvc.lock``."""
        text = (self.folder / "dvc.lock").read_text(encoding="utf-8")
        found: Lock = yaml.safe_load(text)["stages"]
        return found

    def outs(self, stage: str) -> list[str]:
        """Paths that a stage writes, as the reference has them."""
        return [str(out["path"]) for out in self.lock[stage].get("outs", [])]

    def _inside(self, out: str) -> list[str]:
        path = self.folder / out
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        return [str(p.relative_to(self.folder)) for p in found]

    @property
    def cache(self) -> Path:
        """DVC's objects, each named by its MD5."""
        return self.folder / ".dvc" / "cache" / "files" / "md5"

    def objects(self, stage: str) -> set[str]:
        """Names of the objects that hold a stage's outputs."""
        found = set()
        for out in self.lock[stage].get("outs", []):
            name = str(out["md5"])
            path = self.cache / name[:2] / name[2:]
            found.add(name)
            if name.endswith(".dir") and path.is_file():
                found |= {entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))}
        return found

    def forget(self, stage: str) -> None:
        """As if ``stage`` had never run: no outputs, no objects, no entry, no memory of runs."""
        others = set[str]().union(*(self.objects(s) for s in self.lock if s != stage))
        for name in self.objects(stage) - others:
            (self.cache / name[:2] / name[2:]).unlink(missing_ok=True)
        shutil.rmtree(self.folder / ".dvc" / "cache" / "runs", ignore_errors=True)
        left = [path for out in self.outs(stage) for path in self.folder.glob(f"{out}*")]
        for path in [*left, *self.scratch(stage)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        stages = {name: entry for name, entry in self.read_lock().items() if name != stage}
        text = yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False)
        (self.folder / "dvc.lock").write_text(text, encoding="utf-8")

    def scratch(self, stage: str) -> list[Path]:
        """What a stage keeps while it is not done."""
        return sorted((self.folder / ".work").glob(f"{stage.replace('@', '_')}*"))

    def has(self, stage: str) -> bool:
        """Whether a stage has been done again, with the reference's hashes."""
        try:
            return self.read_lock().get(stage) == self.lock[stage]
        except (OSError, yaml.YAMLError, TypeError, KeyError):  # DVC is writing it
            return False

    def lost(self, *undone: str) -> list[str]:
        """What was finished, besides the stages that were undone, and is not as it was."""
        try:
            lock = self.read_lock()
        except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
            return [f"dvc.lock cannot be read: {error}"]
        others = [s for s in self.lock if s not in undone]
        found = [s for s in others if self._compared(lock.get(s)) != self._compared(self.lock[s])]
        outs = [f"{out}/" for stage in undone for out in self.outs(stage)]
        kept = {p: value for p, value in self.files.items() if not f"{p}/".startswith(tuple(outs))}
        kept.pop(f"{self.timed}/manifest.json", None)
        found += [path for path, value in kept.items() if not self._is(path, value)]
        return [f"lost or changed: {what}" for what in found] + self.damaged()

    def _compared(self, entry: dict[str, Any] | None) -> dict[str, Any]:
        """An entry of ``dvc.lock`` without what is another one each time."""
        return {
            key: [each for each in value if each["path"] != self.timed]
            if key in ("deps", "outs")
            else value
            for key, value in (entry or {}).items()
        }

    def _is(self, path: str, value: str) -> bool:
        file = self.folder / path
        return file.is_file() and md5(file) == value

    def damaged(self) -> list[str]:
        """Objects of the cache that are not what their names say."""
        found = []
        for path in self.cache.glob("??/*"):
            if len(path.name) == 30 or path.suffix == ".dir":
                name = (path.parent.name + path.name).removesuffix(".dir")
                if md5(path) != name:
                    found.append(f"damaged in the cache: {name}")
        return found

    def differs(self) -> list[str]:
        """What is not as an undisturbed run leaves it."""
        left = [*self.folder.glob("artifacts/**/*.part"), *self.folder.glob(".work/**/.step*")]
        left += self.folder.glob(".work/**/step-*.pt")
        return [*self.lost(), *(f"left behind: {p.relative_to(self.folder)}" for p in left)]

    def repro(self, *arguments: str) -> subprocess.Popen[str]:
        """``dvc repro``, begun; it prints into a pipe."""
        return subprocess.Popen(
            [command("dvc"), "repro", *arguments],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def make_project(folder: Path) -> Project:
    """The smoke profile in ``folder`` with the code of today, finished (again, where it is stale).

    Raises:
        RuntimeError: a stage with the same inputs as the last time now gives other outputs, so
            there is no reference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline_files(folder, "smoke")
    (folder / "tensorrt_rtx.py").write_text(NO_ENGINES, encoding="utf-8")
    project = Project(folder).finish()
    path = folder.parent / "reference.yaml"
    before: Lock = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for stage, entry in project.lock.items():
        known = before.get(stage, {})
        same = [known.get(key) == entry.get(key) for key in ("deps", "params")]
        if all(same) and known.get("outs") != entry.get("outs"):
            raise RuntimeError(f"{stage}: other outputs from the same inputs; delete {folder}")
    path.write_text(yaml.safe_dump(project.lock), encoding="utf-8")
    return project


# --- processes ------------------------------------------------------------------------------


def processes(folder: Path) -> dict[int, list[str]]:
    """Command lines of the processes that work in ``folder`` or below it."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                where = os.readlink(entry / "cwd")
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if f"{where}/".startswith(f"{folder}/".replace("//", "/")) and words[0]:
                found[int(entry.name)] = words
    return found


def stages_at_work(folder: Path) -> dict[int, str]:
    """Processes that are a stage (not its helpers), with the stage's name in DVC."""
    found = {}
    for pid, words in processes(folder).items():
        if words[1:2] == ["-m"] and words[2].removeprefix("flows.") in KINDS:
            dataset = f"@{words[4]}" if words[3:4] == ["--dataset"] else ""
            found[pid] = words[2].removeprefix("flows.") + dataset
    return {pid: name for pid, name in found.items() if parent_of(pid) not in found}


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Watch(threading.Thread):
    """Looks ten times a second how many processes of the same stage there are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._folder = folder
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.1):
            names = list(stages_at_work(self._folder).values())
            self.most = max([self.most, *(names.count(name) for name in names)])

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()


class Gate(threading.Thread):
    """A context manager: stages other than ``stage`` are stopped as soon as they begin, so that
    the next one does not pass by while one is looked at; they go on when the block ends."""

    def __init__(self, folder: Path, stage: str) -> None:
        super().__init__(daemon=True)
        self._folder, self._stage = folder, stage
        self._stopped: set[int] = set()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            for pid, name in stages_at_work(self._folder).items():
                if name != self._stage and pid not in self._stopped:
                    os.kill(pid, signal.SIGSTOP)
                    self._stopped.add(pid)

    def __enter__(self) -> Gate:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()
        for pid in self._stopped & set(stages_at_work(self._folder)):
            os.kill(pid, signal.SIGCONT)


def until(condition: Callable[[], Any], timeout_s: float, every_s: float = 0.05) -> float | None:
    """Seconds until it held; None: it did not."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > timeout_s:
            return None
        time.sleep(every_s)
    return time.monotonic() - begin


class MissedError(RuntimeError):
    """The stage ended before the fault could be brought in."""


@contextmanager
def held(project: Project, stage: str) -> Iterator[int]:
    """Wait until ``stage`` is in the middle of its work, and hold it there (SIGSTOP) for the block.

    In the middle: training has left a checkpoint; other stages have begun to write; one that
    writes nothing but its figures has been at work for two seconds.

    Raises:
        MissedError: it did not come to that.
    """
    ours: list[int] = []

    def there() -> bool:
        ours[:] = [pid for pid, name in stages_at_work(project.folder).items() if name == stage]
        return bool(ours)

    if until(there, STAGE_S, 0.02) is None:
        raise MissedError(f"{stage} did not start")
    pid, began = ours[0], time.monotonic()
    while not _in_the_middle(project, stage, began):
        if pid not in processes(project.folder):
            raise MissedError(f"{stage} ended before it was in the middle of its work")
        time.sleep(0.002)
    try:
        os.kill(pid, signal.SIGSTOP)
        yield pid
    finally:
        if pid in stages_at_work(project.folder):
            os.kill(pid, signal.SIGCONT)


def _in_the_middle(project: Project, stage: str, began: float) -> bool:
    if "base" in stage or "train" in stage:
        return any(any(folder.glob("step-*.pt")) for folder in project.scratch(stage))
    folders = [out for out in project.outs(stage) if out.startswith("artifacts/")]
    if not folders:
        return time.monotonic() - began > 2
    begun = [path for out in folders for path in project.folder.glob(f"{out}*")]
    return any(any(path.iterdir()) for path in begun if path.is_dir())


def said(process: subprocess.Popen[str], timeout_s: float = STAGE_S) -> str:
    """What a process has printed, when it has ended.

    Raises:
        subprocess.TimeoutExpired: it has not; it is killed.
    """
    try:
        return process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def errors(text: str) -> str:
    """The lines that say what went wrong, for a table; DVC's last words only where it has others.

    A stage's last line of a traceback counts.
    """
    found = re.findall(r"(?mi)error: (.*)$|^(\w+(?:Error|Exception): .*)$", text)
    lines = list(dict.fromkeys((said or raised).strip() for said, raised in found))
    own = [line for line in lines if not line.startswith("failed to reproduce")]
    told = "; ".join(own or [line.rpartition(", ")[2] for line in lines]) or "no error"
    return told if len(told) <= LONGEST else f"{told[:LONGEST]} …"
