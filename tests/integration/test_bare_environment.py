"""The package from an index with nothing but ONNX Runtime: a picture to metres, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.onnx_export import export_checkpoint
from export.runtime import open_session
from metricgold.config import ExportConfig, load_config
from metricgold.random_weights import random_toy_pipeline

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
NEEDED = {"metricgold", "numpy", "pillow", "tqdm", "onnxruntime"}
OF_ONNXRUNTIME = {"coloredlogs", "humanfriendly", "flatbuffers", "packaging", "protobuf", "sympy",
                  "mpmath"}  # fmt: skip
RGB = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of the smallest model there is, exported by this environment."""
    toy = load_config(ROOT / "params.yaml", "smoke").base_model.toy
    assert toy is not None
    folder = tmp_path_factory.mktemp("bare")
    random_toy_pipeline(toy, default_processing_resolution=64).save_pretrained(folder / "model")
    config = ExportConfig.model_validate(
        {"opset": 23, "precision": "fp32", "dynamic": True, "parity_sizes": [(32, 64)],
         "engine_size": (32, 64)}
    )  # fmt: skip
    export_checkpoint(folder / "model", folder / "onnx", config)
    return folder / "onnx"


def call(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Without this environment's paths, in a folder outside the repository."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=folder, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.timeout(900)
def test_the_extra_cpu_is_all_that_a_picture_needs(onnx: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    empty = size_mib(tmp_path / "venv")
    call(python, "-m", "pip", "install", "--quiet", f"{ROOT}[cpu]", folder=tmp_path)
    listed = call(python, "-m", "pip", "list", "--format", "json", folder=tmp_path).stdout
    installed = {package["name"].lower() for package in json.loads(listed)}
    assert installed >= NEEDED
    assert installed - NEEDED - {"pip", "setuptools"} <= OF_ONNXRUNTIME
    print(f"the environment takes {size_mib(tmp_path / 'venv') - empty:.0f} MiB beside pip")
    Image.fromarray(RGB).save(tmp_path / "picture.png")
    command = [python, "-m", "export.trt_infer", "picture.png", "--model", onnx, "--fov-deg", "50"]
    said = call(*command, "--backend", "onnxruntime-cpu", folder=tmp_path).stdout
    assert "onnxruntime-cpu, worked at" in said
    found = np.load(tmp_path / "outputs" / "picture_depth.npy")
    expected = open_session(onnx, "onnxruntime-cpu").infer(RGB, fov_deg=50.0).depth
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    done = subprocess.run(
        [python, "-m", "metricgold", "info"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: the command metricgold needs typer; install")


def size_mib(folder: Path) -> float:
    """Of all files below."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
