"""Every fault at every stage where it is tried: what is left, and how long until all is well again.

Usage: ``python scripts/fault_matrix.py [--faults "SIGKILL of dvc" ...] [--stages train_unet ...]``.
A project with the smoke profile is finished once in ``--work``, undisturbed; then each fault is
brought into a run of one stage of a copy. Afterwards nothing that was finished may be lost, no
process left, no stage have run twice at once, and ``dvc.lock`` must be that of the undisturbed run.
Prints a Markdown table of all rows in ``--out``, into which those of this call are put; exit status
1 if one of them did not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _header import header

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the tests' modules, which are installed nowhere

from flows._process import exit_on_sigterm  # noqa: E402
from metricgold import files  # noqa: E402
from tests.integration.faults import FAULTS, InTurn, rows_of  # noqa: E402
from tests.integration.faults.case import Bench, Fault, Row  # noqa: E402
from tests.integration.faults.project import make_project  # noqa: E402

OUT = ROOT / "docs" / "benchmarks" / "faults.json"
HEAD = (
    "| fault | stage | outcome | gone after [s] | time to recover [s] | held |\n" + "|---" * 6 + "|"
)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [HEAD]
    for row in rows:
        held = "not tried" if row["skipped"] else "**no**" if row["problems"] else "yes"
        outcome = "; ".join([row["outcome"], *row["problems"]]).replace("|", "/")
        times = [_shown(row[name]) for name in ("gone_s", "recovery_s")]
        lines.append("| " + " | ".join([row["fault"], row["stage"], outcome, *times, held]) + " |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def merged(path: Path, rows: list[Row]) -> list[dict[str, Any]]:
    """Rows of a former call and of this one, in the order of the faults and stages."""
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    found = {(row["fault"], row["stage"]): row for row in known}
    found |= {(row.fault, row.stage): row.record() for row in rows}
    order = [(fault.name, stage) for fault in FAULTS for stage in fault.stages]
    return [found[key] for key in order if key in found]


def units(
    options: argparse.Namespace, there: set[tuple[str, str]]
) -> Iterator[tuple[Fault | InTurn, list[str]]]:
    """What is to be tried at once: one fault at one stage, or in turn at all of one run."""
    for fault in FAULTS:
        stages = [
            stage
            for stage in fault.stages
            if (not options.faults or fault.name in options.faults)
            and (not options.stages or stage in options.stages)
            and not (options.missing and (fault.name, stage) in there)
        ]
        if isinstance(fault, InTurn) and stages:
            yield fault, stages
        elif isinstance(fault, Fault):
            yield from ((fault, [stage]) for stage in stages)


def unbroken(fault: Fault | InTurn, bench: Bench, stages: list[str]) -> Iterator[Row]:
    """The rows of a fault; one that says so where a case broke."""
    try:
        yield from rows_of(fault, bench, stages)
    except Exception as error:
        traceback.print_exc()
        problem = f"the case broke: {type(error).__name__}: {error}"
        yield Row(fault.name, stages[0], "", problems=[problem])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, with what they were made on."""
    command = "python scripts/fault_matrix.py"
    files.write_json(path, {**header(torch.device("cpu")), "command": command, "rows": rows})


def main() -> int:
    """Try, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", nargs="*", choices=[f.name for f in FAULTS], metavar="NAME")
    parser.add_argument("--stages", nargs="*", metavar="STAGE")
    parser.add_argument("--missing", action="store_true", help="only what --out does not have")
    parser.add_argument("--for-s", type=float, help="begin nothing new after so many seconds")
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "faults")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rows", nargs="*", type=Path, help="take in the rows of other calls too")
    options = parser.parse_args()
    exit_on_sigterm()
    begin, rows = time.monotonic(), list[Row]()
    for path in options.rows or ():
        rows += [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    there = {(row["fault"], row["stage"]) for row in merged(options.out, rows)}
    work = options.work.resolve()
    finished = make_project(work / "project")
    with Bench(finished.copied(work / "copy"), work) as bench:
        for fault, stages in units(options, there):
            if options.for_s is not None and time.monotonic() - begin > options.for_s:
                break
            first = len(rows)
            for row in unbroken(fault, bench, stages):
                rows.append(row)
                print(markdown([row.record()]).splitlines()[-1], flush=True)
                write(options.out, merged(options.out, rows))
            if any(row.problems for row in rows[first:]):
                bench.renew(finished)
    everything = merged(options.out, rows)
    write(options.out, everything)
    print(f"\n{markdown(everything)}")
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
