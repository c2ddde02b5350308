"""What a model must pass before it is compared with any other: are these the files that belong
together, and do the exported graphs compute what the checkpoint computes?
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engine_checks import built_engines
from export.engine_manifest import read_engine_manifest
from export.manifest import (
    ExportError,
    Manifest,
    read_manifest,
    sha256_of_folder,
    verify_graphs,
)
from export.trt_library import LIBRARIES
from flows import _git
from flows.experiments import outputs, read_lock
from metricgold.workspace import Workspace

PARITY_STAGE = "verify_onnx"


@dataclass(frozen=True)
class Gate:
    """One of them; ``detail`` is a sentence, whether it passed or not."""

    name: str
    passed: bool
    detail: str


def relative(root: Path, path: Path) -> str:
    """A path as ``dvc.lock`` writes it."""
    return path.relative_to(root).as_posix()


def champion_paths(root: Path) -> dict[str, str]:
    """What a champion consists of, by what it is."""
    workspace = Workspace(root)
    folders = {
        "checkpoint": workspace.model,
        "onnx": workspace.onnx,
        "engines": workspace.engines,
    }
    return {name: relative(root, folder) for name, folder in folders.items()}


def champion_hashes(root: Path, commit: str) -> dict[str, str]:
    """DVC's hashes of what a champion consists of, in a commit.

    Raises:
        UserError: a part of it is no output of that commit's ``dvc.lock``.
    """
    found = outputs(read_lock(root, commit))
    paths = champion_paths(root)
    if missing := [path for path in paths.values() if path not in found]:
        raise ExportError(f"dvc.lock: has no {', '.join(missing)}; run 'dvc repro' first")
    return {name: found[path] for name, path in paths.items()}


def check_gates(root: Path, commit: str) -> list[Gate]:
    """Every gate, for the files in ``root`` and the run that ``commit`` keeps."""
    workspace = Workspace(root)
    gates = [_lock(root, commit), _parity(root, commit)]
    try:
        manifest = read_manifest(workspace.onnx)
        gates += [_graphs(workspace, manifest), _engines(workspace, manifest)]
    except ExportError as error:
        gates.append(Gate("graphs", False, str(error)))
    return gates


def _lock(root: Path, commit: str) -> Gate:
    """The parity stage compared the very checkpoint and graphs of this run, by DVC's hashes."""
    stages = read_lock(root, commit)
    made, paths = outputs(stages), champion_paths(root)
    compared = {e["path"]: e.get("md5") for e in stages.get(PARITY_STAGE, {}).get("deps", [])}
    for path in (paths["checkpoint"], paths["onnx"]):
        if path not in made or compared.get(path) != made[path]:
            detail = f"{path}: not what stage '{PARITY_STAGE}' compared; run 'dvc repro'"
            return Gate("hashes", False, detail)
    return Gate("hashes", True, f"'{PARITY_STAGE}' compared these files, by their hashes")


def _parity(root: Path, commit: str) -> Gate:
    path = relative(root, Workspace(root).metrics / "parity.json")
    try:
        parity: dict[str, Any] = json.loads(_git.file_at(root, commit, path))
        compared = parity["comparisons"]
        failed = [c for c in compared if c["passed"] is not True]
        passed = parity["passed"] is True and bool(compared) and not failed
    except (_git.GitError, ValueError, KeyError, TypeError) as error:
        return Gate("parity", False, f"{path}: cannot be read ({error})")
    if passed:
        worst = max(map(float, parity["worst_relative"].values()))
        return Gate("parity", True, f"{len(compared)} comparisons with torch, worst {worst:.1e}")
    where = ", ".join(f"{c['component']} at {c['size']}" for c in failed) or "it compared nothing"
    return Gate("parity", False, f"{path}: the graphs differ from torch: {where}")


def _graphs(workspace: Workspace, manifest: Manifest) -> Gate:
    """The graphs are the manifest's, and the manifest is of this checkpoint."""
    if manifest.checkpoint_sha256 != sha256_of_folder(workspace.model):
        detail = f"{workspace.onnx}: exported from another checkpoint than {workspace.model}"
        return Gate("graphs", False, detail)
    try:
        verify_graphs(workspace.onnx, manifest)
    except ExportError as error:
        return Gate("graphs", False, str(error))
    names = ", ".join(manifest.graphs())
    return Gate("graphs", True, f"{names}: of this checkpoint, by their hashes")


def _engines(workspace: Workspace, manifest: Manifest) -> Gate:
    """Every engine that was built is of one of these graphs; none built is no failure."""
    try:
        engines = read_engine_manifest(workspace.engines)
        for name, build in engines.builds.items():
            built_engines(LIBRARIES[name], workspace.engines, manifest.graphs(), build.engines)
    except ExportError as error:
        return Gate("engines", False, str(error))
    return Gate("engines", True, "; ".join(_built(engines.builds, engines.not_built)))


def _built(builds: dict[str, Any], not_built: dict[str, str]) -> Iterator[str]:
    for library, build in builds.items():
        yield f"{library}: {len(build.engines)} engines of these graphs"
    for library, why in not_built.items():
        yield f"{library}: none ({why})"
