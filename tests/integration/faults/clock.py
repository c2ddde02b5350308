"""The wall clock of a run, and of the server under it, is set to another day in its middle.

A library of our own is preloaded (``clock.c``): under libfaketime Python's sleeps fail.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.integration.faults.case import Bench, Fault, Hit, nothing
from tests.integration.faults.project import errors, held, said
from tests.integration.faults.served import STUCK_S, WELL

SOURCE = Path(__file__).with_name("clock.c")
DAY_S = 86400
DAYS = {"ahead": 2, "back": -2}
ONE = "train_unet"


def no_compiler() -> str:
    """Why the clock cannot be set."""
    return "" if shutil.which("gcc") else "gcc is not installed"


def clock_of(bench: Bench) -> Path:
    """Holds by how many seconds the clock of the processes is off that the place has begun."""
    return bench.scratch / "clock"


@contextmanager
def settable(bench: Bench, stage: str) -> Iterator[Bench]:
    """The same project with services of its own, in whose processes the clock can be set."""
    bench.end()
    with Bench(bench.project, bench.scratch / "clocked") as place:
        shutil.rmtree(place.scratch, ignore_errors=True)
        place.scratch.mkdir()
        library = place.scratch / "clock.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        clock_of(place).write_text("0", encoding="utf-8")
        added = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(clock_of(place))}
        place.project.extra |= added
        try:
            yield place
        finally:
            place.clear()
            for name in added:
                del place.project.extra[name]


def jump(bench: Bench, stage: str, days: int) -> Hit:
    """While ``dvc repro`` is at work on the stage."""
    process = bench.project.repro(stage)
    with held(bench.project, stage):
        at = time.monotonic()
        clock_of(bench).write_text(str(days * DAY_S), encoding="utf-8")
    text = said(process)
    hit = Hit(at, "the run went on to its end", goes_on=True)
    if process.returncode:
        hit.problems.append(f"it failed: {errors(text)}")
    return hit


def jump_served(bench: Bench, stage: str, days: int, kind: str) -> Hit:
    """While a run is at work on the stage: for the server, what takes runs, the run, its stage."""
    run = bench.service(kind).ask()
    with held(bench.project, stage):
        at = time.monotonic()
        clock_of(bench).write_text(str(days * DAY_S), encoding="utf-8")
    return Hit(at, run=run, goes_on=True)


def runs_are_taken(bench: Bench, stage: str, hit: Hit, kind: str) -> str:
    """The run goes on, and another one that is asked for on the new day has its turn.

    With a worker the automation takes two days without a sign of life for the end of the run, which
    is called crashed; its work goes on all the same.
    """
    service = bench.service(kind)
    first = service.ended(hit.run)
    second = service.ended(another := service.ask(), STUCK_S)
    for run, name, well in (
        (hit.run, first, (*WELL, "Crashed") if kind == "worker" else WELL),
        (another, second, WELL),
    ):
        if name not in well:
            hit.problems.append(f"a run: {name or 'not over'}, {service.state(run)}")
    return f"the run: {first or 'not over'}; one of the new day: {second or 'not over'}"


def _jumps(way: str) -> Iterator[Fault]:
    def fault(where: str, stages: tuple[str, ...], disturb: Callable[[Bench, str], Hit],
              recover: Callable[[Bench, str, Hit], str]) -> Fault:  # fmt: skip
        return Fault(
            name=f"clock jumps two days {way}{where}",
            stages=stages,
            disturb=disturb,
            recover=recover,
            wants=no_compiler,
            place=settable,
        )

    days = DAYS[way]
    yield fault("", ("download@hypersim", ONE), partial(jump, days=days), nothing)
    for kind, who in (("serve", "flows.serve"), ("worker", "a worker")):
        yield fault(
            f" under the server, {who}",
            (ONE,),
            partial(jump_served, days=days, kind=kind),
            partial(runs_are_taken, kind=kind),
        )


CLOCK: tuple[Fault, ...] = (*_jumps("ahead"), *_jumps("back"))
