"""Engines on stand-ins for driver and library: right bytes, no detours, graphs, flat memory."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engines import write_engines
from fake_gpu import (
    RTX,
    TENSORRT_10,
    TENSORRT_11,
    FakeDriver,
    FakeEngine,
    Flavour,
    ForeignArray,
    fake_library,
)

from export import cuda_memory, trt_library, trt_runtime
from export.device_array import DeviceArray
from export.manifest import BackendUnavailableError, ExportError, read_manifest
from export.runtime import DepthSession, open_session
from export.specs import COMPONENTS, DDIM_UPDATE, UNET_STEP, VAE_ENCODER
from export.trt_library import LIBRARIES, TrtLibrary
from export.trt_runtime import MOST_SHAPES, EngineBackend
from metricgold.config import ExportConfig
from metricgold.workspace import Workspace

SIZE = (16, 24)
FLAVOURS = {"tensorrt-10": TENSORRT_10, "tensorrt-11": TENSORRT_11, "tensorrt-rtx": RTX}


class Machine:
    """A machine with a GPU: its driver, and the engines that were loaded on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flavour: Flavour = RTX) -> None:
        self.driver = FakeDriver()
        self.library = fake_library(self.driver, flavour)
        monkeypatch.setattr(trt_library, "cuda_driver_problem", lambda: None)
        monkeypatch.setattr(cuda_memory, "load_driver", lambda: self.driver)
        monkeypatch.setattr(trt_runtime, "gpu_capability", lambda: "8.9")
        monkeypatch.setattr(TrtLibrary, "load", lambda _: self.library)

    @property
    def engines(self) -> list[FakeEngine]:
        return self.library.engines

    def trace(self) -> list[str]:
        """What has been done since the last call."""
        assert self.driver.problems == []
        done, self.driver.trace = self.driver.trace, []
        return done


def open_backend(
    monkeypatch: pytest.MonkeyPatch,
    exported: Workspace,
    engines: Path,
    flavour: Flavour = RTX,
    **options: Any,
) -> tuple[EngineBackend, Machine]:
    machine = Machine(monkeypatch, flavour)
    library = LIBRARIES["tensorrt-rtx"]
    graphs = read_manifest(exported.onnx).components
    return EngineBackend(library, engines, graphs, **options), machine


@pytest.fixture
def engines(exported: Workspace, tmp_path: Path, export_config: ExportConfig) -> Path:
    return write_engines(tmp_path / "engines", exported.onnx, export_config)


@pytest.fixture
def opened(
    monkeypatch: pytest.MonkeyPatch, exported: Workspace, engines: Path
) -> tuple[DepthSession, Machine]:
    machine = Machine(monkeypatch)
    return open_session(exported.onnx, "tensorrt-rtx", engines=engines), machine


@pytest.fixture(scope="module")
def reference(exported: Workspace) -> DepthSession:
    return open_session(exported.onnx, "onnxruntime-cpu")


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_depth_is_that_of_the_graphs(
    monkeypatch: pytest.MonkeyPatch,
    exported: Workspace,
    engines: Path,
    reference: DepthSession,
    flavour: Flavour,
) -> None:
    machine = Machine(monkeypatch, flavour)
    session = open_session(exported.onnx, "tensorrt-rtx", engines=engines)
    for size in ((16, 24), (24, 16), (16, 16)):
        for seed in range(3):  # enqueued, captured, replayed
            rgb = picture(seed, size)
            expected = reference.infer(rgb, fov_deg=50, steps=2, seed=4)
            actual = session.infer(rgb, fov_deg=50, steps=2, seed=4)
            assert actual.backend == "tensorrt-rtx"
            np.testing.assert_array_equal(actual.depth, expected.depth)
    assert machine.driver.problems == []


def test_an_ensemble_is_that_of_the_graphs(
    opened: tuple[DepthSession, Machine], reference: DepthSession
) -> None:
    """Two encoded pictures of one size are alive at the same time."""
    session, _ = opened
    for _ in range(3):
        expected = reference.infer(picture(), fov_deg=50, ensemble_size=2)
        actual = session.infer(picture(), fov_deg=50, ensemble_size=2)
        np.testing.assert_array_equal(actual.depth, expected.depth)
        np.testing.assert_array_equal(actual.uncertainty, expected.uncertainty)


