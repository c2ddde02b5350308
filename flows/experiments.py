"""Every run of the pipeline is a DVC experiment: to be compared, checked out, done again.

An experiment of DVC is a commit on top of the one checked out, under a ref that names both. There
``dvc exp show``, ``dvc metrics diff A B``, ``dvc exp apply``, ``dvc exp branch`` find it.

The commit is made here and not by ``dvc exp save``, which hides the working tree in git's stash
while it works: killed then, it leaves a detached HEAD, the parameters of the commit before and a
``dvc.lock`` that does not belong to the outputs (DVC 3.67.1). It also calls stale outputs good, and
unstages what was staged.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from flows import _dvc, _git
from metricgold.errors import UserError

NO_GIT = "not in a git repository with a commit: the run is not kept as a DVC experiment"
LOCK_FILE = "dvc.lock"


def experiment_name(root: Path) -> str:
    """Profile and time, as a readable name that no other run has: ``demo-20260131-093005``."""
    profile = profile_of((root / "params.yaml").read_text(encoding="utf-8"))
    return f"{profile}-{datetime.now():%Y%m%d-%H%M%S}"


def profile_of(params: str) -> str:
    """The profile that is set in the text of a ``params.yaml``."""
    return str((yaml.safe_load(params) or {}).get("profile", "run"))


def save_experiment(root: Path, name: str) -> str | None:
    """Keep the finished run in ``root`` as the DVC experiment ``name``.

    Returns:
        its commit, also if it was saved before; None outside of git (:data:`NO_GIT`).

    Raises:
        UserError: a stage is stale, so that its outputs are not what the files say; or another
            run has the name.
    """
    baseline = _git.head(root)
    if baseline is None:
        return None
    if stale := sorted(_dvc.changed_stages(root)):
        raise UserError(
            f"{', '.join(stale)}: stale, so this run cannot be kept as an experiment; "
            "run 'dvc repro' first"
        )
    ref = f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"
    commit = run_commit(root, name)
    known = _git.resolve(root, ref)
    if known is None:
        _git.create_refs(root, {ref: commit})
        return commit
    if _git.resolve(root, f"{known}^{{tree}}") != _git.resolve(root, f"{commit}^{{tree}}"):
        raise UserError(f"another run is the experiment '{name}' already; choose another name")
    return known


def run_commit(root: Path, name: str) -> str:
    """The state of ``root`` as a commit that nothing refers to yet."""
    return _git.snapshot(root, f"dvc: experiment {name}", _used_but_untracked(root))


def _used_but_untracked(root: Path) -> list[str]:
    """Files that the pipeline reads or writes and git does not know yet, nor ignores."""
    used = {LOCK_FILE, "dvc.yaml", "params.yaml", *dependencies_and_outputs(read_lock(root))}
    listed = _git.git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    return [p for p in listed if p and not used.isdisjoint([p, *map(str, Path(p).parents)])]


def read_lock(root: Path, commit: str | None = None) -> dict[str, Any]:
    """``dvc.lock`` of the working tree or of a commit, by stage.

    Raises:
        UserError: there is none.
    """
    if commit is not None:
        text = _git.file_at(root, commit, LOCK_FILE)
    elif (root / LOCK_FILE).is_file():
        text = (root / LOCK_FILE).read_text(encoding="utf-8")
    else:
        raise UserError(f"{root / LOCK_FILE}: missing; run 'dvc repro' first")
    stages: dict[str, Any] = yaml.safe_load(text)["stages"]
    return stages


def dependencies_and_outputs(stages: dict[str, Any]) -> set[str]:
    """Paths in ``dvc.lock``."""
    return {e["path"] for s in stages.values() for k in ("deps", "outs") for e in s.get(k, [])}


def outputs(stages: dict[str, Any]) -> dict[str, str]:
    """Path to DVC's hash of every output in ``dvc.lock``."""
    return {e["path"]: e["md5"] for s in stages.values() for e in s.get("outs", [])}
