"""What the registry keeps of a champion, and how its files are had again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from flows import _dvc, _git
from flows._gates import champion_hashes, champion_paths, relative
from flows._registry import CARD_FILE, ENTRY_FILE, NAME, Version
from flows.experiments import LOCK_FILE, outputs, profile_of, read_lock
from metricgold import files
from metricgold.config import ProfileConfig
from metricgold.errors import UserError
from metricgold.evaluation.summary import datasets_digest
from metricgold.workspace import Workspace

SHOWN = ("abs_rel", "delta1", "rmse", "silog", "boundary_f1", "affine_abs_rel")
"""Figures of the model card."""
RUN_FILES = (LOCK_FILE, "params.yaml", "metrics", "plots")
"""What of a run lies in git: its parameters, hashes and figures."""


def build_entry(
    root: Path, config: ProfileConfig, version: str, commit: str, decision: dict[str, Any]
) -> dict[str, Any]:
    """The registry entry of the run that ``commit`` keeps."""
    workspace = Workspace(root)
    made = outputs(read_lock(root, commit))
    compared = decision["data"] or {}
    data = {
        name: {"shards": made.get(relative(root, workspace.shards(name)))} | compared.get(name, {})
        for name in config.enabled_datasets()
    }
    return {
        "name": NAME,
        "version": version,
        "date": decision["date"],
        "profile": profile_of(_git.file_at(root, commit, "params.yaml")),
        "commit": commit,
        "parent": _git.git(root, "rev-parse", f"{commit}^"),
        "hashes": champion_hashes(root, commit),
        "metrics": _json_at(root, commit, workspace.metrics / "summary.json"),
        "parity": _json_at(root, commit, workspace.metrics / "parity.json"),
        "onnx": files_of(workspace.onnx),
        "engines": files_of(workspace.engines),
        "datasets": datasets_digest(config),
        "data": data,
        "decision": decision,
    }


def files_of(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a folder of graphs or engines, without what only a runtime needs."""
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {k: v for k, v in content.items() if k not in ("scheduler", "preprocessing", "fov")}


def _json_at(root: Path, commit: str, path: Path) -> Any:
    return json.loads(_git.file_at(root, commit, relative(root, path)))


def build_card(root: Path, entry: dict[str, Any]) -> str:
    """The checkpoint's model card with the entry's figures below."""
    metrics, decision = entry["metrics"], entry["decision"]
    rows = [f"| {name} | {metrics[name]} |" for name in SHOWN if name in metrics]
    hashes = [f"| {what} | `{value}` |" for what, value in entry["hashes"].items()]
    engines = [f"- {library}: {why}" for library, why in entry["engines"]["not_built"].items()]
    for library, build in entry["engines"]["builds"].items():
        built = ", ".join(sorted(build["engines"]))
        engines.append(f"- {library} {build['library_version']}: {built}")
    lines = [
        (Workspace(root).model / "README.md").read_text(encoding="utf-8").rstrip(),
        "",
        f"## Version {entry['version']}",
        "",
        f"Held-out scenes ({metrics.get('frames')} frames of {metrics.get('scenes')} scenes), "
        "metric depth without alignment:",
        "",
        "| figure | mean |",
        "|---|---|",
        *rows,
        "",
        f"Champion since {entry['date']}; {replaced(decision)}.",
        "",
        *[f"- {reason}" for reason in decision["reasons"]],
        "",
        "Files, by DVC's hashes, of commit "
        f"`{entry['commit'][:12]}`; the ONNX graphs passed the parity gate:",
        "",
        "| part | hash |",
        "|---|---|",
        *hashes,
        "",
        "TensorRT engines:",
        "",
        *engines,
    ]
    return "\n".join(lines) + "\n"


def replaced(decision: dict[str, Any]) -> str:
    """Whom a champion replaced, in words."""
    before = decision["champion"]
    return f"it replaced {before}" if before else "the first one, compared with no other"


