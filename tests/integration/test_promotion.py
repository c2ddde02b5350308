"""Champion and challenger with git, DVC and a remote folder, on toy models and eight frames.

Model B predicts the truth (the truth was made from its predictions), model A does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from export.engine_manifest import EngineManifest
from export.manifest import sha256_of_folder
from flows import _dvc
from flows._registry import read_registry
from flows.experiments import NO_GIT, experiment_name, save_experiment
from flows.promotion import NOT_ACCEPTED, history, promote_if_better
from metricgold.config import ProfileConfig, load_config
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.errors import UserError
from metricgold.evaluation.benchmark import model_predictor
from metricgold.evaluation.engine import evaluate
from metricgold.evaluation.predictors import Observation
from metricgold.pipeline import MetricGoldPipeline
from tests.integration.service import ROOT, command, environment, run
from tests.unit.git_project import AUTHOR, forget_user, git
from tests.unit.made_frames import make_frame, write_shards
from tests.unit.made_graphs import write_graphs
from tests.unit.toy import toy_model

pytestmark = pytest.mark.integration

SIZE = (16, 24)
KEPT = ("metricgold", "onnx", "engines")
"""Folders that a champion consists of."""
PIPELINE = """\
vars: [params.yaml]
artifacts:
  metricgold: {{path: artifacts/metricgold, type: model}}
stages:
  preprocess:
    cmd: mkdir -p artifacts/shards && cp -r {made}/shards artifacts/shards/hypersim
    outs: [artifacts/shards/hypersim]
  train_one_step:
    cmd: echo train >> {made}/log && cp -r {made}/$(cat choice)/metricgold artifacts/metricgold
    deps: [choice, artifacts/shards/hypersim]
    outs: [artifacts/metricgold]
  evaluate:
    cmd: mkdir -p metrics && cp {made}/$(cat choice)/summary.json metrics/summary.json
    deps: [artifacts/metricgold, choice]
    metrics: [metrics/summary.json: {{cache: false}}]
  export_onnx:
    cmd: cp -r {made}/$(cat choice)/onnx artifacts/onnx
    deps: [artifacts/metricgold, choice]
    outs: [artifacts/onnx]
  verify_onnx:
    cmd: cp {made}/$(cat choice)/parity.json metrics/parity.json
    deps: [artifacts/metricgold, artifacts/onnx, choice]
    metrics: [metrics/parity.json: {{cache: false}}]
  export_trt:
    cmd: cp -r {made}/$(cat choice)/engines artifacts/engines
    deps: [artifacts/onnx, choice]
    outs: [artifacts/engines]
