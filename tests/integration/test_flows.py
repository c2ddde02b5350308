"""Deployments on a real server: what is tried again, ended, skipped, hidden, refused, triggered."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.integration.service import ROOT, Api, Served, living, run, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PLANTED, BLOCKED = "planted-in-the-environment-7531", "planted-in-a-block-7532"
PIPELINE = f"""\
stages:
  download:
    matrix: {{dataset: [a, b]}}
    cmd: sh together.sh ${{item.dataset}}
    outs: ["${{item.dataset}}.txt"]
  flaky:
    cmd: {sys.executable} flaky.py
    params: [steps]
    outs: [flaky.txt]
  talkative:
    cmd: {sys.executable} talkative.py
    deps: [flaky.txt]
    outs: [talkative.txt]
"""
BROKEN = """\
stages:
  nan:
    cmd: 'echo tried >> tries.txt; echo "error: the loss is nan" >&2; exit 1'
    outs: [nan.txt]
"""
STUCK = """\
stages:
  stuck:
    cmd: sleep 7533
    outs: [stuck.txt]
"""
TOGETHER = """
touch begun.$1
for n in $(seq 600); do
    [ -e begun.a ] && [ -e begun.b ] && { echo x > $1.txt; exit 0; }
    sleep 0.1
done
echo "error: $1 was alone" >&2
exit 1
"""
"""Ends well only if the other one runs at the same time."""
FLAKY = """
from pathlib import Path
import os, sys
from flows import _stage
if not Path("again").exists():
    Path("again").touch()
    error = ConnectionResetError("the mirror hung up")
    print(f"error: {error}", file=sys.stderr)
    sys.exit(_stage.TEMPORARY)
Path("flaky.txt").write_text("done")
"""
TALKATIVE = """
import os, sys
from pathlib import Path
from metricgold.progress import progress_bar
for name in ("PLANTED_TOKEN", "BLOCKED"):
    print(f"{name} is {os.environ[name]} here")
