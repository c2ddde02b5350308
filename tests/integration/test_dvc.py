"""The real dvc.yaml as a DVC user meets it: graph, what is stale, experiments, interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows import _dvc
from metricgold.config import DATASET_NAMES
from tests.integration.service import (
    ROOT,
    command,
    environment,
    living,
    pipeline_files,
    run,
    wait_for,
)

pytestmark = pytest.mark.integration

DATASETS = list(DATASET_NAMES)
STAGES = [
    *(f"{stage}@{name}" for stage in ("source", "download", "preprocess") for name in DATASETS),
    *("data_report", "base_model", "train_vae", "cache_latents", "train_unet", "train_one_step"),
    "train_light",
    *(f"evaluate@{name}" for name in DATASETS),
    *("export_onnx", "export_trt", "verify_onnx", "report"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The pipeline's files in a folder without git, as if unpacked from an archive."""
    pipeline_files(tmp_path, "demo")
    return tmp_path


def dvc(folder: Path, *arguments: str) -> str:
    return run(command("dvc"), *arguments, cwd=folder, env=stage_environment())


def stage_environment(**extra: str) -> dict[str, str]:
    return environment(METRICGOLD_PYTHON=sys.executable, **extra)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def commit(folder: Path, stage: str) -> None:
    """Make DVC believe that a stage ran, with whatever its outputs hold."""
    for name in DATASETS:
        output = folder / "artifacts" / "source" / name
        output.mkdir(parents=True, exist_ok=True)
        (output / "index.json").write_text("[]", encoding="utf-8")
    dvc(folder, "commit", "--force", *(f"{stage}@{name}" for name in DATASETS))


def test_stages_and_their_order(copy: Path) -> None:
    assert dvc(copy, "stage", "list", "--name-only").split() == STAGES
    graph = _dvc.parse_graph(STAGES, dvc(copy, "dag", "--dot"))
    assert _dvc.stage_order(graph) == STAGES
    assert graph["preprocess@tartanair"] == {"download@tartanair"}
    assert graph["train_one_step"] >= {"train_unet", "cache_latents"}
    assert graph["train_light"] >= {"train_one_step", "cache_latents"}
    assert "train_light" in graph["export_onnx"]
    assert set(STAGES) == {"report", "data_report", "verify_onnx"} | set().union(*graph.values())


def test_another_profile_invalidates_nothing(copy: Path) -> None:
    commit(copy, "source")
    changed = json.loads(dvc(copy, "status", "--json"))
    assert not [name for name in changed if name.startswith("source@")]

    parameters = copy / "params.yaml"
    text = parameters.read_text(encoding="utf-8")
    head, smoke = text.split("\n  smoke:", 1)
    parameters.write_text(
        head + "\n  smoke:" + smoke.replace("seed: 0", "seed: 5", 1), encoding="utf-8"
    )
    assert json.loads(dvc(copy, "status", "--json")) == changed

    replace(parameters, "seed: 0", "seed: 6")  # of demo, the chosen one
    stale = json.loads(dvc(copy, "status", "--json"))
    assert {f"source@{name}" for name in DATASETS} <= set(stale)


def test_changed_code_makes_its_stage_stale(copy: Path) -> None:
    commit(copy, "source")
    module = copy / "metricgold" / "data" / "source.py"
    module.write_text(module.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert "source@hypersim" in json.loads(dvc(copy, "status", "--json"))


def test_misspelt_key_stops_the_run_with_its_name(copy: Path) -> None:
    replace(copy / "params.yaml", "kl_weight", "kl_wieght")
    done = subprocess.run(
        [command("dvc"), "repro", "--single-item", "source@hypersim"],
        cwd=copy,
        env=stage_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "error: params.yaml: " in done.stderr
    assert "profiles.demo.train_vae.kl_wieght" in done.stderr
    assert "Traceback" not in done.stderr


def test_stage_finds_its_python_without_an_activated_environment(tmp_path: Path) -> None:
    """The wrapper: the named interpreter, then .venv (also from an experiment's copy)."""
    wrapper = str(ROOT / "scripts" / "python")
    plain = {"PATH": "/usr/bin:/bin"}
    code = ("-c", "import sys; print(sys.argv[0], sys.executable)")
    named = run(
        "sh", wrapper, *code, cwd=tmp_path, env={**plain, "METRICGOLD_PYTHON": sys.executable}
    )
    assert sys.executable in named
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for inside in (tmp_path, tmp_path / ".dvc" / "tmp" / "exps" / "tmp123"):
        inside.mkdir(parents=True, exist_ok=True)
        found = run("sh", wrapper, *code, cwd=inside, env={**plain, "DVC_ROOT": str(inside)})
        assert str(tmp_path / ".venv" / "bin" / "python") in found


def test_override_changes_one_value_and_keeps_comments(copy: Path) -> None:
    path = copy / "params.yaml"
    before = path.read_text(encoding="utf-8")
    _dvc.apply_overrides(path, ["profiles.demo.train_vae.optimizer.steps=12345"])
    after = path.read_text(encoding="utf-8")
    expected = yaml.safe_load(before)
    expected["profiles"]["demo"]["train_vae"]["optimizer"]["steps"] = 12345
    assert yaml.safe_load(after) == expected
    for line in before.splitlines():
        if line.strip().startswith("#"):
            assert line in after


def test_experiment_with_a_parameter(tmp_path: Path, make_project: Callable[[str], Path]) -> None:
    """``dvc exp run -S`` on a project in git, with the environment's own DVC."""
    stage = "{cmd: cp params.yaml out.txt, params: [steps], outs: [out.txt]}"
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    run("git", "init", "-q", cwd=tmp_path)
    run(command("dvc"), "init", "-q", cwd=tmp_path)
    folder = make_project(f"stages: {{copy: {stage}}}\n")
    run("git", "add", ".", cwd=folder)
    run(*git, "commit", "-q", "-m", "start", cwd=folder)
    identity = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@localhost"}
    identity |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@localhost"}
    run(command("dvc"), "exp", "run", "-S", "steps=9", cwd=folder, env=environment(**identity))
    assert "steps: 9" in (folder / "out.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_killing_dvc_ends_the_stage(
    tmp_path: Path, make_project: Callable[[str], Path], shell: str
) -> None:
    """SIGKILL to DVC alone, as by the kernel out of memory: no trainer is left beside.

    DVC runs stages by $SHELL: bash becomes the stage, dash stays its parent.
    """
    if not Path(shell).exists():
        pytest.skip(f"no {shell} here")
    folder = make_project("stages: {}\n")
    script = folder / "stage.py"
    script.write_text(
        "import time\nfrom flows._stage import stage_main\n"
        "stage_main('train_vae', lambda c, w: (print('up', flush=True), time.sleep(7532)))\n"
    )
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text(
        f"stages:\n  train_vae:\n    cmd: sh {ROOT}/scripts/python stage.py\n    outs: [out.txt]\n"
    )
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command("dvc"), "repro"],
            cwd=folder,
            env=stage_environment(SHELL=shell),
            stdout=output,
        )
    wait_for(lambda: "up\n" in log.read_text(encoding="utf-8"), 60, "stage running")
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not living(str(folder)), 20, "stage ended with DVC")
