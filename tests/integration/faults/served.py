"""Faults of runs on a Prefect server: what is killed, cancelled, lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.integration.faults.case import STAGES, Bench, Fault, Hit, Row, nothing
from tests.integration.faults.local import LONG
from tests.integration.faults.project import (
    GONE_S,
    STAGE_S,
    Gate,
    MissedError,
    Watch,
    errors,
    held,
    parent_of,
    said,
    until,
)
from tests.integration.faults.service import ALONE
from tests.integration.faults.state import SECOND_S

WELL = ("Completed", "Skipped")
CANCEL_S = 5.0
"""A cancelled run leaves no process after so long."""
SURE_S = 3.0
"""Nothing of a run is left for so long: it is over."""
STUCK_S = 150.0
"""A run that has not begun by then does not get its turn."""


def new_run(bench: Bench, stage: str, hit: Hit, kind: str = "worker") -> str:
    """What became of the run, if it is not over, and a new one; that must end well."""
    service = bench.service(kind)
    first = service.ended(hit.run) if hit.goes_on else service.state(hit.run)["name"]
    told = f"the run: {first or 'unknown to the server'}"
    if hit.goes_on and first in WELL:
        return told
    again = service.ask()
    if not (name := service.ended(again, STUCK_S)) and not bench.left():
        hit.problems.append(f"a new run did not get its turn in {STUCK_S:g} s")
        service.prefect("flow-run", "cancel", hit.run)
    name = name or service.ended(again)
    if name not in WELL:
        hit.problems.append(f"a new run: {name or 'did not end'}, {service.state(again)}")
    return f"{told}; a new run: {name}"


def server_away(bench: Bench, stage: str, kind: str, seconds: float) -> Hit:
    """The server is killed and started again after some time; the run's end falls into it."""
    service = bench.service(kind)
    run = service.ask()
    with held(bench.project, stage):
        at = time.monotonic()
        service.kill("server")
    time.sleep(max(seconds, 2))
    service.start_server()
    return Hit(at, run=run, goes_on=True)


def kill_flow(bench: Bench, stage: str, kind: str) -> Hit:
    """Of the run's own process, which the runner has started."""
    service = bench.service(kind)
    run = service.ask()
    with held(bench.project, stage):
        flow = flow_process(bench)
        at = time.monotonic()
        os.kill(flow, signal.SIGKILL)
    gone = until(lambda: not bench.left(), GONE_S)
    service.ended(run, GONE_S)
    return Hit(at, run=run, gone_s=gone)


def flow_process(bench: Bench) -> int:
    """Of the run itself: the one that has started what runs DVC."""
    dvc = [pid for pid, words in bench.left().items() if "flows._dvc_server" in words]
    (flow,) = {parent_of(pid) for pid in dvc} - set(dvc)
    return flow


def kill_everything(bench: Bench, stage: str, kind: str) -> Hit:
    """Of all but the server, as when the machine of the runner is switched off."""
    service = bench.service(kind)
    run = service.ask()
    with held(bench.project, stage):
        at = time.monotonic()
        service.kill("runner")
        for pid in bench.left():
            os.kill(pid, signal.SIGKILL)
    gone = until(lambda: not bench.left(), GONE_S)
    service.start_runner()
    return Hit(at, run=run, gone_s=gone)


def cancel(bench: Bench, stage: str, way: str, kind: str = "serve") -> Hit:
    """By the command line, or as the page does it."""
    service = bench.service(kind)
    run = service.ask()
    with held(bench.project, stage):
        if way == "CLI":
            service.prefect("flow-run", "cancel", run)
        else:
            wanted = {"state": {"type": "CANCELLING"}, "force": True}
            service.api.got("POST", f"flow_runs/{run}/set_state", wanted)
        at = time.monotonic()
    gone = until(lambda: not bench.left(), GONE_S)
    hit = Hit(at, run=run, gone_s=gone)
    if (name := service.ended(run, 30)) != "Cancelled":
        hit.problems.append(f"the run is {name or 'not over'}")
    return hit


def lose_database(bench: Bench, stage: str, running: bool) -> Hit:
    """Prefect's SQLite files are deleted, under the server or while it is down."""
    service = bench.service("serve")
    run = service.ask()
    with held(bench.project, stage):
        at = time.monotonic()
        if not running:
            service.kill("server")
        for path in service.home.glob("prefect.db*"):
            path.unlink()
    if not running:
        service.start_server()
    gone = until(lambda: not bench.left(), GONE_S + STUCK_S)
    return Hit(at, run=run, gone_s=None if gone is None else 0.0, goes_on=True)


def everything_anew(bench: Bench, stage: str, hit: Hit) -> str:
    """Both are started again, which registers the deployments."""
    state = bench.service("serve").state(hit.run)["name"]
    bench.end()
    service = bench.service("serve")
    run = service.ask()
    if (name := service.ended(run)) not in WELL:
        hit.problems.append(f"a new run: {name}, {service.state(run)}")
    told = f"the run: {state or 'unknown to the server'}"
    return f"{told}; server and flows.serve started again, a new run: {name}"


def second_run(bench: Bench, stage: str) -> Hit:
    """Another run is asked for while one is at work."""
    service = bench.service("serve")
    run = service.ask()
    with held(bench.project, stage):
        at = time.monotonic()
        second = service.ask()
        time.sleep(5)
        waiting = service.state(second)["type"] in ("SCHEDULED", "PENDING")
    hit = Hit(at, f"the second one {'waits' if waiting else 'began'}", run=run, goes_on=True)
    names = [service.ended(run), service.ended(second)]
    if not waiting or names != ["Completed", "Skipped"]:
        hit.problems.append(f"the runs ended as {names}")
    hit.told += f"; they end as {' and '.join(names)}"
    return hit


