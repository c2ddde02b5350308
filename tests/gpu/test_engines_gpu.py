"""On a machine with a GPU: engines are built and run as on the CPU, from graphs, without leaks.

None of these tests has run yet: no machine with a GPU was at hand. Their logic runs on stand-ins
in ``tests/unit/test_engine_execution.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export import trt_infer
from export.build_engine import build_engines
from export.components import example_inputs
from export.driver import cuda_driver_problem, load_driver
from export.engine_manifest import read_engine_manifest, read_sidecar
from export.manifest import BackendUnavailableError, read_manifest
from export.numpy_sampler import combine
from export.onnx_export import export_checkpoint
from export.runtime import open_session
from export.specs import COMPONENTS, UNET_STEP, VAE_ENCODER
from export.trt_library import LIBRARIES, gpu_capability
from export.trt_runtime import EngineBackend
from metricgold.config import ExportConfig, load_config
from metricgold.random_weights import random_toy_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_driver_problem() is not None, reason=str(cuda_driver_problem())),
]
ROOT = Path(__file__).parents[2]
SIZE = (64, 96)


@pytest.fixture(scope="module")
def config() -> ExportConfig:
    return load_config(ROOT / "params.yaml", "demo").export


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory, config: ExportConfig) -> Path:
    toy = load_config(ROOT / "params.yaml", "demo").base_model.toy
    assert toy is not None
    folder = tmp_path_factory.mktemp("gpu")
    random_toy_pipeline(toy, default_processing_resolution=96).save_pretrained(folder / "model")
    export_checkpoint(folder / "model", folder / "onnx", config)
    return folder / "onnx"


Engines = Callable[[str], Path]


@pytest.fixture(scope="module")
def engines(onnx: Path, tmp_path_factory: pytest.TempPathFactory, config: ExportConfig) -> Engines:
    """Builds the engines of a library once, or skips and says why."""
    built: dict[str, Path] = {}

    def of(name: str) -> Path:
        library = LIBRARIES[name]
        try:
            library.load_for_running()
        except BackendUnavailableError as reason:
            pytest.skip(str(reason))
        if gpu_capability() not in library.target_capabilities():
            pytest.skip(f"{name} builds nothing for compute capability {gpu_capability()}")
        if name not in built:
            built[name] = tmp_path_factory.mktemp(name) / "engines"
            build_engines(onnx, built[name], config, [name])
        return built[name]

    return of


def backend(name: str, onnx: Path, engines: Engines, **options: Any) -> EngineBackend:
    graphs = read_manifest(onnx).components
    return EngineBackend(LIBRARIES[name], engines(name), graphs, **options)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", [*LIBRARIES, "onnxruntime-cuda"])
@pytest.mark.parametrize("steps", [1, 4])
def test_gpu_depth_equals_cpu_depth(
    onnx: Path, tmp_path: Path, engines: Engines, name: str, steps: int
) -> None:
    try:
        folder = engines(name) if name in LIBRARIES else tmp_path
        session = open_session(onnx, name, engines=folder)
    except BackendUnavailableError as reason:
        pytest.skip(str(reason))
    expected = open_session(onnx, "onnxruntime-cpu").infer(picture(), steps=steps, fov_deg=55.0)
    actual = session.infer(picture(), steps=steps, fov_deg=55.0)
    assert actual.backend == name
    # A GPU may multiply fp32 matrices in TF32, hence the median pixel rather than the worst.
    assert float(np.median(np.abs(actual.depth / expected.depth - 1))) < 1e-2


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("component", COMPONENTS)
def test_each_engine_equals_its_graph(
    onnx: Path, engines: Engines, name: str, component: str
) -> None:
    manifest = read_manifest(onnx)
    inputs = {
        n: t.numpy()
        for n, t in example_inputs(COMPONENTS[component], SIZE, manifest.grid, batch=1).items()
    }
    expected = open_session(onnx, "onnxruntime-cpu").backend.run(component, inputs)
    actual = backend(name, onnx, engines).run(component, inputs)
    assert np.abs(actual - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_samplers_update_is_numpys(onnx: Path, engines: Engines, name: str) -> None:
    shape = (1, read_manifest(onnx).latent_channels, 8, 12)
    latent, velocity = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    opened = backend(name, onnx, engines)
    actual = opened.to_host(opened.combine(latent, velocity, 0.25, -0.75))
    np.testing.assert_allclose(actual, combine(latent, velocity, 0.25, -0.75), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_replayed_graph_gives_what_was_enqueued(onnx: Path, engines: Engines, name: str) -> None:
    plain = backend(name, onnx, engines, cuda_graphs=False)
    graphs = backend(name, onnx, engines)
    for seed in range(4):
        rgb = np.random.default_rng(seed).uniform(-1, 1, (1, 3, *SIZE)).astype(np.float32)
        expected = plain.run(VAE_ENCODER.name, {"rgb": rgb})
        np.testing.assert_array_equal(graphs.run(VAE_ENCODER.name, {"rgb": rgb}), expected)
    (bound,) = graphs._bound[VAE_ENCODER.name].values()
    assert any(graph is not None for graph in bound._met.values()), "nothing was captured"


@pytest.mark.parametrize("name", LIBRARIES)
def test_memory_is_flat_over_200_pictures(onnx: Path, engines: Engines, name: str) -> None:
    session = open_session(onnx, name, engines=engines(name))
    for number in range(10):
        session.infer(picture(number), steps=2)
    before = free_bytes()
    for number in range(200):
        session.infer(picture(number), steps=2)
    assert before - free_bytes() < 2**20


def free_bytes() -> int:
    """Of the GPU's memory; others that use it must keep still meanwhile."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver: Any = load_driver()
    assert driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    return free.value