"""


def small_params() -> dict[str, Any]:
    """params.yaml with the toy's sizes, one dataset, and few scenes enough for a decision."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    smoke = content["profiles"]["smoke"]
    for name in ("virtual_kitti", "tartanair"):
        smoke["datasets"][name]["weight"] = 0
    smoke["datasets"]["hypersim"]["train_size"] = list(SIZE)
    smoke["promotion"] = {"better": {"abs_rel": 0.01}, "not_worse": {"delta1": 0.0}}
    smoke["promotion"] |= {"min_scenes": 4, "resamples": 200}
    return {"profile": "smoke", "profiles": {"smoke": smoke}}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and of each model all that the stages would make."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "params.yaml").write_text(yaml.safe_dump(small_params()), encoding="utf-8")
    config = load_config(folder / "params.yaml")
    models = {name: toy_model(seed, fov_matters=True) for seed, name in enumerate("AB")}
    frames = [make_frame(scene, i, SIZE) for scene in range(4) for i in range(2)]
    (folder / "shards").mkdir()
    write_shards(folder / "shards", "holdout", [true_for(models["B"], config, f) for f in frames])
    reader = ShardReader(shard_paths(folder / "shards", "holdout"))
    for name, model in models.items():
        own = folder / name
        model.save_pretrained(own / "metricgold")
        write_graphs(own / "onnx", sha256_of_folder(own / "metricgold"), name)
        (own / "engines").mkdir()
        EngineManifest(not_built={"tensorrt": "no GPU here"}).write(own / "engines")
        predictor = model_predictor(model, config, "hypersim")
        found = evaluate(reader, range(len(reader)), {"metricgold": predictor}, (0.1, 80.0))
        means = found.scores["metricgold"].means()
        summary = {"frames": 8, "scenes": 4} | {k: means[k] for k in ("abs_rel", "delta1")}
        (own / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        compared = [{"component": "unet_step", "size": SIZE, "passed": True}]
        parity = {"passed": True, "worst_relative": {"unet_step": 1e-6}, "comparisons": compared}
        (own / "parity.json").write_text(json.dumps(parity), encoding="utf-8")
    return folder


def true_for(model: MetricGoldPipeline, config: ProfileConfig, frame: Frame) -> Frame:
    """The frame with a depth that the model predicts of it, but for JPEG."""
    predictor = model_predictor(model, config, "hypersim")
    (estimate,) = predictor.predict([Observation(frame.key, frame.rgb, frame.intrinsics)])
    depth = np.clip(estimate.depth, 0.2, 79.0).astype(np.float32)
    return Frame(
        frame.key, frame.scene, frame.rgb, depth, frame.valid_mask, frame.sky_mask, frame.intrinsics
    )


class Project:
    """A clone in which the pipeline has run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def config(self) -> ProfileConfig:
        return load_config(self.root / "params.yaml")

    def choose(self, name: str) -> None:
        (self.root / "choice").write_text(f"{name}\n")
        self.dvc("repro", "-q")

    def dvc(self, *arguments: str) -> str:
        return run(command("dvc"), *arguments, cwd=self.root, env=environment())

    def promotion(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.promotion", *arguments],
            cwd=self.root,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def files(self) -> dict[str, str]:
        return hashes(self.root / "artifacts", "promotion")


def hashes(folder: Path, *left_out: str) -> dict[str, str]:
    """SHA-256 of every file below."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] not in left_out:
            found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Model A was run and committed; git knows no user; a folder is the DVC remote."""
    forget_user(monkeypatch, tmp_path / "home")
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    here = Project(root)
    here.dvc("init", "-q")
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    here.dvc("remote", "add", "-q", "--default", "store", str(tmp_path / "store"))
    (root / "dvc.yaml").write_text(PIPELINE.format(made=made))
    shutil.copy(made / "params.yaml", root)
    (root / ".gitignore").write_text("/artifacts/\n/.work/\n")
    here.choose("A")
    git(root, "add", ".")
    git(root, *AUTHOR, "commit", "-q", "-m", "model A")
    return here


def parts_of(files: dict[str, str], *names: str) -> dict[str, str]:
    """Of a folder's hashes those below some of its folders."""
    return {k: v for k, v in files.items() if k.split("/")[0] in names}


def champion(project: Project) -> str | None:
    found = read_registry(project.root).champion
    return found.name if found else None


def test_the_life_of_two_champions(project: Project, tmp_path: Path) -> None:
    said = project.promotion("promote")
    assert "there is no champion yet: the gates alone decide" in said
    assert champion(project) == "v1.0.0"
    files_a = project.files()
    assert "champion's" in project.promotion("check", status=NOT_ACCEPTED)

    project.choose("B")
    assert project.files() != files_a
    files_b = project.files()
    decision = promote_if_better(project.root, project.config)
    assert "**metricgold v1.1.0: better than the champion**" in decision.markdown()
    assert decision.remote == "store"
    assert champion(project) == "v1.1.0"
    entry = read_registry(project.root).entry(read_registry(project.root).find(None))
    (better, _) = entry["decision"]["verdicts"]
    assert better["improvement"] > better["low"] > 0.01
    assert better["challenger"] < better["champion"] / 2
    assert entry["data"]["hypersim"]["scenes"] == 4
    assert re.fullmatch(r"[0-9a-f]{32}\.dir", entry["data"]["hypersim"]["shards"])
    assert entry["metrics"]["abs_rel"] == pytest.approx(better["challenger"])

    project.choose("A")
    decision = promote_if_better(project.root, project.config)
    assert (decision.outcome, decision.champion) == ("not better", "v1.1.0")
    assert champion(project) == "v1.1.0"

    assert "v1.0.0 is the champion" in project.promotion("rollback", "--reason", "worse at night")
    project.choose("B")
    assert promote_if_better(project.root, project.config).outcome == "withdrawn"
    assert champion(project) == "v1.0.0"
    table = history(project.root).splitlines()
    assert [row.split()[2] for row in table[1:]] == ["v1.0.0", "v1.1.0", "v1.0.0"]

    # From the remote alone, whatever the workspace holds now
    shutil.rmtree(project.root / ".dvc" / "cache")
    project.promotion("get", "v1.0.0", "--out", str(tmp_path / "got"))
    assert parts_of(hashes(tmp_path / "got"), *KEPT) == parts_of(files_a, *KEPT)
    assert "v1.0.0" in (tmp_path / "got" / "README.md").read_text()
    out = str(tmp_path / "artifact")
    project.dvc("artifacts", "get", ".", "metricgold", "--rev", "v1.1.0", "-o", out)
    prefix = "metricgold/"
    wanted = {k.removeprefix(prefix): v for k, v in files_b.items() if k.startswith(prefix)}
    assert hashes(tmp_path / "artifact") == wanted
    out = str(tmp_path / "champion")
    project.dvc("artifacts", "get", ".", "metricgold", "--stage", "champion", "-o", out)
    wanted = {k.removeprefix(prefix): v for k, v in files_a.items() if k.startswith(prefix)}
    assert hashes(tmp_path / "champion") == wanted


def test_rollback_with_checkout_brings_the_files_back(project: Project) -> None:
    """First without a remote; then from one to which the files were sent later."""
    project.dvc("remote", "default", "--unset")
    decision = promote_if_better(project.root, project.config)
    assert "in this machine's cache only" in decision.markdown()
    files_a = project.files()
    project.choose("B")
    files_b = project.files()
    promote_if_better(project.root, project.config)
    assert champion(project) == "v1.1.0"
    with (project.root / "params.yaml").open("a") as file:
        file.write("# not committed\n")
    said = project.promotion("rollback", "--checkout")
    assert "what was not committed is in git's stash" in said
    assert project.files() == files_a
    assert "not committed" not in (project.root / "params.yaml").read_text()
    assert "+# not committed" in git(project.root, "stash", "show", "-p")
    assert git(project.root, "symbolic-ref", "HEAD") == "refs/heads/main"

    project.dvc("remote", "default", "store")
    project.promotion("checkout", "v1.1.0")
    project.dvc("push", "-q")
    shutil.rmtree(project.root / ".dvc" / "cache")
    (project.root / "artifacts/metricgold/README.md").write_text("mine\n")
    assert "unsaved files" in project.promotion("checkout", "v1.1.0", status=1)
    assert (project.root / "artifacts/metricgold/README.md").read_text() == "mine\n"
    shutil.rmtree(project.root / "artifacts")
    project.promotion("checkout", "v1.1.0")
    assert parts_of(project.files(), *KEPT) == parts_of(files_b, *KEPT)


def test_a_checkout_overwrites_no_file_that_git_does_not_know(project: Project) -> None:
    promote_if_better(project.root, project.config)
    git(project.root, "rm", "-q", "--cached", "metrics/summary.json")
    said = project.promotion("checkout", status=1)
    assert "metrics/summary.json: not in git" in said


def test_a_gate_that_fails_keeps_the_champion(project: Project, made: Path) -> None:
    promote_if_better(project.root, project.config)
    project.choose("B")
    onnx = project.root / "artifacts" / "onnx"
    shutil.rmtree(onnx)
    shutil.copytree(made / "A" / "onnx", onnx)
    decision = promote_if_better(project.root, project.config)
    assert decision.outcome == "gate failed"
    passed = {gate.name: gate.passed for gate in decision.gates}
    assert passed == {"up to date": False, "hashes": True, "parity": True, "graphs": False,
                      "engines": True}  # fmt: skip
    assert any("exported from another checkpoint" in reason for reason in decision.reasons)
    assert champion(project) == "v1.0.0"
    with pytest.raises(UserError, match=r"export_onnx.*stale"):
        save_experiment(project.root, "wrong")
    by_hand = promote_if_better(project.root, project.config, by_hand="I know better")
    assert by_hand.outcome == "gate failed"


def test_a_champion_whose_files_are_gone_stays(project: Project, tmp_path: Path) -> None:
    promote_if_better(project.root, project.config)
    project.choose("B")
    project.dvc("gc", "--workspace", "--force")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(UserError, match=r"artifacts/metricgold of metricgold@v1\.0\.0: neither"):
        promote_if_better(project.root, project.config)
    assert champion(project) == "v1.0.0"


def test_two_promotions_at_once(project: Project) -> None:
    """The second waits, and then meets a champion that is its own model."""
    promote_if_better(project.root, project.config)
    project.choose("B")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "flows.promotion", "promote"],
            cwd=project.root,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=200)[0].splitlines()[0] for process in started)
    assert [process.returncode for process in started] == [0, 0]
    assert said == [
        "**challenger: these weights are the champion's**",
        "**metricgold v1.1.0: better than the champion**",
    ]
    assert len(read_registry(project.root).appointments) == 2


