"""Licences of everything that is installed, against what this project may build on.

Usage: ``python scripts/licences.py``: a table, and exit 1 where a licence is not known or not
allowed. A package's own statement is read (``License-Expression``, classifiers, ``License``);
what it leaves open is said in :data:`REVIEWED`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import metadata

ALLOWED = re.compile(
    r"\b(MIT|MIT-0|MIT-CMU|0?BSD|[23]-clause|Apache|ISC|PSF|Python Software|CNRI|HPND|Historical"
    r"|Zlib|Unlicense|Public Domain|CC0|MPL|Mozilla|LGPL|Lesser|BSL-1\.0|ZPL|Zope)",
    re.IGNORECASE,
)
"""Permissive licences, and those that bind only changes of the package itself."""

FORBIDDEN = re.compile(r"AGPL|Affero|SSPL|Commons Clause|BUSL|non-?commercial", re.IGNORECASE)

NVIDIA = "NVIDIA's own terms; an optional back-end, used and not passed on"
REVIEWED = {
    "OpenEXR": "BSD-3-Clause (its LICENSE.md); its metadata say nothing",
    "asyncssh": "EPL-2.0 or GPL-2.0-or-later, for DVC's SSH remotes; not linked with our code",
    "bitsandbytes": "MIT",
    "grandalf": "GPL-2.0 or EPL-1.0, draws DVC's graphs; not linked with our code",
    "hdf5plugin": "MIT and BSD-like, a part for each filter (its LICENSE)",
    "pygit2": "GPL-2.0 with linking exception, used by DVC",
    "tensorrt_rtx": NVIDIA,
    "tensorrt_rtx_cu13": NVIDIA,
    "tensorrt_rtx_cu13_bindings": NVIDIA,
    "tensorrt_rtx_cu13_libs": NVIDIA,
    "text-unidecode": "Artistic License or GPL, used by Prefect",
}
"""Looked at by hand: why what the pattern does not allow may be used all the same."""

OWN = "metricgold"


def statement(package: metadata.PackageMetadata) -> str:
    """What a package says of its licence, in a line; '' if nothing."""
    if expression := package.get("License-Expression"):
        return str(expression)
    classifiers = [c for c in package.get_all("Classifier") or [] if c.startswith("License ::")]
    if names := [c.split("::")[-1].strip() for c in classifiers if c.count("::") > 1]:
        return "; ".join(names)
    lines = [line.strip() for line in str(package.get("License") or "").splitlines()]
    return next((line for line in lines if line), "")[:80]


def problem(name: str, licence: str) -> str | None:
    """What is wrong with a package's licence; None if it may be used."""
    if name in REVIEWED:
        return None
    if FORBIDDEN.search(licence):
        return f"{name}: {licence}: not allowed"
    if not licence:
        return f"{name}: says nothing of its licence; look it up, then add it to REVIEWED"
    if not ALLOWED.search(licence):
        return f"{name}: {licence}: not known; look at it, then add it to ALLOWED or REVIEWED"
    return None


def report(packages: Iterable[metadata.PackageMetadata]) -> tuple[list[str], list[str]]:
    """A line for each licence with its packages, and what is wrong."""
    by_licence: dict[str, list[str]] = {}
    problems = []
    for package in packages:
        name = str(package["Name"])
        licence = statement(package)
        by_licence.setdefault(REVIEWED.get(name, licence or "?"), []).append(name)
        if name != OWN and (found := problem(name, licence)):
            problems.append(found)
    lines = [f"{licence}: {', '.join(sorted(names))}" for licence, names in by_licence.items()]
    return sorted(lines, key=str.lower), sorted(problems)


def main() -> int:
    """Print both."""
    packages = {str(d.metadata["Name"]): d.metadata for d in metadata.distributions()}
    lines, problems = report(packages.values())
    print("\n".join(lines))
    print(f"{len(packages)} packages, {len(problems)} with a licence to be looked at")
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
