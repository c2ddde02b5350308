"""Code dependencies of every DVC stage, from the imports of its function.

Usage: ``python scripts/stage_deps.py`` prints what differs from dvc.yaml (exit 1 if anything
does); ``--write`` corrects dvc.yaml, keeping its comments. Needs the dev extra (grimp).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import grimp
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("metricgold", "export", "flows")
PLUMBING = {
    "metricgold.config",  # its values are tracked by `params`
    "metricgold.errors",
    "metricgold.files",
    "metricgold.model_card",
    "metricgold.places",
    "metricgold.processes",
    "metricgold.progress",
    "metricgold.spread",
    "metricgold.training.tracking",
    "metricgold.training.validation",
    "metricgold.workspace",
}
"""Modules that decide no number; a change there must not train anything again."""


def module_file(module: str, root: Path) -> Path:
    """The file of a module or package, relative to ``root``."""
    path = Path(*module.split("."))
    return path / "__init__.py" if (root / path).is_dir() else path.with_suffix(".py")


def code_deps(stage: str, graph: Any, root: Path = ROOT) -> list[str]:
    """Project files that stage ``stage`` imports, directly or not, sorted."""
    modules = graph.find_upstream_modules(f"flows.{stage}") - PLUMBING
    files = {module_file(m, root) for m in modules if not m.startswith("flows.")}
    return sorted(str(f) for f in files if f.name != "__init__.py")


def import_graph() -> Any:
    """The project's imports, those inside functions included, but not what plumbing imports."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)
    for module in PLUMBING:
        for imported in graph.find_modules_directly_imported_by(module):
            graph.remove_import(importer=module, imported=imported)
    return graph


def is_code(dep: Any) -> bool:
    """Whether an entry of ``deps`` is a project module."""
    return str(dep).endswith(".py")


def differences(pipeline: Any, graph: Any) -> dict[str, tuple[list[str], list[str]]]:
    """Stage to (missing, superfluous) code dependencies, for stages that differ."""
    found = {}
    for stage, body in pipeline["stages"].items():
        wanted, listed = set(code_deps(stage, graph)), set(filter(is_code, body.get("deps", [])))
        if wanted != listed:
            found[stage] = (sorted(wanted - listed), sorted(listed - wanted))
    return found


def correct(pipeline: Any, graph: Any) -> None:
    """Replace the code dependencies of every stage, before its other dependencies."""
    for stage, body in pipeline["stages"].items():
        others = [d for d in body.get("deps", []) if not is_code(d)]
        deps = code_deps(stage, graph) + others
        if "deps" in body:
            body["deps"][:] = deps
        else:
            body.insert(list(body).index("cmd") + 1, "deps", deps)


def main() -> int:
    """Print the differences, or write the corrected file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="correct dvc.yaml")
    write = parser.parse_args().write
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 100
    path = ROOT / "dvc.yaml"
    pipeline = yaml.load(path)
    graph = import_graph()
    found = differences(pipeline, graph)
    for stage, (missing, superfluous) in found.items():
        for sign, names in (("+", missing), ("-", superfluous)):
            for name in names:
                print(f"{stage}: {sign} {name}")
    if write and found:
        correct(pipeline, graph)
        temporary = path.with_suffix(".part")
        with temporary.open("w", encoding="utf-8") as file:
            yaml.dump(pipeline, file)
        os.replace(temporary, path)
    return int(bool(found) and not write)


if __name__ == "__main__":
    sys.exit(main())
