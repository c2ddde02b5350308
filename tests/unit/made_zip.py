"""Zips made on the spot, for the tests of transfers and downloads."""

from __future__ import annotations

import zipfile
from pathlib import Path


def made_zip(path: Path, members: dict[str, bytes]) -> Path:
    """A zip of ``members`` (name to bytes) at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path
