"""Where a run can be watched: DVCLive, TensorBoard, Weights & Biases, MLflow, by Accelerate."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from metricgold import files
from metricgold.config import TrackingConfig
from metricgold.errors import UserError

_PACKAGES = {
    "dvclive": "dvclive",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def check_trackers(names: tuple[str, ...]) -> None:
    """Every tracker that is asked for can be imported.

    Raises:
        UserError: one cannot; the message says what to install.
    """
    for name in names:
        if not installed(name):
            raise UserError(
                f"tracking.trackers names '{name}', which is not installed; run 'pip install "
                f"{_PACKAGES[name]}' or take it out of params.yaml"
            )


def installed(name: str) -> bool:
    """Whether a tracker's package is there; a folder of its name (W&B leaves one) is none."""
    spec = importlib.util.find_spec(_PACKAGES[name])
    return spec is not None and spec.origin is not None


def folder_of(config: TrackingConfig, stage: str) -> Path:
    """Where a stage's files go."""
    return Path(config.folder) / re.sub(r"\W+", "_", stage).strip("_")


def start(
    accelerator: Accelerator, config: TrackingConfig, stage: str, params: dict[str, Any]
) -> None:
    """Open the trackers of an accelerator that was made with them; see :func:`folder_of`."""
    folder = folder_of(config, stage)
    check_trackers(config.trackers)
    folder.mkdir(parents=True, exist_ok=True)
    _mend(folder)
    accelerator.init_trackers(
        "metricgold",
        _flat(params),
        {
            "dvclive": {
                "dir": str(folder),
                "resume": (folder / "metrics.json").is_file(),
                "save_dvc_exp": False,
                "dvcyaml": None,
                "report": None,
            },
            "wandb": {"name": stage, "group": "metricgold", "dir": str(folder)},
            "mlflow": {"run_name": stage},
        },
    )


def _mend(folder: Path) -> None:
    """Put right what a killed process left half-written of DVCLive's, which writes in place.

    What is lost is shown again with the next step that is told.
    """
    metrics, params = folder / "metrics.json", folder / "params.yaml"
    with suppress(FileNotFoundError):
        try:
            json.loads(metrics.read_text(encoding="utf-8"))
        except ValueError:
            files.write_json(metrics, {})
    with suppress(FileNotFoundError):
        try:
            whole = isinstance(yaml.safe_load(params.read_text(encoding="utf-8")), dict)
        except (ValueError, yaml.YAMLError):
            whole = False
        if not whole:
            params.unlink()
    for points in folder.glob("plots/metrics/**/*.tsv"):
        whole_lines = points.read_bytes().rpartition(b"\n")
        os.truncate(points, sum(map(len, whole_lines[:2])))
        if not points.stat().st_size:
            points.unlink()


def _flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested params with dotted names; what is not a scalar as text."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            simple = isinstance(value, bool | int | float | str)
            flat[prefix + name] = value if simple else str(value)
    return flat
