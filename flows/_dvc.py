"""DVC as the flow sees it: the order of the stages, what is stale, one stage at a time.

DVC is driven by its command line (:mod:`flows._dvc_server`), in process groups of its own, so that
whatever ends the flow ends the stages that are running.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from flows._dvc_server import DvcServer
from flows._locks import free_left_locks
from flows._stage import TEMPORARY
from metricgold.errors import UserError

Graph = dict[str, set[str]]
"""Stage to the stages that it needs; in the order of dvc.yaml."""

_EDGE = re.compile(r'^\s*"(?P<before>[^"]+)" -> "(?P<after>[^"]+)"')


WAITING = ("--wait-for-lock",)
"""Global options of every DVC command: another run is waited for."""


class StageError(UserError):
    """A stage or a DVC command failed; the message holds the reason it gave."""


class TemporaryError(StageError):
    """The network or a server failed, so another attempt is worth while."""


def refuse_inside_a_stage() -> None:
    """DVC holds its lock while a stage runs, so a stage cannot call DVC.

    Raises:
        UserError: this process belongs to a stage.
    """
    if stage := os.environ.get("DVC_STAGE"):
        raise UserError(f"stage '{stage}' tries to run DVC; stages are run by DVC, not the reverse")


def dvc_command(*arguments: str) -> list[str]:
    """The DVC of this environment; waits for the lock instead of failing.

    Raises:
        UserError: called inside a stage.
    """
    refuse_inside_a_stage()
    return [sys.executable, "-m", "dvc", *WAITING, *arguments]


def dvc_output(root: Path, *arguments: str) -> str:
    """Standard output of a DVC command.

    Raises:
        StageError: it failed; with the last line it printed.
    """
    done = subprocess.run(
        dvc_command(*arguments), cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StageError(f"dvc {arguments[0]}: {reason(done.stderr.splitlines())}")
    return done.stdout


def reason(lines: Sequence[str]) -> str:
    """Why a command failed: what follows its first 'error:', up to two lines; else its last line.

    DVC's own last words ("failed to reproduce 'x'") say only that something failed.
    """
    for i, line in enumerate(lines):
        if line.lower().startswith("error: ") and "failed to reproduce" not in line:
            continued = [more.strip() for more in lines[i + 1 : i + 2] if more.startswith(" ")]
            return " ".join([line.partition(": ")[2], *continued])
    return lines[-1] if lines else "it printed nothing"


def parse_graph(names: Sequence[str], dot: str) -> Graph:
    """Stages and their needs from ``dvc stage list --name-only`` and ``dvc dag --dot``."""
    graph: Graph = {name: set() for name in names}
    for line in dot.splitlines():
        if match := _EDGE.match(line):
            graph.setdefault(match["after"], set()).add(match["before"])
    return graph


def stage_order(graph: Graph) -> list[str]:
    """Every stage after all it needs; ties in the order of dvc.yaml."""
    position = {name: i for i, name in enumerate(graph)}
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=lambda n: position.get(n, len(position)))
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


def with_followers(graph: Graph, changed: Collection[str]) -> set[str]:
    """``changed`` and every stage after one of them: all that may have to run."""
    stale = set(changed)
    for name in stage_order(graph):
        if graph[name] & stale:
            stale.add(name)
    return stale


def needed_by(graph: Graph, stages: Collection[str]) -> set[str]:
    """Everything that ``stages`` need, directly or not, without themselves."""
    found: set[str] = set()
    todo = list(stages)
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found - set(stages)


def changed_stages(root: Path) -> set[str]:
    """Stages whose own dependencies, parameters, command or outputs changed."""
    return parse_status(dvc_output(root, "status", "--json"))


def parse_status(printed: str) -> set[str]:
    """The stages that ``dvc status --json`` names."""
    return set(json.loads(printed or "{}"))


def apply_overrides(path: Path, overrides: Sequence[str]) -> None:
    """Change ``params.yaml`` as ``dvc exp run -S key=value`` does, comments kept.

    Raises:
        UserError: an override cannot be parsed or names an unknown key.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides as apply

    try:
        apply(path, list(overrides))
    except (DvcException, OSError) as error:
        detail = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path.name}: cannot apply {', '.join(overrides)}: {detail}") from None


def metric_rows(shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Flat rows (file, metric, value) of ``dvc metrics show --json``."""
    rows: list[dict[str, Any]] = []

    def walk(file: str, key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(file, f"{key}.{name}" if key else name, inner)
        else:
            rows.append({"file": file, "metric": key, "value": value})

    for revision in shown.values():
        for file, body in revision.get("data", {}).items():
            walk(file, "", body.get("data", {}))
    return rows


class Pipeline:
    """The pipeline in a folder, through a DVC that is imported once; ends what it started.

    Locks that DVC's record has of processes that are no DVC any more are dropped first.

    Raises:
        UserError: made inside a stage, where DVC holds its lock already.
    """

    def __init__(self, root: Path) -> None:
        refuse_inside_a_stage()
        self.root = root
        free_left_locks(root)
        self._server = DvcServer(root)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    def graph(self) -> Graph:
        """Every stage with its needs."""
        names = self._output("stage", "list", "--name-only").split()
        return parse_graph(names, self._output("dag", "--dot"))

    def changed(self) -> set[str]:
        """See :func:`changed_stages`."""
        return parse_status(self._output("status", "--json"))

    def metrics(self) -> list[dict[str, Any]]:
        """Every metric of the workspace, in rows."""
        return metric_rows(json.loads(self._output("metrics", "show", "--json")))

    def _output(self, *arguments: str) -> str:
        """Standard output of a DVC command; see :func:`dvc_output`."""
        lines: list[str] = []
        with tempfile.TemporaryFile() as errors:
            command = [*WAITING, *arguments]
            status = self._server.run(command, lines.append, errors=errors.fileno())
            errors.seek(0)
            told = errors.read().decode("utf-8", errors="replace")
        if status != 0:
            raise StageError(f"dvc {arguments[0]}: {reason(told.splitlines())}")
        return "\n".join(lines)

    def reproduce(
        self,
        stage: str,
        write: Callable[[str], None],
        *,
        force: bool = False,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """``dvc repro --single-item stage``, its output line by line to ``write``.

        Raises:
            TemporaryError: it failed for a reason that may be gone when it is tried again.
            StageError: it failed, or took too long; with the reason that it printed.
        """
        last: deque[str] = deque(maxlen=50)

        def keep(line: str) -> None:
            last.append(line)
            write(line)

        command = [*WAITING, "repro", "--single-item", *(["--force"] if force else []), stage]
        try:
            inherited = {"METRICGOLD_PYTHON": sys.executable, **(env or {})}
            status = self._server.run(command, keep, inherited, timeout_s)
        except TimeoutError:
            raise StageError(f"stage '{stage}' was ended after {timeout_s:g} s") from None
        if status != 0:
            ended = f"exited with {TEMPORARY}"
            temporary = any(line.startswith("ERROR: ") and line.endswith(ended) for line in last)
            raise (TemporaryError if temporary else StageError)(
                f"stage '{stage}' failed: {reason(list(last))}"
            )
