"""What stages that write folders of files share: hashes, reading JSON, sizes in words."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from metricgold.data.archives import file_blocks
from metricgold.errors import UserError


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    for block in file_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file of an earlier stage.

    Raises:
        UserError: it is missing or damaged; the message names the stage that makes it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage '{made_by}' first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); run the stage '{made_by}' again") from None


def fresh_folder(path: Path) -> Path:
    """An empty folder at ``path``; what was there is deleted."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def human_bytes(count: int) -> str:
    """``1.5 GB`` and the like, in powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"
