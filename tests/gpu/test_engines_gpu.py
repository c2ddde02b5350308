"""On a machine with a GPU: engines are built, run, and agree with ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.build_engine import build_engines
from export.driver import cuda_driver_problem
from export.manifest import BackendUnavailableError
from export.onnx_export import export_checkpoint
from export.runtime import open_session
from export.trt_library import LIBRARIES, gpu_capability
from metricgold.config import load_config
from metricgold.random_weights import random_toy_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_driver_problem() is not None, reason=str(cuda_driver_problem())),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(ROOT / "params.yaml", "demo")
    toy = config.base_model.toy
    assert toy is not None
    folder = tmp_path_factory.mktemp("gpu")
    random_toy_pipeline(toy, default_processing_resolution=96).save_pretrained(folder / "model")
    export_checkpoint(folder / "model", folder / "onnx", config.export)
    return folder / "onnx"


@pytest.mark.parametrize("name", [*LIBRARIES, "onnxruntime-cuda"])
@pytest.mark.parametrize("steps", [1, 4])
def test_gpu_depth_equals_cpu_depth(onnx: Path, tmp_path: Path, name: str, steps: int) -> None:
    library = LIBRARIES.get(name)
    try:
        if library is not None:
            library.load_for_running()
            if gpu_capability() not in library.target_capabilities():
                pytest.skip(f"{name} builds nothing for compute capability {gpu_capability()}")
            build_engines(onnx, tmp_path / "engines", (64, 96), [name])
        session = open_session(onnx, name, engines=tmp_path / "engines")
    except BackendUnavailableError as reason:
        pytest.skip(str(reason))
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    expected = open_session(onnx, "onnxruntime-cpu").infer(rgb, steps=steps, fov_deg=55.0).depth
    actual = session.infer(rgb, steps=steps, fov_deg=55.0)
    assert actual.backend == name
    # A GPU may multiply fp32 matrices in TF32, hence the median pixel rather than the worst.
    assert float(np.median(np.abs(actual.depth / expected - 1))) < 1e-2
