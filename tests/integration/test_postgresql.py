"""PostgreSQL under the Prefect server, and two workers that share its runs out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.postgresql import PostgreSQL, programs
from tests.integration.service import Api, moment, wait_for
from tests.integration.workers import Pool, commands, ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

WAITING_PIPELINE = """\
stages:
  waiting:
    cmd: sh -c 'touch begun; while [ ! -e go ]; do sleep 0.2; done; echo x > waiting.txt'
    outs: [waiting.txt]
  quick:
    cmd: cp params.yaml quick.txt
    params: [steps]
    outs: [quick.txt]
"""


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgreSQL]:
    """A PostgreSQL that the Prefect server, and it alone, is told of."""
    if (found := programs()) is None:
        pytest.skip("no /usr/lib/postgresql/*/bin: install Debian's package 'postgresql'")
    postgresql = PostgreSQL(found)
    try:
        postgresql.start()
        monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", postgresql.url)
        yield postgresql
    finally:
        postgresql.end()


def taken_by(api: Api, run_id: str) -> str:
    """The worker that started a run; both may have asked for it."""
    return str(api.run(run_id)["labels"]["prefect.worker.name"])


def test_two_workers_share_the_runs_of_one_database(database: PostgreSQL, pool: Pool) -> None:
    """While one works the other takes what may run beside it; one is killed, the other goes on."""
    (pool.folder / "dvc.yaml").write_text(WAITING_PIPELINE, encoding="utf-8")
    *preparations, worker = commands(pool.folder / "prefect.yaml")
    for arguments in preparations:
        pool.prefect(*arguments)
    pool.env["PREFECT_WORKER_QUERY_SECONDS"] = "2"
    workers = {name: pool.worker(*worker, "--limit", "1", name=name) for name in ("one", "two")}
    api = Api(pool)
    try:
        first = api.start("train-metricgold")
        wait_for((pool.folder / "begun").exists, 240, pool.text())
        second = api.start("train-metricgold", overrides=["steps=4"])
        beside = api.completed("watch-quality")
        assert api.run(first)["state_type"] == "RUNNING"
        assert api.run(second)["state_type"] == "SCHEDULED"  # the queue's limit keeps it waiting
        (pool.folder / "go").touch()
        leading, following = api.finished(first), api.finished(second)
        assert leading["state_name"] == following["state_name"] == "Completed", pool.text()
        assert moment(following, "start_time") >= moment(leading, "end_time")
        assert "steps: 4" in (pool.folder / "quick.txt").read_text(encoding="utf-8")
        assert {taken_by(api, first), taken_by(api, beside["id"])} == {"one", "two"}

        lost = taken_by(api, second)
        workers[lost].kill()
        workers[lost].wait(60)
        third = api.completed("train-metricgold", overrides=["steps=5"])
        (left,) = workers.keys() - {lost}
        assert taken_by(api, third["id"]) == left
        assert "steps: 5" in (pool.folder / "quick.txt").read_text(encoding="utf-8")
    finally:
        for process in workers.values():
            ended(process)

    named = "'train-metricgold', 'watch-quality'"
    query = f"SELECT count(*) FROM flow_run JOIN flow f ON flow_id = f.id WHERE f.name IN ({named})"
    assert database.ask(f"{query} AND state_type = 'COMPLETED'") == "4"
    assert not list(pool.folder.rglob("prefect.db*"))  # nothing went to Prefect's SQLite
    assert database.password not in pool.text()
