"""What the graphs meet on real frames: the range of every activation that is to be quantised."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from export.accuracy import session_predictor
from export.backends import Arrays, Backend
from export.manifest import GraphFile
from export.quantised_graphs import LAYER_TYPES
from export.runtime import DepthSession
from metricgold.data.sample import Frame
from metricgold.progress import progress_bar

Reading = dict[str, NDArray[Any]]
METHOD = "largest magnitude met"


class RecordingBackend:
    """Another back-end whose inputs are kept, by graph."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name, self.max_batch = backend.name, backend.max_batch
        self.readings: dict[str, list[Reading]] = {}

    def run(self, component: str, inputs: Arrays) -> NDArray[np.float32]:
        """Output of a graph."""
        self.readings.setdefault(component, []).append({k: np.array(v) for k, v in inputs.items()})
        return self.backend.run(component, inputs)


def record(session: DepthSession, frames: Sequence[tuple[Frame, int]]) -> dict[str, list[Reading]]:
    """Inputs of every graph when the session predicts frames, each at a long side in pixels.

    The encoder's are pictures, the U-Net's what the encoder made of them, the decoder's what the
    U-Net made of that.
    """
    recorder = RecordingBackend(session.backend)
    recorded = DepthSession(session.manifest, recorder)
    for frame, resolution in progress_bar(frames, description="calibrate", unit="frame"):
        session_predictor(recorded, resolution)(frame)
    return recorder.readings


def activation_ranges(
    folder: Path, graph: GraphFile, readings: Sequence[Reading]
) -> dict[str, float]:
    """Largest magnitude of every input and output of a layer with weights, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in graph.files:  # the calibrator writes beside the graph it reads
            shutil.copy(folder / name, scratch)
        calibrator = create_calibrator(
            Path(scratch) / graph.onnx_file,
            LAYER_TYPES,
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=len(graph.files) > 1,
            extra_options={"symmetric": True},
        )
        calibrator.collect_data(_Reader(readings))
        found = calibrator.compute_data()
    return {name: float(np.max(data.range_value[1])) for name, data in found.items()}


class _Reader(CalibrationDataReader):
    def __init__(self, readings: Sequence[Reading]) -> None:
        self._rest: Iterator[Reading] = iter(readings)

    def get_next(self) -> Reading | None:
        """The next inputs; None at the end."""
        return next(self._rest, None)
