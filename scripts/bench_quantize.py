"""What 8 bits cost and gain: each precision of export.quantize, on a run's held-out frames.

Usage: ``python scripts/bench_quantize.py [--onnx FOLDER] [--frames N] [--out FILE]`` in the
repository root, after ``dvc repro``. Accuracy beside the fp32 graphs' on the same frames, file
sizes, and speed on this CPU with the two taking turns, medians.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from _header import header

from export.quantised import describe
from export.quantised_graphs import FLOAT_LAYERS
from export.quantize import CALIBRATION_FRAMES, quantize
from export.specs import QUANTISED
from metricgold import files
from metricgold.config import load_config
from metricgold.workspace import Workspace


def main() -> None:
    """Measure everything and write it down."""
    ws = Workspace()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, default=ws.onnx, help="fp32 graphs (%(default)s)")
    parser.add_argument("--calibration-frames", type=int, default=CALIBRATION_FRAMES)
    parser.add_argument("--frames", type=int, help="held-out frames of each dataset")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/quantization.json"))
    options = parser.parse_args()
    config = load_config()
    if options.frames:
        export = config.export.model_copy(update={"parity_frames": options.frames})
        config = config.model_copy(update={"export": export})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for precision in QUANTISED:
            out = Path(scratch) / precision.value
            row = quantize(options.onnx, out, precision, config, ws, options.calibration_frames)
            print(describe(row), flush=True)
            rows.append({k: v for k, v in row.items() if k != "float_layers"})
    result = {**header(torch.device("cpu")), "float_layers": FLOAT_LAYERS, "precisions": rows}
    files.write_json(options.out, result)


if __name__ == "__main__":
    main()