def test_runs_are_experiments(project: Project) -> None:
    """Two runs: shown, compared, and the first one brought back and up to date."""
    first = save_experiment(project.root, "run-a")
    files_a = project.files()
    assert save_experiment(project.root, "run-a") == first
    project.choose("B")
    with pytest.raises(UserError, match="another run is the experiment 'run-a' already"):
        save_experiment(project.root, "run-a")
    second = save_experiment(project.root, "run-b")
    assert git(project.root, "symbolic-ref", "HEAD") == "refs/heads/main"

    shown = json.loads(project.dvc("exp", "show", "--json"))
    (baseline,) = [row for row in shown if row["rev"] != "workspace"]
    named = {e["revs"][0]["name"]: e["revs"][0]["rev"] for e in baseline["experiments"]}
    assert named == {"run-a": first, "run-b": second}
    changes = json.loads(project.dvc("metrics", "diff", "run-a", "run-b", "--json"))
    assert changes["metrics/summary.json"]["abs_rel"]["diff"] < -0.05

    git(project.root, "config", "user.name", "t")  # which DVC's own commands ask for
    git(project.root, "config", "user.email", "t@localhost")
    project.dvc("exp", "apply", "run-a")
    assert project.files() == files_a
    assert (project.root / "choice").read_text() == "A\n"
    assert "up to date" in project.dvc("status")
    decision = promote_if_better(project.root, project.config, experiment=second)
    assert decision.outcome == "gate failed"  # the workspace is the other run
    decision = promote_if_better(project.root, project.config, experiment=first)
    assert (decision.outcome, decision.challenger) == ("first", first)


