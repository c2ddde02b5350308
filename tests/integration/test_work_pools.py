"""The prefect.yaml files on a real server; a worker of the process pool runs the pipeline.

Docker and Kubernetes are not here: their deployments are registered and looked at, not run.
"""

from __future__ import annotations

import pytest

from tests.integration.service import Api
from tests.integration.workers import Pool, commands, ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_deployments_and_a_worker(pool: Pool) -> None:
    api = Api(pool)
    for file, name in (
        ("docker/prefect.docker.yaml", "metricgold-docker"),
        ("docker/prefect.kubernetes.yaml", "metricgold-kubernetes"),
        ("prefect.yaml", "metricgold"),
    ):
        *preparations, worker = commands(pool.folder / file)
        assert worker == ["worker", "start", "--pool", name]
        assert len(preparations) == 5
        for arguments in preparations:
            pool.prefect(*arguments)
        train = api.deployment("train-metricgold")
        assert (train["work_pool_name"], train["work_queue_name"]) == (name, "stages")
        assert train["parameter_openapi_schema"]["properties"]["resume"]["description"]
        (schedule,) = train["schedules"]
        assert (schedule["slug"], schedule["schedule"]["cron"]) == ("weekly", "0 3 * * 0")
        if name == "metricgold":
            assert train["job_variables"] == {}
            assert "set_working_directory" in str(train["pull_steps"])
        else:
            assert train["job_variables"]["image"].startswith("metricgold:")
            assert "/project" in str(train["pull_steps"])
        assert api.deployment("watch-sources")["work_queue_name"] == "watch"

    run_id = api.start("train-metricgold")
    process = pool.worker(*worker, name="one")
    try:
        assert api.finished(run_id)["state_type"] == "COMPLETED", pool.text()
        assert (pool.folder / "summary.json").exists()
    finally:
        ended(process)
