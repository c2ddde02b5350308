"""What ``make run`` ends with: the figures, where things are, and one example inference.

Reads files only and imports neither torch nor DVC, so that it takes no time when nothing is new.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from metricgold import files
from metricgold.config import DATASET_NAMES
from metricgold.errors import UserError, run_cli
from metricgold.evaluation.summary import summary_table
from metricgold.workspace import Workspace


def example_arguments(workspace: Workspace) -> list[str] | None:
    """A held-out picture that the evaluation wrote and its field of view, for ``trt_infer``."""
    for name in DATASET_NAMES:
        listing = workspace.predictions / name / "examples.json"
        if listing.is_file() and (entries := json.loads(listing.read_text(encoding="utf-8"))):
            first = entries[0]
            return [str(listing.with_name(first["file"])), "--fov-deg", str(first["fov_y_deg"])]
    return None


def example_inference(workspace: Workspace, arguments: list[str]) -> str:
    """Depth of a picture by the exported model; what it printed, from memory if unchanged."""
    folder = workspace.scratch("example")
    digest = hashlib.sha256(" ".join(arguments).encode() + Path(arguments[0]).read_bytes())
    digest.update((workspace.onnx / "manifest.json").read_bytes())
    memory = folder / "output.json"
    if memory.is_file():
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["inputs"] == digest.hexdigest():
            return str(known["output"])
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "export.trt_infer",
        *arguments,
        "--out",
        str(folder),
        "--force",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"example inference on {arguments[0]} failed; what it printed is above")
    files.write_json(memory, {"inputs": digest.hexdigest(), "output": done.stdout})
    return done.stdout


def main() -> None:
    """Print it all."""
    workspace = Workspace()
    print("\nHeld-out scenes, metric depth, no alignment\n")
    print(summary_table(workspace))
    print(f"\nreport  {workspace.report / 'index.html'}")
    print(f"model   {workspace.model} (torch), {workspace.onnx} (ONNX), {workspace.engines}")
    if arguments := example_arguments(workspace):
        print(f"\npython -m export.trt_infer {' '.join(arguments)}")
        print(example_inference(workspace, arguments).rstrip(), flush=True)


if __name__ == "__main__":
    run_cli(main)
