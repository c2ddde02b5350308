"""The deployment on a real Prefect server: the literal command, its runs, its end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.service import (
    SLOW_PIPELINE,
    Served,
    command,
    living,
    run,
    wait_for,
)

pytestmark = pytest.mark.integration

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
STAGE_FLOW = """
from pathlib import Path
import sys
from flows._stage import stage_main

def body(config, workspace):
    print("the stage's own line")
    Path("slow.txt").write_text("done")

stage_main("train_vae", body)
"""


def post(served: Served, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{served.api_url}/{path}", json=body, timeout=30)
    answer.raise_for_status()
    return answer.json()


def started(served: Served, *arguments: str) -> str:
    """Id of the flow run that the literal command creates."""
    output = run(
        command("prefect"),
        *("deployment", "run", "train-metricgold"),
        *arguments,
        cwd=served.folder,
        env=served.env,
    )
    found = re.search(r"UUID: ([0-9a-f-]{36})", output)
    assert found is not None, output
    return found[1]


def state(served: Served, run_id: str) -> str:
    answer = httpx.get(f"{served.api_url}/flow_runs/{run_id}", timeout=30)
    return str(answer.raise_for_status().json()["state_type"])


def finished(served: Served, run_id: str) -> str:
    wait_for(lambda: state(served, run_id) in ENDED, 120, f"end of the flow run\n{served.text()}")
    return state(served, run_id)


def task_runs(served: Served, run_id: str) -> list[str]:
    """Names of the run's task runs, in the order in which they started."""
    chosen = {"id": {"any_": [run_id]}}
    found = post(served, "task_runs/filter", flow_runs=chosen, sort="EXPECTED_START_TIME_DESC")
    return [t["name"] for t in sorted(found, key=lambda t: t["start_time"] or "")]


def check_runs(served: Served) -> None:
    """A first run makes everything, a second nothing, an override the stages it concerns."""
    first = started(served)
    assert finished(served, first) == "COMPLETED", served.text()
    expected = ["first", "second@a", "second@b", "third"]
    wait_for(lambda: task_runs(served, first) == expected, 30, "task runs, told a little later")
    chosen = {"flow_run_id": {"any_": [first]}}
    found = post(served, "artifacts/filter", artifacts=chosen)
    (artifact,) = [a for a in found if a["key"] == "metricgold-metrics"]
    assert '"abs_rel"' in artifact["data"]
    assert '"floor.delta1"' in artifact["data"]

    second = started(served)
    assert finished(served, second) == "COMPLETED", served.text()
    assert served.text().count(": up to date") == 4

    changed = started(served, "--params", '{"profile": "smoke", "overrides": ["steps=7"]}')
    assert finished(served, changed) == "COMPLETED", served.text()
    parameters = (served.folder / "params.yaml").read_text(encoding="utf-8")
    assert parameters == "profile: smoke\nsteps: 7\n"
    assert (served.folder / "second_b.txt").read_text(encoding="utf-8") == parameters


def check_refusals(served: Served) -> None:
    """A wrong name and a wrong override each give one clear sentence."""
    wrong = subprocess.run(
        [command("prefect"), "deployment", "run", "train-metricgodl"],
        cwd=served.folder,
        env=served.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert "no deployment is called 'train-metricgodl'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    misspelt = started(served, "--params", '{"overrides": ["setps=7"]}')
    assert finished(served, misspelt) == "FAILED"
    assert "cannot apply setps=7" in served.text()


def stage(served: Served) -> list[int]:
    """The processes that the slow pipeline's stage waits for."""
    return living("sleep 7531", str(served.folder))


def check_cancel(served: Served) -> None:
    """``prefect flow-run cancel`` ends the stage and everything it started."""
    run_id = started(served)
    wait_for(lambda: len(stage(served)) >= 2, 60, f"stage running\n{served.text()}")
    run(command("prefect"), "flow-run", "cancel", run_id, cwd=served.folder, env=served.env)
    wait_for(lambda: not stage(served), 60, f"stage ended\n{served.text()}")
    assert finished(served, run_id) == "CANCELLED"


def test_deployment(served: Served, make_project: Callable[[str], Path]) -> None:
    check_runs(served)
    check_refusals(served)
    make_project(SLOW_PIPELINE)
    check_cancel(served)
    started(served)
    wait_for(lambda: len(stage(served)) >= 2, 60, f"stage running\n{served.text()}")
    served.end()
    wait_for(lambda: not living(str(served.folder)), 30, "everything ended with the service")
    assert "Traceback" not in served.text().partition("Beginning")[0]


def test_stage_is_a_flow_run_of_its_own(served: Served) -> None:
    source = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
    (served.folder / "params.yaml").write_text(source, encoding="utf-8")
    (served.folder / "slow_stage.py").write_text(STAGE_FLOW, encoding="utf-8")
    pipeline = (
        f"stages:\n  train_vae:\n    cmd: {sys.executable} slow_stage.py\n    outs: [slow.txt]\n"
    )
    (served.folder / "dvc.yaml").write_text(pipeline, encoding="utf-8")
    run_id = started(served)
    assert finished(served, run_id) == "COMPLETED", served.text()
    children = post(
        served, "flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run_id]}}
    )
    assert [(c["name"], c["state_type"]) for c in children] == [("train_vae", "COMPLETED")]
    assert "the stage's own line" in served.text()