def test_a_second_clone_has_the_same_bytes_and_nothing_to_do(
    project: Project, made: Path, tmp_path: Path
) -> None:
    project.choose("B")
    git(project.root, *AUTHOR, "commit", "-q", "-a", "-m", "model B")
    promote_if_better(project.root, project.config)
    project.dvc("push", "-q")
    git(tmp_path, "clone", "-q", str(project.root), "other")
    other = Project(tmp_path / "other")
    other.dvc("pull", "-q")
    assert other.files() == project.files()
    assert len(other.files()) > 10
    trained = (made / "log").read_text()
    assert "up to date" in other.dvc("repro")
    assert (made / "log").read_text() == trained
    assert git(other.root, "status", "--porcelain") == ""

    assert champion(other) == "v1.0.0"  # tags came with the clone
    other.promotion("get", "--out", str(tmp_path / "got"))
    assert parts_of(hashes(tmp_path / "got"), *KEPT) == parts_of(project.files(), *KEPT)


def test_a_run_outside_of_git_is_not_kept_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert save_experiment(tmp_path, "x") is None
    assert "not in a git repository" in NO_GIT
    (tmp_path / "params.yaml").write_text("profile: demo\n")
    assert re.fullmatch(r"demo-\d{8}-\d{6}", experiment_name(tmp_path))


def test_inside_a_stage_nothing_is_promoted(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "DVC_STAGE", "train_one_step")
    with pytest.raises(UserError, match="tries to run DVC"):
        promote_if_better(project.root, project.config)
    with pytest.raises(UserError, match="tries to run DVC"):
        _dvc.changed_stages(project.root)
