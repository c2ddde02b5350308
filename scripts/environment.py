"""Bring ``.venv`` up to date with pyproject.toml and requirements/lock.txt; standard library only.

Usage: ``python3 scripts/environment.py [--extras cpu,rtx]``. Without ``--extras`` the back-end is
chosen by whether an NVIDIA driver is there. Does nothing when nothing changed.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "metricgold-installed"
LOCK = Path("requirements", "lock.txt")
ALWAYS = "pipeline,dev"
NO_SCM = "[core]\n    no_scm = true\n"


def driver_present() -> bool:
    """Whether an NVIDIA driver is installed (its library loads, or ``nvidia-smi`` is there)."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return shutil.which("nvidia-smi") is not None
    return True


def chosen_extras(text: str) -> str:
    """``text``, with gpu or cpu added by whether there is a driver when it names neither."""
    extras = {part.strip() for part in text.split(",") if part.strip()}
    if {"cpu", "gpu"} <= extras:
        sys.exit("error: EXTRAS names both cpu and gpu, which exclude each other; name one")
    if not {"cpu", "gpu"} & extras:
        extras.add("gpu" if driver_present() else "cpu")
    return ",".join(sorted(extras))


def fingerprint(extras: str) -> str:
    """Extras, a hash of the interpreter, and one of the files that decide what is installed."""
    interpreter = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    files = hashlib.sha256()
    for name in ("pyproject.toml", str(LOCK)):
        files.update((ROOT / name).read_bytes())
    return f"{extras} {interpreter.hexdigest()} {files.hexdigest()}"


def install(extras: str, wanted: str, before: str) -> None:
    """Install into ``.venv``; made anew when it held other extras, which could contradict, or
    was another interpreter's, whose standard library would be mixed with this one's."""
    clear = before.split()[:2] != wanted.split()[:2]
    print(f"installing .venv with {ALWAYS},{extras} from {LOCK} (a few minutes)", flush=True)
    STAMP.unlink(missing_ok=True)
    venv.EnvBuilder(with_pip=True, clear=clear, symlinks=True).create(VENV)
    requirement = f".[{ALWAYS},{extras}]"
    command = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", LOCK]
    done = subprocess.run([*command, "-e", requirement], cwd=ROOT, check=False)
    if done.returncode != 0:
        sys.exit("error: pip could not install the locked versions; what it printed is above")


def without_git() -> None:
    """DVC asks for git unless told otherwise; a copy of the project may have none."""
    local = ROOT / ".dvc" / "config.local"
    if not (ROOT / ".git").exists() and not local.exists():
        local.write_text(NO_SCM, encoding="utf-8")


def main() -> None:
    """Check, and install if needed."""
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever has an older one shall be told)
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"error: Python 3.11 or newer is needed, this is {found}; make PYTHON=python3.11")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="", help="some of cpu, gpu, rtx, sd2; with commas")
    extras = chosen_extras(parser.parse_args().extras)
    without_git()
    wanted = fingerprint(extras)
    before = STAMP.read_text(encoding="utf-8") if STAMP.is_file() else ""
    if wanted != before:
        install(extras, wanted, before)
        STAMP.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
