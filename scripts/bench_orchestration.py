"""What orchestration costs: runs with nothing to do, a stage under the flow, the command's help.

Usage: ``python scripts/bench_orchestration.py [--project FOLDER] [--rounds 5]``, alone on the
machine. ``--project`` is a copy of the project in which everything is up to date (default: what
``make smoke`` leaves in .work/smoke). Ways take turns; medians are printed and written to
docs/benchmarks/orchestration.json.

A stage's overhead: a pipeline of trivial stages runs as the flow on a server, and each stage's
command by itself without one; the difference a stage, between the first start and the last end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from _header import header

from flows._environment import available_cpus
from metricgold import files

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "benchmarks" / "orchestration.json"
PORT = 4299
API = f"http://127.0.0.1:{PORT}/api"
STAGES = 6
GOALS = {
    "no-op dvc repro": 5.0,
    "no-op train-metricgold, deployment run": 10.0,
    "overhead of a stage": 1.0,
    "metricgold --help": 0.5,
}
"""Seconds."""

STAGE = """
from pathlib import Path
import sys
from flows._stage import stage_main
out = Path(sys.argv.pop())  # a stage takes no arguments
stage_main("train_vae", lambda config, workspace: out.write_text("done"))
"""


def environment(folder: Path) -> dict[str, str]:
    """Of everything that is timed: no server of a surrounding run, this project's code."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "METRICGOLD_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(folder),
        "METRICGOLD_PYTHON": sys.executable,
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
    }


def seconds(command: Sequence[str], folder: Path, env: dict[str, str]) -> float:
    """Wall time of a command that must succeed."""
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, capture_output=True, check=True)
    return time.perf_counter() - begin


def ask(method: str, path: str, body: Any = None) -> Any:
    """The server's answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{API}/{path}", data, method=method)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextmanager
def served(project: Path, env: dict[str, str]) -> Iterator[None]:
    """``python -m flows.serve`` in a project."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", "--cron", ""],
            cwd=project,
            env={**env, "PREFECT_API_URL": API},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while "serving train-metricgold" not in _text(log):
                if process.poll() is not None:
                    sys.exit(f"error: flows.serve ended: {_text(log)[-500:]}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _text(log: Any) -> str:
    log.seek(0)
    return str(log.read())


def deployment_run(**parameters: Any) -> tuple[float, str]:
    """Seconds from asking for a run to its end, and its id."""
    deployment = ask("GET", "deployments/name/train-metricgold/train-metricgold")
    path = f"deployments/{deployment['id']}/create_flow_run"
    begin = time.perf_counter()
    run = ask("POST", path, {"parameters": parameters})["id"]
    while (state := ask("GET", f"flow_runs/{run}"))["state_type"] not in ("COMPLETED", "FAILED"):
        time.sleep(0.1)
    took = time.perf_counter() - begin
    if state["state_type"] == "FAILED":
        sys.exit(f"error: the run failed: {state['state']['message']}")
    return took, run


def stage_seconds(run: str) -> float:
    """From the first task run's start to the last one's end, a stage."""
    tasks = ask("POST", "task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    times = [
        [datetime.fromisoformat(task[k]) for task in tasks] for k in ("start_time", "end_time")
    ]
    return (max(times[1]) - min(times[0])).total_seconds() / len(tasks)


def trivial_project(folder: Path, env: dict[str, str]) -> None:
    """A chain of stages that only write a word."""
    (folder / "stage.py").write_text(STAGE, encoding="utf-8")
    for name in ("params.yaml", "prefect.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    stages = {}
    for n in range(STAGES):
        deps = {"deps": [f"out{n - 1}.txt"]} if n else {}
        command = f"{sys.executable} stage.py out{n}.txt"
        stages[f"s{n}"] = {"cmd": command, "outs": [f"out{n}.txt"], **deps}
    files.write_json(folder / "dvc.yaml", {"stages": stages})
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, env=env, check=True
    )


def bench_noop(project: Path, rounds: int, env: dict[str, str]) -> dict[str, list[float]]:
    """Nothing to do in a whole project."""
    repro = [sys.executable, "-m", "dvc", "repro"]
    flow = [sys.executable, "-m", "flows.train_metricgold"]
    with served(project, env):
        on_server = {**env, "PREFECT_API_URL": API}
        ways: dict[str, Callable[[], float]] = {
            "no-op dvc repro": lambda: seconds(repro, project, env),
            "no-op train-metricgold, deployment run": lambda: deployment_run()[0],
            "no-op train-metricgold, python -m": lambda: seconds(flow, project, on_server),
        }
        return in_turn(ways, rounds)


def bench_stage(rounds: int, env: dict[str, str]) -> dict[str, list[float]]:
    """A trivial stage under the flow and by itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trivial_project(folder, env)
        plain = [sys.executable, "stage.py", "out0.txt"]
        with served(folder, env):
            ways: dict[str, Callable[[], float]] = {
                "stage, its command alone": lambda: seconds(plain, folder, env),
                "stage, under the flow": lambda: stage_seconds(deployment_run(force=True)[1]),
            }
            return in_turn(ways, rounds)


def bench_help(rounds: int, env: dict[str, str]) -> dict[str, list[float]]:
    """The command's help, and Python alone."""
    ways: dict[str, Callable[[], float]] = {
        "metricgold --help": lambda: seconds(
            [sys.executable, "-m", "metricgold", "--help"], ROOT, env
        ),
        "python -c pass": lambda: seconds([sys.executable, "-c", "pass"], ROOT, env),
    }
    return in_turn(ways, 3 * rounds)


def in_turn(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, after a first round that does not count."""
    for run in ways.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            found[name].append(run())
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, default=ROOT / ".work" / "smoke")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if not (options.project / "dvc.lock").is_file():
        sys.exit(f"error: {options.project}: no finished project there; run 'make smoke' first")
    with tempfile.TemporaryDirectory() as home:
        env = environment(Path(home))
        times = bench_noop(options.project.resolve(), options.rounds, env)
        times |= bench_stage(options.rounds, env)
        times |= bench_help(options.rounds, env)
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["overhead of a stage"] = (
        medians["stage, under the flow"] - medians["stage, its command alone"]
    )
    for name, value in medians.items():
        goal = f"  (goal {GOALS[name]:g} s)" if name in GOALS else ""
        print(f"{name:45s} {value:7.2f} s{goal}")
    content = {
        **header(torch.device("cpu")),
        "cpus": available_cpus(),
        "command": " ".join(["python", "scripts/bench_orchestration.py", *sys.argv[1:]]),
        "stages_of_the_trivial_pipeline": STAGES,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "rounds": {name: [round(v, 3) for v in values] for name, values in times.items()},
        "goals_s": GOALS,
    }
    files.write_json(options.out, content)


if __name__ == "__main__":
    main()
