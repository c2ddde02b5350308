"""Promotion and rollback as changes of a git repository; killed at any point, then run again.

Comparison and DVC are replaced here; tests/integration/test_promotion.py has them for real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import entry_of
from git_project import forget_user, git, make_repository, write_run
from made_graphs import write_graphs

from export.engine_manifest import EngineManifest, EngineSidecar, LibraryBuild
from export.manifest import sha256_of, sha256_of_folder
from flows import _dvc, _gates, _release, promotion
from flows._decision import Decision
from flows._gates import Gate, check_gates
from flows._registry import Registry, read_registry
from flows.experiments import run_commit
from metricgold.config import ProfileConfig, load_config
from metricgold.errors import UserError

ROOT = Path(__file__).parents[2]
STEPS: list[tuple[Any, str]] = [
    (_release, "push"),
    (_release, "commit_version"),
    (Registry, "register"),
    (Registry, "appoint"),
]
"""What a promotion does, in order; only the last may be seen by others."""


@pytest.fixture
def config() -> ProfileConfig:
    return load_config(ROOT / "params.yaml", "smoke")


def accept(root: Path, *_: object) -> Decision:
    champion = read_registry(root).champion
    return Decision(
        outcome="better" if champion else "first",
        reasons=["abs_rel on all frames: 0.3 -> 0.2"],
        champion=champion.name if champion else None,
        challenger=run_commit(root, "challenger"),
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ProfileConfig) -> Path:
    """Champion v1.0.0 is model A; the working tree holds model B, which will be accepted."""
    forget_user(monkeypatch, tmp_path / "home")
    root = make_repository(tmp_path / "project")
    monkeypatch.setattr(promotion, "_decide", accept)
    monkeypatch.setattr(_release, "push", lambda root: "store")
    assert promotion.promote_if_better(root, config).version == "v1.0.0"
    write_run(root, "B")
    return root


def champion(root: Path) -> str:
    found = read_registry(root).champion
    assert found is not None
    return found.name


class Killed(BaseException):
    """As hard as an exception can be: no ``except Exception`` sees it."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_broken_off_at_a_step_then_run_again(
    project: Path,
    config: ProfileConfig,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def broken(*arguments: Any) -> Any:
        if after:
            original(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises(Killed):
            promotion.promote_if_better(project, config)
    done = name == "appoint" and after
    assert champion(project) == ("v1.1.0" if done else "v1.0.0")
    if not done:
        assert promotion.promote_if_better(project, config).version == "v1.1.0"
    assert champion(project) == "v1.1.0"
    assert [v.name for v in read_registry(project).versions] == ["v1.0.0", "v1.1.0"]
    assert read_registry(project).entry(read_registry(project).find(None))["hashes"] == {
        "checkpoint": "metricgold-B.dir",
        "onnx": "onnx-B.dir",
        "engines": "engines-B.dir",
    }


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", [name for _, name in STEPS])
def test_killed_at_a_step_then_run_again(
    project: Path, config: ProfileConfig, name: str, after: bool
) -> None:
    """SIGKILL: no clean-up of ours runs, and the lock is free again."""
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT / "tests" / "unit")!r})
        from test_promotion import STEPS, accept
        from flows import _release, promotion
        from metricgold.config import load_config
        promotion._decide = accept
        _release.push = lambda root: "store"
        owner = next(o for o, n in STEPS if n == {name!r})
        original = getattr(owner, {name!r})
        def killed(*arguments):
            if {after}:
                original(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(owner, {name!r}, killed)
        config = load_config({str(ROOT / "params.yaml")!r}, "smoke")
        promotion.promote_if_better(Path("."), config)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    appointed = name == "appoint" and after
    assert champion(project) == ("v1.1.0" if appointed else "v1.0.0")
    if not appointed:
        assert promotion.promote_if_better(project, config).version == "v1.1.0"
    assert champion(project) == "v1.1.0"
    assert not (project / ".git" / "index.lock").exists()


def test_a_failed_push_promotes_nothing(
    project: Path, config: ProfileConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(root: Path) -> None:
        raise _dvc.StageError("dvc push: the remote is full")

    monkeypatch.setattr(_release, "push", push)
    with pytest.raises(UserError, match="the remote is full"):
        promotion.promote_if_better(project, config)
    assert champion(project) == "v1.0.0"
    assert [v.name for v in read_registry(project).versions] == ["v1.0.0"]


def test_what_another_files_promotion_left_is_not_completed(
    project: Path, config: ProfileConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "appoint", killed)
        with pytest.raises(Killed):
            promotion.promote_if_better(project, config)
    write_run(project, "C")
    assert promotion.promote_if_better(project, config).version == "v1.2.0"
    assert [v.name for v in read_registry(project).waiting] == ["v1.1.0"]
    assert "waiting    v1.1.0" in promotion.status(project)


def test_entry_and_card_of_a_version(project: Path, config: ProfileConfig) -> None:
    promotion.promote_if_better(project, config)
    version = read_registry(project).find("v1.1.0")
    entry = read_registry(project).entry(version)
    assert (entry["name"], entry["version"]) == ("metricgold", "v1.1.0")
    assert (entry["profile"], entry["metrics"]["abs_rel"]) == ("smoke", 0.2)
    assert entry["decision"]["champion"] == "v1.0.0"
    assert entry["decision"]["remote"] == "store"
    assert entry["parent"] == git(project, "rev-parse", "HEAD")
    assert git(project, "rev-parse", f"{version.commit}^") == entry["commit"]
    card = git(project, "show", f"{version.tag}:registry/README.md")
    assert card.startswith("# Checkpoint B\n")
    assert "| abs_rel | 0.2 |" in card
    assert "it replaced v1.0.0" in card
    assert "- tensorrt: no GPU" in card
    assert "`metricgold-B.dir`" in card


def test_rollback_and_history(project: Path, config: ProfileConfig) -> None:
    with pytest.raises(UserError, match=r"v1\.0\.0 is the first champion"):
        promotion.rollback(project)
    promotion.promote_if_better(project, config)
    assert promotion.rollback(project, reason="worse at night").name == "v1.0.0"
    assert champion(project) == "v1.0.0"
    with pytest.raises(UserError, match="first champion"):
        promotion.rollback(project)
    assert promotion.rollback(project, to="v1.1.0").name == "v1.1.0"
    with pytest.raises(UserError, match=r"v1\.1\.0 is the champion already"):
        promotion.rollback(project, to="v1.1.0")
    with pytest.raises(UserError, match=r"no version 'v3\.0\.0'"):
        promotion.rollback(project, to="v3.0.0")
    lines = promotion.history(project).splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["v1.0.0", "v1.1.0", "v1.0.0", "v1.1.0"]
    assert "0.3000" in lines[1]
    assert "0.2000" in lines[2]
    assert lines[3].endswith("back from v1.1.0: worse at night")
    assert "before it  v1.0.0" in promotion.status(project)


def test_a_decision_is_written_as_json_and_markdown(project: Path, config: ProfileConfig) -> None:
    decision = promotion.promote_if_better(project, config, register=False)
    assert (decision.accepted, decision.version) == (True, None)
    assert champion(project) == "v1.0.0"
    path = max((project / "artifacts/promotion").glob("*.json"))
    record = json.loads(path.read_text())
    assert (record["outcome"], record["accepted"]) == ("better", True)
    assert path.with_suffix(".md").read_text() == decision.markdown()
    assert "abs_rel on all frames: 0.3 -> 0.2" in decision.markdown()


def test_outside_of_git_it_says_so(
    tmp_path: Path, config: ProfileConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    decision = promotion.promote_if_better(tmp_path, config)
    assert (decision.outcome, decision.accepted) == ("not in git", False)
    assert promotion.history(tmp_path) == "no champion yet"
    assert "outside of a git repository" in promotion.status(tmp_path)


def gates_of(root: Path) -> dict[str, Gate]:
    return {gate.name: gate for gate in check_gates(root, run_commit(root, "x"))}


def lock_of_parity(root: Path, onnx: str) -> None:
    """A ``dvc.lock`` whose parity stage compared graphs of hash ``onnx``."""
    text = (root / "dvc.lock").read_text()
    deps = (
        "{path: artifacts/metricgold, md5: metricgold-B.dir}, "
        f"{{path: artifacts/onnx, md5: {onnx}}}"
    )
    (root / "dvc.lock").write_text(f"{text}  verify_onnx:\n    deps: [{deps}]\n")


def test_parity_of_other_graphs_does_not_count(project: Path) -> None:
    assert not gates_of(project)["hashes"].passed
    lock_of_parity(project, "onnx-A.dir")
    assert not gates_of(project)["hashes"].passed
    write_run(project, "B")
    lock_of_parity(project, "onnx-B.dir")
    assert gates_of(project)["hashes"].passed


@pytest.mark.parametrize(
    ("parity", "said"),
    [
        ({"passed": False, "comparisons": []}, "it compared nothing"),
        ({"passed": True, "comparisons": []}, "it compared nothing"),
        (
            {
                "passed": True,
                "comparisons": [{"component": "unet_step", "size": [8, 8], "passed": False}],
            },
            "unet_step at [8, 8]",
        ),
        ({}, "cannot be read"),
    ],
)
def test_a_failed_parity_is_no_pass(project: Path, parity: dict[str, Any], said: str) -> None:
    (project / "metrics/parity.json").write_text(json.dumps(parity))
    gate = gates_of(project)["parity"]
    assert not gate.passed
    assert said in gate.detail


def engine_of(graph: Path, plan: Path) -> None:
    """An engines folder with one engine of a graph, as a build would describe it."""
    sidecar = EngineSidecar(
        component="unet_step",
        library="tensorrt-rtx",
        versions={"tensorrt-rtx": "1"},
        compute_capabilities=["8.9"],
        file=plan.name,
        sha256=sha256_of(plan),
        bytes=1,
        graph={graph.name: sha256_of(graph)},
        precision="fp32",
        profiles=[],
        options={},
        not_available={},
        audit={},
        seconds=1.0,
        peak_memory_mib=None,
        log="",
    )
    engines = {"unet_step": entry_of(plan.parent, sidecar)}
    build = LibraryBuild(library_version="1", compute_capabilities=["8.9"], engines=engines)
    EngineManifest(builds={"tensorrt-rtx": build}).write(plan.parent)


def test_graphs_and_engines_must_be_of_the_checkpoint(project: Path) -> None:
    artifacts = project / "artifacts"
    shutil.rmtree(artifacts / "onnx")
    write_graphs(artifacts / "onnx", sha256_of_folder(artifacts / "metricgold"), "B")
    graph, plan = artifacts / "onnx/unet_step.onnx", artifacts / "engines/unet.plan"
    plan.write_text("plan")
    engine_of(graph, plan)
    gates = gates_of(project)
    assert gates["graphs"].passed
    assert gates["engines"].passed
    assert gates["engines"].detail == "tensorrt-rtx: 1 engines of these graphs"

    engine_of(artifacts / "metricgold/README.md", plan)
    assert "built from another unet_step.onnx" in gates_of(project)["engines"].detail
    engine_of(graph, plan)
    plan.write_text("damaged")
    assert not gates_of(project)["engines"].passed

    before = graph.read_text()
    graph.write_text("damaged")
    assert "differs from what the manifest lists" in gates_of(project)["graphs"].detail
    graph.write_text(before)
    (artifacts / "metricgold/README.md").write_text("another checkpoint")
    assert "exported from another checkpoint" in gates_of(project)["graphs"].detail


def test_only_what_belongs_to_a_champion_is_asked_for(project: Path) -> None:
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    with pytest.raises(UserError, match="has no artifacts/metricgold, artifacts/onnx"):
        _gates.champion_hashes(project, run_commit(project, "x"))
