"""Known vulnerabilities of the locked versions, by pip-audit; standard library only.

Usage: ``make audit`` (or ``python scripts/audit.py``). pip-audit lies in an environment of its own
under .work/audit, and asks PyPI's vulnerability service. Exit status: 0 none is known, 1 some are,
3 at least one package could not be looked up (as where the service cannot be reached).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"
FOLDER = ROOT / ".work" / "audit"
NOT_CHECKED = 3


def installed() -> Path:
    """pip-audit of the lock, installed if it is not there yet.

    Raises:
        subprocess.CalledProcessError: it cannot be had.
    """
    program = FOLDER / "bin" / "pip-audit"
    if not program.exists():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = project["optional-dependencies"]["audit"]
        venv.create(FOLDER, with_pip=True, clear=True)
        pip = [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", LOCK]
        subprocess.run([*pip, *wanted], check=True)
    return program


def verdict(report: Any) -> tuple[int, list[str]]:
    """Exit status and what to say of pip-audit's JSON.

    A package that could not be looked up counts as not checked, never as harmless.
    """
    packages = report["dependencies"]
    lines = [
        f"error: {package['name']} {package['version']}: {found['id']}, "
        f"fixed in {', '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    skipped = [package for package in packages if "skip_reason" in package]
    told = [*lines, f"{len(packages)} locked versions, {len(lines)} known vulnerabilities"]
    if skipped:
        first = skipped[0]
        told.append(
            f"NOT CHECKED: {len(skipped)} of {len(packages)}, the first is {first['name']}: "
            f"{first['skip_reason']}"
        )
    return 1 if lines else NOT_CHECKED if skipped or not packages else 0, told


def main() -> int:
    """Ask, and print what is known."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        try:
            command = [installed(), "--requirement", LOCK, *options, "--output", report]
            told = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        except (subprocess.CalledProcessError, OSError) as error:
            told = str(error)
        if not report.is_file() or not report.stat().st_size:
            print(f"NOT CHECKED: {told.strip()[-400:]}", file=sys.stderr)
            return NOT_CHECKED
        status, lines = verdict(json.loads(report.read_text(encoding="utf-8")))
    print("\n".join(lines), file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