@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_leaves_the_gpu_between_the_engines(
    opened: tuple[DepthSession, Machine], steps: int
) -> None:
    session, machine = opened
    for _ in range(5):
        machine.trace()
        session.infer(picture(), fov_deg=50, steps=steps)
    trace = [name.removeprefix("replayed ") for name in machine.trace()]
    between = [UNET_STEP.name, DDIM_UPDATE.name] * steps
    rgb, depth = 4 * 3 * 16 * 24, 4 * 16 * 24
    own = [name for name in trace if not name.startswith("upload") or name == f"upload {rgb}"]
    assert own == [
        f"upload {rgb}",
        VAE_ENCODER.name,
        *between,
        "depth_decoder",
        f"download {depth}",
    ]
    assert machine.driver.calls["cuStreamSynchronize"] == 5, "the host waits once a picture"


def test_a_graph_is_captured_once_and_replayed(opened: tuple[DepthSession, Machine]) -> None:
    session, machine = opened
    runs = []
    for _ in range(6):
        session.infer(picture(), fov_deg=50, steps=1)
        runs.append([n for n in machine.trace() if not n.startswith(("upload", "download"))])
    names = [*COMPONENTS]
    names.insert(2, DDIM_UPDATE.name)
    assert runs[0] == names
    assert runs[-1] == [f"replayed {name}" for name in names]
    captures = machine.driver.calls["cuStreamBeginCapture_v2"]
    session.infer(picture(1), fov_deg=50, steps=1)
    assert machine.driver.calls["cuStreamBeginCapture_v2"] == captures, "settled"
    assert machine.driver.calls["cuGraphDestroy"] == captures, "only what runs is kept"


def test_graphs_are_replayed_only_for_their_own_shapes(
    opened: tuple[DepthSession, Machine], reference: DepthSession
) -> None:
    session, machine = opened
    sizes = ((16, 24), (24, 16), (16, 16))
    for number in range(18):
        rgb = picture(number, sizes[number % 3])
        expected = reference.infer(rgb, fov_deg=50, seed=number)
        np.testing.assert_array_equal(
            session.infer(rgb, fov_deg=50, seed=number).depth, expected.depth
        )
    assert any(name.startswith("replayed") for name in machine.trace())
    assert [engine.contexts for engine in machine.engines] == [3, 3, 3, 3], "one for each size"


def test_without_graphs_nothing_is_captured(
    monkeypatch: pytest.MonkeyPatch, exported: Workspace, engines: Path
) -> None:
    backend, machine = open_backend(monkeypatch, exported, engines, cuda_graphs=False)
    rgb = np.zeros((1, 3, *SIZE), np.float32)
    for _ in range(3):
        backend.run(VAE_ENCODER.name, {"rgb": rgb})
    assert "cuStreamBeginCapture_v2" not in machine.driver.calls


@pytest.mark.parametrize("flavour", [TENSORRT_11, RTX], ids=["found out", "told"])
def test_an_engine_that_cannot_be_captured_runs_without(
    monkeypatch: pytest.MonkeyPatch,
    exported: Workspace,
    tmp_path: Path,
    export_config: ExportConfig,
    flavour: Flavour,
    reference: DepthSession,
) -> None:
    engines = write_engines(tmp_path / "e", exported.onnx, export_config, capturable=False)
    machine = Machine(monkeypatch, flavour)
    session = open_session(exported.onnx, "tensorrt-rtx", engines=engines)
    expected = reference.infer(picture()).depth
    for _ in range(4):
        np.testing.assert_array_equal(session.infer(picture()).depth, expected)
    assert not any(name.startswith("replayed") for name in machine.trace())
    tried = machine.driver.calls.get("cuStreamBeginCapture_v2", 0)
    assert tried == (0 if flavour.rtx else 4), "once for each engine"
    assert machine.driver.graphs == machine.driver.runnable == {}


def test_memory_is_flat_over_many_pictures(opened: tuple[DepthSession, Machine]) -> None:
    session, machine = opened

    def held() -> tuple[int, int, int]:
        gc.collect()
        driver = machine.driver
        return driver.device_bytes(), len(driver.pinned), len(driver.runnable)

    for number in range(6):
        session.infer(picture(number), fov_deg=50, steps=2)
    settled = held()
    for number in range(200):
        session.infer(picture(number), fov_deg=50, steps=2)
    assert held() == settled


def test_memory_is_bounded_over_many_sizes(
    monkeypatch: pytest.MonkeyPatch, exported: Workspace, engines: Path
) -> None:
    """Each size of its own; what the last few do not need is given back."""
    monkeypatch.setattr(cuda_memory, "KEPT_BYTES", 20_000)
    backend, machine = open_backend(monkeypatch, exported, engines)
    sizes = [(h, w) for h in (8, 12, 16, 20, 24) for w in (8, 12, 16, 20, 24)]
    most = 0
    for size in sizes * 2:
        backend.run(VAE_ENCODER.name, {"rgb": np.zeros((1, 3, *size), np.float32)})
        most = max(most, machine.driver.device_bytes())
    assert most < 60_000
    assert len(backend._bound[VAE_ENCODER.name]) == MOST_SHAPES


