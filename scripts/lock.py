"""Write ``requirements/lock.txt``: every version that a fresh resolution of pyproject.toml gives.

Usage: ``make lock`` (or ``python3 scripts/lock.py``): resolves in a throw-away environment with
the interpreter that runs it, so run it with the oldest supported Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "requirements" / "lock.txt"
INSTALLED_EXTRAS = "pipeline,cpu,rtx,sd2,audit,dev"
NOT_INSTALLED = ("gpu", "8bit", "ray")
"""Extras of which only what pyproject.toml pins itself is in the lock."""
RTX_MARKER = " ; platform_system == 'Linux' and platform_machine == 'x86_64'"
HEADER = """\
# Every version, used as constraints: pip install -c requirements/lock.txt -e ".[pipeline,cpu,dev]"
# Written by `make lock`; edit pyproject.toml, not this file. A pin installs nothing by itself, so
# back-ends that exclude each other (onnxruntime and onnxruntime-gpu) can stand side by side.
"""


def pinned(line: str) -> str:
    """One line of ``pip freeze`` without a local version (``+cpu``), with a platform marker.

    >>> pinned("torch==2.13.0+cpu")
    'torch==2.13.0'
    """
    if "==" not in line:
        raise ValueError(f"not a plain version: {line!r}; nothing but an index may provide it")
    name, version = line.split("==")
    marker = RTX_MARKER if name.lower().replace("_", "-").startswith("tensorrt-rtx") else ""
    return f"{name}=={version.partition('+')[0]}{marker}"


def resolve(folder: Path) -> list[str]:
    """``pip freeze`` of a new environment with all extras that install everywhere."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    requirement = f"{ROOT}[{INSTALLED_EXTRAS}]"
    subprocess.run([python, "-m", "pip", "install", "-e", requirement], check=True)
    command = [python, "-m", "pip", "freeze", "--exclude-editable"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main() -> None:
    """Resolve, then replace the lock in one step."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        lines = [pinned(line) for line in resolve(Path(folder))]
    extras = project["optional-dependencies"]
    named = [line for extra in NOT_INSTALLED for line in extras[extra] if "metricgold[" not in line]
    others = [line.replace(";", " ;", 1) for line in named]
    body = "\n".join(sorted(lines + others, key=str.lower)) + "\n"
    TARGET.parent.mkdir(exist_ok=True)
    temporary = TARGET.with_suffix(".part")
    temporary.write_text(HEADER + body, encoding="utf-8")
    os.replace(temporary, TARGET)
    print(f"{TARGET.relative_to(ROOT)}: {len(lines) + len(others)} versions", file=sys.stderr)


if __name__ == "__main__":
    main()