@pytest.mark.parametrize("name", LIBRARIES)
def test_torchs_tensors_are_used_where_they_are(onnx: Path, engines: Engines, name: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")
    opened = backend(name, onnx, engines)
    channels = read_manifest(onnx).latent_channels
    output = torch.empty((1, channels, 8, 12), device="cuda")
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        rgb = torch.rand((1, 3, *SIZE), generator=generator, device="cuda") * 2 - 1
        found = opened.run_resident(VAE_ENCODER.name, {"rgb": rgb}, output=output)
        assert found.address == output.data_ptr()
        expected = opened.run(VAE_ENCODER.name, {"rgb": rgb.cpu().numpy()})
        np.testing.assert_array_equal(output.cpu().numpy(), expected)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_inspector_counts_the_engines_layers(engines: Engines, name: str) -> None:
    folder = engines(name)
    entry = read_engine_manifest(folder).builds[name].engines[UNET_STEP.name]
    audit = read_sidecar(folder, entry).audit
    assert "engine_not_inspected" not in audit
    assert sum(sum(by_type.values()) for by_type in audit["engine_layers"].values()) > 1


@pytest.mark.parametrize("name", LIBRARIES)
def test_streamed_weights_give_the_same_depth(
    onnx: Path, engines: Engines, name: str, tmp_path: Path, config: ExportConfig
) -> None:
    expected = open_session(onnx, name, engines=engines(name)).infer(picture()).depth
    asked = config.model_dump() | {"engines": {"weight_streaming": True}}
    build_engines(onnx, tmp_path / "engines", ExportConfig.model_validate(asked), [name])
    session = open_session(onnx, name, engines=tmp_path / "engines", weight_streaming_mib=0.1)
    np.testing.assert_allclose(session.infer(picture()).depth, expected, rtol=1e-2)


@pytest.mark.parametrize("name", LIBRARIES)
def test_latency_is_told_stage_by_stage(
    onnx: Path, engines: Engines, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture()).save(tmp_path / "picture.png")
    arguments = [str(tmp_path / "picture.png"), "--model", str(onnx), "--engines"]
    arguments += [str(engines(name)), "--backend", name, "--benchmark", "20"]
    assert trt_infer.main(arguments) == 0
    told = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{told}")
    assert all(stage in told for stage in ("encode", "denoise", "decode", "images/s"))