def test_closing_gives_everything_back(opened: tuple[DepthSession, Machine]) -> None:
    session, machine = opened
    for _ in range(4):
        session.infer(picture(), steps=2)
    assert machine.driver.memory
    session.close()
    gc.collect()
    driver = machine.driver
    assert driver.memory == driver.pinned == driver.runnable == driver.graphs == {}
    assert list(driver.streams) == [0]
    assert driver.events == {}
    assert driver.problems == []
    session.close()  # once more does nothing


def test_threads_take_turns(opened: tuple[DepthSession, Machine], reference: DepthSession) -> None:
    session, machine = opened
    sizes = ((16, 24), (24, 16), (16, 16), (16, 24))
    expected = [reference.infer(picture(i, s), fov_deg=50).depth for i, s in enumerate(sizes)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            found = session.infer(picture(index, sizes[index]), fov_deg=50).depth
            if not np.array_equal(found, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert machine.driver.problems == []


def test_arrays_of_another_library_are_used_where_they_are(
    monkeypatch: pytest.MonkeyPatch, exported: Workspace, engines: Path, reference: DepthSession
) -> None:
    backend, machine = open_backend(monkeypatch, exported, engines)
    rng = np.random.default_rng(0)
    output = ForeignArray(machine.driver, np.zeros((1, 4, 8, 12), np.float32))
    for _ in range(4):
        rgb = rng.uniform(-1, 1, (1, 3, *SIZE)).astype(np.float32)
        given = ForeignArray(machine.driver, rgb)  # its content is still to be written
        found = backend.run_resident(VAE_ENCODER.name, {"rgb": given}, output=output)
        assert found.address == output.address
        expected = reference.backend.run(VAE_ENCODER.name, {"rgb": rgb})
        # Read on their stream without waiting for ours: it has to be ordered by the back-end.
        np.testing.assert_array_equal(output.numpy(), expected)
    assert not [n for n in machine.trace() if "load" in n], "nothing was copied"


def test_a_bare_address_will_do(
    monkeypatch: pytest.MonkeyPatch, exported: Workspace, engines: Path, reference: DepthSession
) -> None:
    backend, machine = open_backend(monkeypatch, exported, engines)
    rgb = np.random.default_rng(1).uniform(-1, 1, (1, 3, *SIZE)).astype(np.float32)
    theirs = ForeignArray(machine.driver, rgb)
    value = backend.run_resident(
        VAE_ENCODER.name, {"rgb": DeviceArray(theirs.address, (1, 3, *SIZE))}
    )
    expected = reference.backend.run(VAE_ENCODER.name, {"rgb": rgb})
    np.testing.assert_array_equal(backend.to_host(value), expected)
    assert value.__cuda_array_interface__["data"] == (value.address, False)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((1, 3, 16, 24)), "rgb must be float32 of any x any x any x any, got float64"),
        (np.zeros((3, 16, 24), np.float32), "got float32 of 3 x 16 x 24"),
        (np.zeros((1, 3, 16, 64), np.float32), "lies outside the engine's range"),
    ],
)
def test_unfit_arrays_are_refused(
    monkeypatch: pytest.MonkeyPatch, exported: Workspace, engines: Path, array: Any, told: str
) -> None:
    backend, machine = open_backend(monkeypatch, exported, engines)
    with pytest.raises(ExportError, match=told):
        backend.run_resident(VAE_ENCODER.name, {"rgb": ForeignArray(machine.driver, array)})
    short = ForeignArray(machine.driver, np.zeros((1, 4, 8, 11), np.float32))
    rgb = np.zeros((1, 3, *SIZE), np.float32)
    with pytest.raises(ExportError, match="output must be float32 of 1 x 4 x 8 x 12"):
        backend.run_resident(VAE_ENCODER.name, {"rgb": rgb}, output=short)


def test_a_size_outside_the_profile_is_refused(opened: tuple[DepthSession, Machine]) -> None:
    session, _ = opened
    with pytest.raises(ExportError, match=r"rgb of shape \[1, 3, 64, 64\] lies outside"):
        session.infer(np.zeros((64, 64, 3), np.uint8), processing_resolution=64)
    assert session.infer(picture()).size == SIZE, "and the next is served"


