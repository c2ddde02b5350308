"""The prefect.yaml files on a real server; a worker of the process pool runs the pipeline.

Docker and Kubernetes are not here: their deployments are registered and looked at, not run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.serve import running_server
from tests.integration.service import (
    MINI_PIPELINE,
    ROOT,
    command,
    environment,
    free_port,
    run,
    wait_for,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture
def server(
    make_project: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A project with the deployment files, and the environment that leads to a server."""
    folder = make_project(MINI_PIPELINE)
    (folder / "flows").symlink_to(ROOT / "flows")
    for name in ("prefect.yaml", "prefect.automation.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "docker", folder / "docker")
    api_url = f"http://127.0.0.1:{free_port()}/api"
    env = environment(PREFECT_HOME=str(folder / "home"), PREFECT_API_URL=api_url)
    monkeypatch.setenv("PREFECT_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    with running_server(api_url, "127.0.0.1"):
        yield folder, env


def prefect(folder: Path, env: dict[str, str], *arguments: str) -> str:
    return run(command("prefect"), "--no-prompt", *arguments, cwd=folder, env=env)


def commands(path: Path) -> list[list[str]]:
    """What the head of a deployment file says to call, up to the worker."""
    lines = []
    for line in path.read_text(encoding="utf-8").replace("\\\n#", "").splitlines():
        if match := re.match(r"#\s+prefect (.*?)(?:\s{3,}\(.*)?$", line):
            lines.append(match[1].split())
    return lines


def deployed(env: dict[str, str], name: str) -> dict[str, Any]:
    url = f"{env['PREFECT_API_URL']}/deployments/name/{name}/{name}"
    found: dict[str, Any] = httpx.get(url, timeout=60).raise_for_status().json()
    return found


def test_deployments_and_a_worker(server: tuple[Path, dict[str, str]]) -> None:
    folder, env = server
    for file, pool in (
        ("docker/prefect.docker.yaml", "metricgold-docker"),
        ("docker/prefect.kubernetes.yaml", "metricgold-kubernetes"),
        ("prefect.yaml", "metricgold"),
    ):
        *preparations, worker = commands(folder / file)
        assert worker == ["worker", "start", "--pool", pool]
        assert len(preparations) == 5
        for arguments in preparations:
            prefect(folder, env, *arguments)
        train = deployed(env, "train-metricgold")
        assert (train["work_pool_name"], train["work_queue_name"]) == (pool, "stages")
        assert train["parameter_openapi_schema"]["properties"]["resume"]["description"]
        (schedule,) = train["schedules"]
        assert (schedule["slug"], schedule["schedule"]["cron"]) == ("weekly", "0 3 * * 0")
        if pool == "metricgold":
            assert train["job_variables"] == {}
            assert "set_working_directory" in str(train["pull_steps"])
        else:
            assert train["job_variables"]["image"].startswith("metricgold:")
            assert "/project" in str(train["pull_steps"])
        assert deployed(env, "watch-sources")["work_queue_name"] == "watch"

    started = prefect(folder, env, "deployment", "run", "train-metricgold/train-metricgold")
    run_id = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", started)[0]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [command("prefect"), *worker], cwd=folder, env=env, stdout=log, stderr=log
        )
    try:
        wait_for(
            lambda: (folder / "summary.json").exists() and _ended(env, run_id) == "COMPLETED",
            240,
            "the worker's run",
        )
    finally:
        process.terminate()
        process.wait(60)


def _ended(env: dict[str, str], run_id: str) -> str:
    url = f"{env['PREFECT_API_URL']}/flow_runs/{run_id}"
    return str(httpx.get(url, timeout=60).raise_for_status().json()["state_type"])