def shell_beside(bench: Bench, stage: str) -> Hit:
    """``dvc repro`` in a shell while a run is at work."""
    service = bench.service("serve")
    run = service.ask()
    with held(bench.project, stage):
        at = time.monotonic()
        second = bench.project.repro(stage)
        until(lambda: second.poll() is not None, SECOND_S)
        waits = second.poll() is None
    text = said(second)
    told = f"dvc repro {'waits' if waits else f'is refused: {errors(text)}'}"
    return Hit(at, told, run=run, goes_on=True)


# --- at every stage of one run -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InTurn:
    """A fault that strikes one run at each of its stages.

    Attributes:
        name: of the rows.
        kind: of the service.
        what: is killed, and started again at once: ``runner`` or ``server``.
        stages: where.
    """

    name: str
    kind: str
    what: str
    stages: tuple[str, ...] = STAGES


def tried_in_turn(fault: InTurn, bench: Bench, stages: Sequence[str]) -> Iterator[Row]:
    """Undo ``stages``, ask for a run, strike at each of them; what is wrong at the end is said
    in the last row. Where a run has ended by the fault, a new one is asked for."""
    project, service = bench.project, bench.service(fault.kind)
    for stage in stages:
        project.forget(stage)
    run = service.ask()
    with Watch(project.folder) as watch:
        for number, stage in enumerate(stages):
            hit = Hit(0.0, run=run)
            row = _struck(fault, bench, stage, stages[number:], hit)
            row.trainers, run = watch.most, hit.run
            if stage == stages[-1]:
                name = service.ended(run)
                row.outcome += f"; at the end the run: {name or 'not over'}"
                row.problems += project.differs()
            if watch.most > 1:
                row.problems.append(f"{watch.most} processes of a stage at once")
            yield row


def _struck(fault: InTurn, bench: Bench, stage: str, undone: Sequence[str], hit: Hit) -> Row:
    """Kill, look, start again, wait until the stage is done."""
    project, service = bench.project, bench.service(fault.kind)
    row = Row(fault.name, stage, "the run went on")
    try:
        with held(project, stage):
            hit.at = time.monotonic()
            service.kill(fault.what)
    except MissedError as error:
        row.outcome, row.problems = "missed", [str(error)]
        return row
    with Gate(project.folder, stage):
        row.problems += [f"after it: {what}" for what in project.lost(*undone)]
        (service.start_server if fault.what == "server" else service.start_runner)()
        if not _done(bench, stage):
            first, hit.run = hit.run, service.ask()
            if until(bench.left, STUCK_S) is None or not _done(bench, stage):
                row.problems.append(f"no run went on with it in {STUCK_S:g} s")
            row.outcome = f"the run ended with it: {service.state(first)['name']}; a new one"
        row.recovery_s = round(time.monotonic() - hit.at, 1)
    return row


def _done(bench: Bench, stage: str) -> bool:
    """Wait until the stage is done, or nothing of a run is left for some seconds."""

    def over() -> bool:
        return until(bench.left, SURE_S) is None

    return bool(until(lambda: bench.project.has(stage) or over(), STAGE_S)) and (
        bench.project.has(stage)
    )


def _served(name: str, stages: tuple[str, ...], disturb: Callable[..., Hit], kind: str) -> Fault:
    recover = partial(new_run, kind=kind)
    return Fault(name=name, stages=stages, disturb=partial(disturb, kind=kind), recover=recover)


def _cancelled(way: str, stages: tuple[str, ...], kind: str) -> Fault:
    return Fault(
        name=f"cancelled by the {way}, {kind}",
        stages=stages,
        disturb=partial(cancel, way=way, kind=kind),
        recover=partial(new_run, kind=kind),
        most_gone_s=CANCEL_S,
    )


ONE = ("train_unet",)
SERVED: tuple[Fault | InTurn, ...] = (
    InTurn(name="SIGKILL of the server", kind="serve", what="server"),
    InTurn(name="SIGKILL of flows.serve", kind="serve", what="runner"),
    InTurn(name="SIGKILL of the worker", kind="worker", what="runner"),
    _served("SIGKILL of the run's process under a worker", ONE, kill_flow, "worker"),
    _served("SIGKILL of worker and run at once", ONE, kill_everything, "worker"),
    _cancelled("CLI", ONE, "worker"),
    _served("SIGKILL of the server of flows.serve", ONE, partial(server_away, seconds=0), ALONE),
    _served("server away for 20 s", ONE, partial(server_away, seconds=20), "serve"),
    _served("server away for 100 s", ONE, partial(server_away, seconds=100), "serve"),
    _cancelled("CLI", LONG, "serve"),
    _cancelled("page", ONE, "serve"),
    Fault(name="two runs at once", stages=ONE, disturb=second_run, recover=nothing),
    Fault(
        name="dvc repro beside a run",
        stages=ONE,
        disturb=shell_beside,
        recover=partial(new_run, kind="serve"),
    ),
    Fault(
        name="database lost while the server is down",
        stages=ONE,
        disturb=partial(lose_database, running=False),
        recover=everything_anew,
    ),
    Fault(
        name="database lost under the server",
        stages=ONE,
        disturb=partial(lose_database, running=True),
        recover=everything_anew,
    ),
)