def test_a_second_profile_serves_another_range(
    monkeypatch: pytest.MonkeyPatch,
    exported: Workspace,
    tmp_path: Path,
    export_config: ExportConfig,
    reference: DepthSession,
) -> None:
    profiles = [
        {"min": [16, 16], "opt": [16, 24], "max": [24, 24]},
        {"min": [8, 32], "opt": [8, 40], "max": [8, 48], "batch": [1, 1, 2]},
    ]
    config = ExportConfig.model_validate(
        export_config.model_dump() | {"engines": {"profiles": profiles}}
    )
    engines = write_engines(tmp_path / "e", exported.onnx, config)
    machine = Machine(monkeypatch)
    session = open_session(exported.onnx, "tensorrt-rtx", engines=engines)
    for size in (SIZE, (8, 40)):
        expected = reference.infer(picture(0, size), processing_resolution=0)
        actual = session.infer(picture(0, size), processing_resolution=0)
        np.testing.assert_array_equal(actual.depth, expected.depth)
    assert machine.driver.problems == []
    with pytest.raises(ExportError, match="lies outside the engine's range"):
        session.infer(picture(0, (8, 24)), processing_resolution=0)


def test_an_engine_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch,
    exported: Workspace,
    tmp_path: Path,
    export_config: ExportConfig,
) -> None:
    engines = write_engines(tmp_path / "e", exported.onnx, export_config, fails=True)
    backend, _ = open_backend(monkeypatch, exported, engines)
    told = "engine vae_encoder failed to execute: no reason given"
    with pytest.raises(BackendUnavailableError, match=told):
        backend.run(VAE_ENCODER.name, {"rgb": np.zeros((1, 3, *SIZE), np.float32)})


def test_an_engine_the_library_holds_for_invalid_here_is_named(
    monkeypatch: pytest.MonkeyPatch,
    exported: Workspace,
    tmp_path: Path,
    export_config: ExportConfig,
) -> None:
    engines = write_engines(tmp_path / "e", exported.onnx, export_config, valid=False)
    told = r"engine vae_encoder is not valid on this machine \(\['UNSUPPORTED_CC'\]\)"
    with pytest.raises(BackendUnavailableError, match=told):
        open_backend(monkeypatch, exported, engines)


def test_a_plan_the_library_refuses_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, exported: Workspace, engines: Path
) -> None:
    machine = Machine(monkeypatch, TENSORRT_11)
    read = Path.read_bytes
    damaged = "depth_decoder.engine"
    monkeypatch.setattr(Path, "read_bytes", lambda p: b"{" if p.name == damaged else read(p))
    graphs = read_manifest(exported.onnx).components
    told = "engine depth_decoder cannot be loaded: the plan is damaged"
    with pytest.raises(BackendUnavailableError, match=told):
        EngineBackend(LIBRARIES["tensorrt-rtx"], engines, graphs)
    assert machine.driver.memory == {}
    assert list(machine.driver.streams) == [0]


@pytest.mark.parametrize("flavour", [TENSORRT_10, TENSORRT_11])
@pytest.mark.parametrize(("mib", "expected"), [(None, 2**20), (1.5, 1.5 * 2**20), (9, 2 * 2**20)])
def test_streamed_weights_get_their_budget(
    monkeypatch: pytest.MonkeyPatch,
    exported: Workspace,
    tmp_path: Path,
    export_config: ExportConfig,
    flavour: Flavour,
    mib: float | None,
    expected: float,
) -> None:
    engines = write_engines(tmp_path / "e", exported.onnx, export_config, streamable=2 * 2**20)
    _, machine = open_backend(monkeypatch, exported, engines, flavour, weight_streaming_mib=mib)
    name = "weight_streaming_budget" + ("" if flavour.old_names else "_v2")
    assert [getattr(engine, name) for engine in machine.engines] == [expected] * 4


def test_stand_ins_have_the_real_librarys_names() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra 'rtx') is not installed")
    context = (
        "set_input_shape set_tensor_address get_tensor_shape execute_async_v3 "
        "set_optimization_profile_async set_device_memory is_stream_capturable"
    )
    for name in context.split():
        assert hasattr(trt.IExecutionContext, name)
    engine = (
        "create_execution_context create_runtime_config device_memory_size_v2 num_io_tensors "
        "get_tensor_name streamable_weights_size weight_streaming_budget_v2 "
        "get_weight_streaming_automatic_budget create_engine_inspector"
    )
    for name in engine.split():
        assert hasattr(trt.ICudaEngine, name)
    for name in ("deserialize_cuda_engine", "get_engine_validity", "engine_host_code_allowed"):
        assert hasattr(trt.Runtime, name)
    config = (
        "set_execution_context_allocation_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    )
    for name in config:
        assert hasattr(trt.IRuntimeConfig, name)
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(trt.EngineValidity, "INVALID")