list(progress_bar(range(4), description="talking"))
Path("talkative.txt").write_text("done")
"""
ORCHESTRATION = {
    "retry": {"attempts": 2, "backoff_s": 1},
    "timeout_s": {"stuck": 5},
    "parallel": {"download": 2},
    "secrets": {"BLOCKED": "planted"},
}


@pytest.fixture
def project(make_project: Callable[[str], Path]) -> Path:
    folder = make_project(PIPELINE)
    params = {"profile": "demo", "steps": 3, "orchestration": ORCHESTRATION}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for name, text in (("together.sh", TOGETHER), ("flaky.py", FLAKY), ("talkative.py", TALKATIVE)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def scheduled(project: Path) -> Iterator[Served]:
    options = ("--cron", "0 3 * * 0", "--timezone", "Europe/Zurich")
    with Served(project, *options, PLANTED_TOKEN=PLANTED) as service:
        yield service


def plant_block(served: Served) -> None:
    code = f"from prefect.blocks.system import Secret; Secret(value='{BLOCKED}').save('planted')"
    run(sys.executable, "-c", code, cwd=served.folder, env=served.env)


def check_offers(api: Api) -> None:
    train = api.deployment("train-metricgold")
    (schedule,) = train["schedules"]
    assert schedule["slug"] == "weekly"
    assert schedule["schedule"]["cron"] == "0 3 * * 0"
    assert schedule["schedule"]["timezone"] == "Europe/Zurich"
    assert train["enforce_parameter_schema"] is True
    for name in ("evaluate-metricgold", "export-metricgold", "ingest-dataset", "watch-sources"):
        assert api.deployment(name)["description"]
    shown = api.deployment("ingest-dataset")["parameter_openapi_schema"]["properties"]["dataset"]
    assert "hypersim" in shown["enum"]


def check_first_run(api: Api, folder: Path) -> None:
    """Side by side, tried again, with progress and origin."""
    ran = api.completed("train-metricgold")
    names = {"download@a", "download@b", "flaky", "talkative"}
    tasks = api.ended_tasks(ran["id"], names)
    assert tasks["flaky"]["run_count"] == 2
    assert tasks["talkative"]["run_count"] == 1
    found = api.artifacts(ran["id"])
    assert {"metricgold-metrics", "metricgold-origin", "progress-talkative"} <= set(found)
    origin = json.loads(found["metricgold-origin"]["data"])
    assert {row["path"] for row in origin} == {"a.txt", "b.txt", "flaky.txt", "talkative.txt"}
    assert all(re.fullmatch(r"[0-9a-f]{32}", row["hash"]) for row in origin)
    assert float(found["progress-talkative"]["data"]) == 100
    assert "talkative: talking, 4/4" in found["progress-talkative"]["description"]


def every_log(api: Api) -> list[dict[str, Any]]:
    """All that the server has by now, 200 at a time as it gives them."""
    found: list[dict[str, Any]] = []
    while more := api.got("POST", "logs/filter", {"limit": 200, "offset": len(found)}):
        found += more
    return found


def check_secrets_are_nowhere(api: Api, served: Served) -> None:
    """Neither value in a log, an artifact, a state, a parameter, or a file of the project."""
    hidden = {"PLANTED_TOKEN is *** here", "BLOCKED is *** here"}
    wait_for(lambda: hidden <= {e["message"] for e in every_log(api)}, 60, "lines without secrets")
    logs = every_log(api)
    everything = [json.dumps(logs), served.text()]
    for kind in ("artifacts", "flow_runs", "task_runs", "deployments"):
        everything.append(json.dumps(api.got("POST", f"{kind}/filter", {"limit": 200})))
    for path in served.folder.glob("*.*"):
        if path.is_file():
            everything.append(path.read_text(encoding="utf-8", errors="replace"))
    for text in everything:
        assert PLANTED not in text
        assert BLOCKED not in text
    with sqlite3.connect(served.folder / "home" / "prefect.db") as database:
        dump = "\n".join(database.iterdump())
    assert "talkative" in dump
    assert PLANTED not in dump
    assert BLOCKED not in dump  # the block's value is encrypted


def check_skipped(api: Api) -> None:
    """By hand and by the schedule."""
    ran = api.completed("train-metricgold")
    path = f"deployments/{api.deployment('train-metricgold')['id']}/schedules"
    (made,) = api.got("POST", path, [{"schedule": {"interval": 20}, "active": True}])
    body = {"flow_runs": {"state": {"name": {"any_": ["Skipped"]}}}}
    wait_for(
        lambda: [r for r in api.got("POST", "flow_runs/filter", body) if r["auto_scheduled"]],
        200,
        "a scheduled run that is skipped",
    )
    api.ask("DELETE", f"{path}/{made['id']}").raise_for_status()
    for skipped in api.got("POST", "flow_runs/filter", body):
        assert skipped["state"]["message"].startswith("Skipped: nothing changed")
        assert api.tasks(skipped["id"]) == {}
        assert "nothing changed" in api.artifacts(skipped["id"])["metricgold-skipped"]["data"]
    assert ran["state_name"] == "Skipped"


def check_hostile_parameters(api: Api, folder: Path) -> None:
    """Refused by the server, or by the run where a schema cannot say it; nothing is executed."""
    path = f"deployments/{api.deployment('train-metricgold')['id']}/create_flow_run"
    touched = folder / "touched"
    for overrides in (
        [f"x=$(touch {touched})"],
        ["--force"],
        ["x=1\ny=2"],
        [f"x=`touch {touched}`"],
    ):
        answer = api.ask("POST", path, {"parameters": {"overrides": overrides}})
        assert answer.status_code == 409, answer.text
    assert api.ask("POST", path, {"parameters": {"datasets": ["/etc"]}}).status_code == 409
    before = (folder / "params.yaml").read_text(encoding="utf-8")
    for override in ("steps=1\n", "profile=../outside", "profile=/etc"):
        failed = api.finished(api.start("train-metricgold", overrides=[override]))
        assert failed["state_type"] == "FAILED"
    assert (folder / "params.yaml").read_text(encoding="utf-8") == before
    assert not touched.exists()


def check_failures(api: Api, folder: Path) -> None:
    """What cannot be helped by trying again is not; what takes too long is ended."""
    (folder / "dvc.yaml").write_text(BROKEN, encoding="utf-8")
    failed = api.finished(api.start("train-metricgold"))
    assert failed["state_type"] == "FAILED"
    assert "stage 'nan' failed: the loss is nan" in failed["state"]["message"]
    assert api.ended_tasks(failed["id"], {"nan"})["nan"]["run_count"] == 1
    assert (folder / "tries.txt").read_text(encoding="utf-8") == "tried\n"
    (folder / "dvc.yaml").write_text(STUCK, encoding="utf-8")
    failed = api.finished(api.start("train-metricgold"))
    assert "stage 'stuck' was ended after 5 s" in failed["state"]["message"]
    assert not living("sleep 7533", str(folder))


def test_runs_on_a_server(scheduled: Served) -> None:
    plant_block(scheduled)
    api, folder = Api(scheduled), scheduled.folder
    check_offers(api)
    check_first_run(api, folder)
    check_secrets_are_nowhere(api, scheduled)
    check_skipped(api)
    check_hostile_parameters(api, folder)
    check_failures(api, folder)


def own_frames(folder: Path, count: int) -> None:
    """A folder of pictures and depth as a user has them."""
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n in range(count):
        rgb = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / "rgb" / f"{n}.png")
        np.save(folder / "depth" / f"{n}.npy", rng.uniform(1, 9, (24, 32)).astype(np.float32))


@pytest.fixture
def watched(make_project: Callable[[str], Path]) -> Iterator[Served]:
    """A project whose one dataset lies in a folder, by the project's own stage ``source``."""
    folder = make_project(
        "stages:\n  source:\n    matrix: {dataset: [folder]}\n"
        f"    cmd: {sys.executable} -m flows.source --dataset ${{item.dataset}}\n"
        "    outs: ['artifacts/source/${item.dataset}']\n"
    )
    shutil.copy(ROOT / "params.yaml", folder)
    own_frames(folder / "mine", 2)
    spec = {"rgb": "rgb/{id}.png", "depth": "depth/{id}.npy", "camera": {"fov_x_deg": 60}}
    (folder / "mine" / "dataset.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    datasets = params["profiles"]["smoke"]["datasets"]
    for name in datasets:
        datasets[name]["weight"] = 0
    datasets["folder"] |= {"weight": 1, "mirrors": ["mine"]}
    params["profile"] = "smoke"
    params["orchestration"] = {"schedule": None}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    with Served(folder) as service:
        yield service


def listed(folder: Path) -> int:
    index = folder / "artifacts" / "source" / "folder" / "index.json"
    return len(json.loads(index.read_text(encoding="utf-8"))["files"])


def triggered(api: Api) -> list[dict[str, Any]]:
    body = {"flow_runs": {"tags": {"all_": ["trigger:data"]}}}
    found: list[dict[str, Any]] = api.got("POST", "flow_runs/filter", body)
    return found


def test_new_files_at_a_source_start_a_run(watched: Served) -> None:
    api, folder = Api(watched), watched.folder
    api.completed("train-metricgold")
    before = listed(folder)
    calm = api.completed("watch-sources")
    assert calm["state_name"] == "Unchanged"
    assert triggered(api) == []

    own_frames(folder / "mine", 3)
    told = api.completed("watch-sources")
    assert "folder: other files than were ingested" in told["state"]["message"]
    (started,) = triggered(api)
    assert started["parameters"]["refresh"] == ["folder"]
    assert api.finished(started["id"])["state_name"] == "Completed", watched.text()
    assert listed(folder) == before + 2
    assert api.completed("watch-sources")["state_name"] == "Unchanged"

    own_frames(folder / "mine", 4)
    ingested = api.completed("ingest-dataset", dataset="folder")
    api.ended_tasks(ingested["id"], {"source@folder"})
    assert listed(folder) == before + 4
    assert len(triggered(api)) == 1
    quality = api.completed("watch-quality")
    assert quality["state"]["message"] == "params.yaml has no orchestration.quality"


def test_a_server_for_others_asks_for_its_token(make_project: Callable[[str], Path]) -> None:
    folder = make_project("stages: {only: {cmd: echo x > x.txt, outs: [x.txt]}}\n")
    token = "me:a-long-password"
    with Served(folder, "--host", "0.0.0.0", PREFECT_SERVER_API_AUTH_STRING=token) as service:
        url = f"{service.api_url}/deployments/name/train-metricgold/train-metricgold"
        assert httpx.get(url, timeout=60).status_code == 401
        login = tuple(token.split(":"))
        found = httpx.get(url, auth=login, timeout=60).raise_for_status().json()
        started = httpx.post(
            f"{service.api_url}/deployments/{found['id']}/create_flow_run",
            json={"parameters": {}},
            auth=login,
            timeout=60,
        )
        run_url = f"{service.api_url}/flow_runs/{started.raise_for_status().json()['id']}"

        def completed() -> bool:
            answer = httpx.get(run_url, auth=login, timeout=60).raise_for_status()
            return bool(answer.json()["state_type"] == "COMPLETED")

        wait_for(completed, 240, f"a run\n{service.text()}")
        assert token not in service.text()
