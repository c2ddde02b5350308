"""What Prefect's page shows of a served project: whose turn it is, how far, from and with what."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from PIL import Image

from tests.integration.service import Api, Served, command, moment, run, wait_for
from tests.unit.git_project import AUTHOR, git

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PIPELINE = f"""\
stages:
  train_one_step:
    cmd: {sys.executable} train.py
    params: [steps]
    outs: [artifacts/metricgold]
  evaluate:
    cmd: {sys.executable} evaluate.py
    deps: [artifacts/metricgold]
    outs: [artifacts/evaluation/hypersim]
    metrics: [metrics.json: {{cache: false}}]
  report:
    cmd: mkdir -p artifacts/report artifacts/data_report
      && cp metrics.json artifacts/report/index.html
      && cp metrics.json artifacts/data_report/index.html
    deps: [metrics.json]
    outs: [artifacts/report, artifacts/data_report]
"""
TRAIN = """
import time
from pathlib import Path
from metricgold.progress import progress_bar
for step in progress_bar(range(10), description="learning"):
    time.sleep(2.6 if step < 4 else 0)  # a bar in a log moves every ten seconds
    while step == 6 and not Path("go").exists():
        time.sleep(0.2)
Path("artifacts/metricgold").mkdir(parents=True)
Path("artifacts/metricgold/weights").write_text(Path("params.yaml").read_text())
"""
EVALUATE = """
import json
from pathlib import Path
from PIL import Image
folder = Path("artifacts/evaluation/hypersim")
folder.mkdir(parents=True)
Image.new("RGB", (1280, 320), (200, 30, 60)).save(folder / "panel_00.png")
(folder / "panels.json").write_text(json.dumps([{"file": "panel_00.png"}]))
Path("metrics.json").write_text(json.dumps({"abs_rel": 0.125, "floor": {"delta1": 0.5}}))
"""


@pytest.fixture
def shown(tmp_path: Path, make_project: Callable[[str], Path]) -> Iterator[Served]:
    """A project in git, committed, that is served."""
    git(tmp_path, "init", "-q", "-b", "main")
    run(command("dvc"), "init", "-q", cwd=tmp_path)
    folder = make_project(PIPELINE)
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    (folder / "evaluate.py").write_text(EVALUATE, encoding="utf-8")
    (folder / ".gitignore").write_text("/home\n/serve.log\n/artifacts\n", encoding="utf-8")
    git(folder, "add", ".")
    git(folder, *AUTHOR, "commit", "-q", "-m", "a project")
    with Served(folder) as service:
        yield service


def check_parameters(api: Api) -> None:
    """What a form on the page is made from: every parameter with its type and what it means."""
    kinds = {"boolean", "array", "string", "null"}
    for name, count in (
        ("train-metricgold", 7),
        ("evaluate-metricgold", 2),
        ("export-metricgold", 1),
        ("ingest-dataset", 3),
        ("watch-sources", 0),
        ("watch-quality", 0),
    ):
        deployment = api.deployment(name)
        assert deployment["description"]
        assert deployment["enforce_parameter_schema"] is True
        offered = deployment["parameter_openapi_schema"]["properties"]
        assert len(offered) == count
        for parameter, schema in offered.items():
            assert len(schema["description"]) > 8, (name, parameter)
            told = {choice.get("type") for choice in schema.get("anyOf", [schema])}
            assert told <= kinds, (name, parameter)


def planned(api: Api, name: str, in_s: float) -> str:
    """A run as the server's scheduler makes them: with a time at which it is due."""
    due = (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
    path = f"deployments/{api.deployment(name)['id']}/create_flow_run"
    return str(api.got("POST", path, {"state": state})["id"])


def log(api: Api, run_id: str) -> list[str]:
    body = {"logs": {"flow_run_id": {"any_": [run_id]}}}
    return [entry["message"] for entry in api.got("POST", "logs/filter", body)]


def check_progress(api: Api, run_id: str) -> None:
    """While the stage runs: percent, steps and the time that is left."""

    def halfway() -> bool:
        """Whether the bar has moved and is not at its end."""
        found = api.artifacts(run_id).get("progress-train-one-step")
        return found is not None and 0 < float(found["data"]) < 100

    wait_for(halfway, 120, "progress in the middle of a stage")
    text = api.artifacts(run_id)["progress-train-one-step"]["description"]
    assert re.fullmatch(r"train_one_step: learning, [1-7]/10, 00:\d\d left", text), text


def check_queue(api: Api, served: Served) -> tuple[str, str]:
    """One by hand and one by the clock wait for the first, and say so; in turn they run."""
    first = api.start("train-metricgold")
    check_progress(api, first)
    second = api.start("train-metricgold", overrides=["steps=4"])
    third = planned(api, "train-metricgold", in_s=2)
    told = {run_id: api.run(run_id)["name"] for run_id in (first, second, third)}
    for waiting in (second, third):
        line = f"'{told[waiting]}' waits until '{told[first]}' has ended: one run at a time"
        wait_for(lambda x=waiting, y=line: y in log(api, x), 60, f"{line}\n{served.text()}")
        assert line in served.text()
    assert api.run(first)["state_type"] == "RUNNING"
    assert {api.run(each)["state_type"] for each in (second, third)} == {"SCHEDULED"}
    assert api.run(third)["start_time"] is None
    (served.folder / "go").touch()
    ended = [api.finished(run_id) for run_id in (first, second, third)]
    assert [e["state_name"] for e in ended] == ["Completed", "Completed", "Skipped"], served.text()
    assert "nothing changed since the last run" in ended[2]["state"]["message"]
    for before, after in itertools.pairwise(ended):
        assert moment(after, "start_time") >= moment(before, "end_time")
    assert "at capacity" not in served.text()
    return first, second


def check_origin(api: Api, folder: Path, first: str, second: str) -> None:
    """The commit, and of every output the hash that stands in dvc.lock."""
    commit = git(folder, "rev-parse", "HEAD")
    found = api.artifacts(second)["metricgold-origin"]
    assert f"Commit {commit}, with changes not committed" in found["description"]
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    hashes = {o["path"]: o["md5"] for stage in lock.values() for o in stage["outs"]}
    rows = {row["path"]: row["hash"] for row in json.loads(found["data"])}
    assert rows == hashes
    model = hashes["artifacts/metricgold"][:12]
    assert {f"commit:{commit[:12]}+", f"model:{model}"} <= set(api.run(second)["tags"])
    before = set(api.run(first)["tags"])
    assert f"commit:{commit[:12]}" in before  # nothing was changed then
    (other,) = {tag for tag in before if tag.startswith("model:")}
    assert other != f"model:{model}"  # the run with other parameters made another one


def check_results(api: Api, folder: Path, run_id: str) -> None:
    """Figures, a picture that opens, links to pages that are there."""
    found = api.artifacts(run_id)
    assert found["metricgold-metrics"]["type"] == "table"
    rows: list[dict[str, Any]] = json.loads(found["metricgold-metrics"]["data"])
    assert {"file": "metrics.json", "metric": "abs_rel", "value": 0.125} in rows
    assert {"file": "metrics.json", "metric": "floor.delta1", "value": 0.5} in rows
    pictures = found["metricgold-pictures"]["data"]
    (encoded,) = re.findall(r"!\[hypersim\]\(data:image/png;base64,([^)]+)\)", pictures)
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        assert picture.size == (640, 160)
        assert picture.getpixel((5, 5)) == (200, 30, 60)
    for key, name in (("metricgold-report", "report"), ("metricgold-data-report", "data_report")):
        (link,) = re.findall(rf"\[{name}\]\((.+)\)", found[key]["data"])
        linked = Path(unquote(urlsplit(link).path))
        assert linked == folder.resolve() / "artifacts" / name / "index.html"
        assert linked.is_file()


def test_what_the_page_shows(shown: Served) -> None:
    api = Api(shown)
    check_parameters(api)
    first, second = check_queue(api, shown)
    check_origin(api, shown.folder, first, second)
    check_results(api, shown.folder, first)
    assert "Traceback" not in shown.text()
