"""DVC's YAML files appear whole or not at all: DVC writes them in place, piece by piece.

Writing ``dvc.lock`` takes some tenths of a second, and whoever ends DVC then (a cancelled run, a
time limit) would leave a file that no DVC can read.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from metricgold import files


def write_whole() -> None:
    """Have the DVC of this process write its YAML files of this machine by a rename."""
    from dvc.fs import LocalFileSystem
    from dvc.utils.serialize import _common, _yaml

    in_place = _common._dump_data

    def dump(path: Any, data: Any, dumper: Any, fs: Any = None, **options: Any) -> None:
        if fs is not None and not isinstance(fs, LocalFileSystem):
            in_place(path, data, dumper, fs, **options)
            return
        text = io.StringIO()
        dumper(data, text, **options)
        files.write_text(Path(os.path.realpath(path)), text.getvalue())

    for module in (_common, _yaml):
        module._dump_data = dump