def commit_version(
    root: Path, config: ProfileConfig, version: str, commit: str, decision: dict[str, Any]
) -> str:
    """A commit on top of a run's with its registry entry and model card; no ref names it yet."""
    entry = build_entry(root, config, version, commit, decision)
    contents = {
        ENTRY_FILE: json.dumps(entry, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        CARD_FILE: build_card(root, entry),
    }
    return _git.with_files(root, commit, contents, f"{NAME} {version}")


def default_remote(root: Path) -> str | None:
    """The name of DVC's default remote, if one is set."""
    settings = _dvc.dvc_output(root, "config", "--list").splitlines()
    found = [line.partition("=")[2] for line in settings if line.startswith("core.remote=")]
    return found[-1] if found else None


def push(root: Path) -> str | None:
    """Send all that a champion consists of to the default remote; its name, if there is one."""
    remote = default_remote(root)
    if remote is not None:
        _dvc.dvc_output(root, "push", *champion_paths(root).values())
    return remote


def fetched_checkpoint(root: Path, version: Version) -> Path:
    """A version's checkpoint in a scratch folder, from the cache or the remote.

    Raises:
        UserError: it is in neither.
    """
    part = "checkpoint"
    digest = champion_hashes(root, version.commit)[part]
    folder = Workspace(root).scratch("promotion") / digest.removesuffix(".dir")
    if not folder.is_dir():
        for other in folder.parent.glob("*"):  # checkpoints of former champions
            shutil.rmtree(other, ignore_errors=True)
        with files.replaced_folder(folder) as empty:
            _get(root, version, champion_paths(root)[part], empty / part)
    return folder / part


def _get(root: Path, version: Version, path: str, out: Path) -> None:
    command = ("get", str(root), path, "--rev", version.commit, "--out", str(out))
    try:
        _dvc.dvc_output(root, *command)
    except _dvc.StageError as error:
        raise UserError(
            f"{path} of {version.tag}: neither in DVC's cache nor in its remote ({error})"
        ) from None


def get_version(root: Path, version: Version, out: Path) -> None:
    """A new folder with all of a version: checkpoint, graphs, engines, entry and model card.

    Raises:
        UserError: the folder exists, or a part cannot be had.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name another --out")
    with files.replaced_folder(out.absolute()) as folder:
        for path in champion_paths(root).values():
            _get(root, version, path, folder / Path(path).name)
        for path in (ENTRY_FILE, CARD_FILE):
            text = _git.file_at(root, version.commit, path)
            files.write_text(folder / Path(path).name, text + "\n")


def checkout_version(root: Path, version: Version) -> str | None:
    """Bring a version's parameters, hashes, figures and files back into the working tree.

    Code and ``dvc.yaml`` stay. Changes that were not committed go to git's stash first, and an
    output that is not in DVC's cache is not overwritten.

    Returns:
        the commit in the stash, if something was put there.

    Raises:
        UserError: a part of the version cannot be had, or a file that git does not know is in
            the way; the same command completes it later.
    """
    kept = _set_aside(root, version)
    there = _git.git(root, "ls-tree", "--name-only", version.commit, "--", *RUN_FILES).splitlines()
    _git.git(root, "restore", f"--source={version.commit}", "--worktree", "--", *there)
    paths = champion_paths(root).values()
    _dvc.dvc_output(root, "pull" if default_remote(root) else "checkout", *paths)
    _dvc.dvc_output(root, "checkout", "--allow-missing")
    return kept


def _set_aside(root: Path, version: Version) -> str | None:
    """Put what was not committed into git's stash, if a checkout would overwrite any of it."""
    tree = _git.git(root, "ls-tree", "-r", "--name-only", version.commit, "--", *RUN_FILES)
    loose = _git.git(root, "ls-files", "--others", "--exclude-standard", "--", *RUN_FILES)
    if clash := sorted(set(tree.splitlines()) & set(loose.splitlines())):
        raise UserError(f"{', '.join(clash)}: not in git, and {version.tag} has it too; commit it")
    changed = ("status", "--porcelain", "--untracked-files=no", "--", *RUN_FILES)
    if not _git.git(root, *changed):
        return None
    message, env = f"before the checkout of {version.tag}", _git.identity(root)
    kept = _git.git(root, "stash", "create", message, env=env)
    _git.git(root, "stash", "store", "--message", message, kept, env=env)
    return kept
