"""Engines: really built by TensorRT-RTX where it is installed; recorded, refused, run rightly."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export import build_engine, cuda_memory, driver, trt_library, trt_runtime
from export.build_engine import EngineBuildError, build_engines
from export.engine_manifest import (
    EngineFile,
    EngineManifest,
    LibraryBuild,
    read_engine_manifest,
    shape_profile,
)
from export.manifest import (
    BackendUnavailableError,
    ExportError,
    read_manifest,
    sha256_of,
)
from export.runtime import DepthSession, open_session
from export.specs import COMPONENTS, GRAPHS, ONE_STEP, UNET_STEP, VAE_ENCODER, LatentGrid
from export.trt_library import TENSORRT_RTX, TrtLibrary
from metricgold.workspace import Workspace

SIZE = (16, 24)
NO_DRIVER = "no NVIDIA driver on this machine"


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "load_driver", lambda: NO_DRIVER)


@pytest.fixture(scope="module")
def rtx_engines(exported: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra 'rtx') is not installed")
    out = tmp_path_factory.mktemp("engines") / "engines"
    build_engines(exported.onnx, out, SIZE, ["tensorrt-rtx"])
    return out


def test_rtx_engines_are_built_without_a_gpu(exported: Workspace, rtx_engines: Path) -> None:
    import tensorrt_rtx

    build = read_engine_manifest(rtx_engines).builds["tensorrt-rtx"]
    graphs = read_manifest(exported.onnx)
    assert build.library_version == tensorrt_rtx.__version__
    assert build.compute_capabilities == ["8.0", "8.6", "8.9", "12.0", "12.1"]
    assert list(build.engines) == list(GRAPHS)
    for name, engine in build.engines.items():
        path = rtx_engines / engine.file
        assert sha256_of(path) == engine.sha256
        assert path.stat().st_size == engine.bytes > 10_000
        assert engine.onnx_sha256 == graphs.graphs()[name].onnx_sha256
        fixed = name == ONE_STEP.name
        assert set(engine.profile) == (set() if fixed else set(GRAPHS[name].inputs))
    assert list(rtx_engines.parent.glob("*.part")) == []


def test_what_is_not_built_is_recorded(
    exported: Workspace, tmp_path: Path, no_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dataclasses.replace(TENSORRT_RTX, module="a_library_nobody_has")
    libraries = {**build_engine.LIBRARIES, "tensorrt-rtx": absent}
    monkeypatch.setattr(build_engine, "LIBRARIES", libraries)
    manifest = build_engines(exported.onnx, tmp_path / "engines", SIZE)
    assert manifest.builds == {}
    written = json.loads((tmp_path / "engines" / "manifest.json").read_text())
    assert NO_DRIVER in written["not_built"]["tensorrt"]
    assert "a_library_nobody_has" in written["not_built"]["tensorrt-rtx"]
    assert "install the 'rtx' extra" in written["not_built"]["tensorrt-rtx"]


def test_a_graph_that_does_not_build_is_recorded_and_raised(
    exported: Workspace, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra 'rtx') is not installed")
    onnx = tmp_path / "onnx"
    shutil.copytree(exported.onnx, onnx)
    graph = onnx / UNET_STEP.file
    graph.write_bytes(graph.read_bytes()[:1000])
    manifest = read_manifest(onnx)
    manifest.components[UNET_STEP.name].files[graph.name] = sha256_of(graph)
    manifest.write(onnx)
    with pytest.raises(EngineBuildError, match=r"tensorrt-rtx: unet_step\.onnx does not build"):
        build_engines(onnx, tmp_path / "engines", SIZE, ["tensorrt-rtx"])
    written = json.loads((tmp_path / "engines" / "manifest.json").read_text())
    assert "unet_step.onnx does not build" in written["not_built"]["tensorrt-rtx"]
    assert written["builds"] == {}


def test_stale_graphs_are_not_built(exported: Workspace, tmp_path: Path) -> None:
    onnx = tmp_path / "onnx"
    shutil.copytree(exported.onnx, onnx)
    (onnx / UNET_STEP.file).write_bytes(b"something else")
    with pytest.raises(ExportError, match=r"unet_step\.onnx: differs"):
        build_engines(onnx, tmp_path / "engines", SIZE)


def test_command_line_fails_for_a_library_asked_for_in_vain(
    exported: Workspace, tmp_path: Path, no_driver: None
) -> None:
    arguments = ["--onnx", str(exported.onnx), "--out", str(tmp_path / "e"), "--backend"]
    assert build_engine.main([*arguments, "tensorrt"]) == 1


def test_profile_covers_every_orientation_at_the_engines_long_side() -> None:
    profile = shape_profile(
        VAE_ENCODER, (64, 96), multiple=16, grid=LatentGrid(factor=4, channels=4)
    )
    assert profile == {"rgb": {"min": [1, 3, 32, 32], "opt": [1, 3, 64, 96], "max": [1, 3, 96, 96]}}
    latent = shape_profile(UNET_STEP, (64, 96), multiple=16, grid=LatentGrid(factor=4, channels=4))
    assert latent["rgb_latent"]["opt"] == [1, 4, 16, 24]
    assert latent["timestep"] == {"min": [1], "opt": [1], "max": [1]}


def find(engines: Path, onnx: Path, **changed: str) -> LibraryBuild:
    found = {"version": "1.0", "capability": "8.9"} | changed
    return trt_runtime.find_build(TENSORRT_RTX, engines, read_manifest(onnx).components, **found)


@pytest.fixture
def written_engines(exported: Workspace, tmp_path: Path) -> Path:
    """A folder of engines as a build writes it; each engine's content is the name of its graph."""
    folder = tmp_path / "engines"
    (folder / "tensorrt-rtx").mkdir(parents=True)
    graphs = read_manifest(exported.onnx)
    build = LibraryBuild(library_version="1.0", compute_capabilities=["8.6", "8.9"])
    for name, graph in graphs.components.items():
        path = folder / "tensorrt-rtx" / f"{name}.engine"
        path.write_bytes(str(exported.onnx / graph.onnx_file).encode())
        build.engines[name] = EngineFile(
            file=path.relative_to(folder).as_posix(),
            sha256=sha256_of(path),
            bytes=path.stat().st_size,
            seconds=0.1,
            onnx_sha256=graph.onnx_sha256,
            profile=shape_profile(COMPONENTS[name], SIZE, 4, LatentGrid(factor=2, channels=4)),
        )
    EngineManifest(builds={"tensorrt-rtx": build}, not_built={"tensorrt": NO_DRIVER}).write(folder)
    return folder


def test_engines_for_something_else_are_refused(exported: Workspace, written_engines: Path) -> None:
    assert list(find(written_engines, exported.onnx).engines) == list(COMPONENTS)
    with pytest.raises(BackendUnavailableError, match=r"built with version 1\.0, installed is 2"):
        find(written_engines, exported.onnx, version="2")
    with pytest.raises(BackendUnavailableError, match=r"8\.6, 8\.9, this GPU has 9\.0"):
        find(written_engines, exported.onnx, capability="9.0")
    with pytest.raises(BackendUnavailableError, match=f"no engines in .*{NO_DRIVER}"):
        trt_runtime.find_build(
            trt_library.TENSORRT,
            written_engines,
            read_manifest(exported.onnx).components,
            "1.0",
            "8.9",
        )
    (written_engines / "tensorrt-rtx" / "unet_step.engine").write_bytes(b"other")
    with pytest.raises(ExportError, match=r"unet_step\.engine: differs"):
        find(written_engines, exported.onnx)
    with pytest.raises(ExportError, match=r"no such file; run .*build_engine"):
        find(written_engines / "nowhere", exported.onnx)


def test_engines_of_another_graph_are_refused(exported: Workspace, written_engines: Path) -> None:
    manifest = read_manifest(exported.onnx)
    manifest.components["unet_step"].files["unet_step.onnx"] = "0" * 64
    with pytest.raises(ExportError, match=r"unet_step was built from another unet_step\.onnx"):
        trt_runtime.find_build(TENSORRT_RTX, written_engines, manifest.components, "1.0", "8.9")


class HostDriver:
    """The driver's calls on host memory, so that addresses and sizes are really used."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

        def alloc(pointer: Any, size: int) -> int:
            block = ctypes.create_string_buffer(size)
            pointer._obj.value = ctypes.addressof(block)
            self.blocks[pointer._obj.value] = block
            return 0

        def free(address: int) -> int:
            return 0 if self.blocks.pop(address, None) is not None else 1

        def copy(target: int, source: int, size: int, stream: Any) -> int:
            if not any(self._holds(address, size) for address in (target, source)):
                return 700
            ctypes.memmove(target, source, size)
            return 0

        self.cuMemAlloc_v2, self.cuMemFree_v2 = alloc, free
        self.cuMemcpyHtoDAsync_v2 = self.cuMemcpyDtoHAsync_v2 = copy
        for name in cuda_memory._SIGNATURES:
            if not hasattr(self, name):
                setattr(self, name, lambda *arguments: 0)

    def _holds(self, address: int, size: int) -> bool:
        blocks = self.blocks.items()
        return any(start <= address and address + size <= start + len(b) for start, b in blocks)


class GraphContext:
    """An execution context that runs the ONNX graph on the addresses it is given."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.dtypes = {
            i.name: np.int64 if "int64" in i.type else np.float32 for i in self.session.get_inputs()
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def _read(self, name: str) -> Any:
        dtype, shape = self.dtypes[name], self.shapes[name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], size), dtype).reshape(shape)

    def _run(self) -> Any:
        return self.session.run(None, {name: self._read(name) for name in self.dtypes})[0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._run().shape

    def execute_async_v3(self, stream: int) -> bool:
        (name,) = [o.name for o in self.session.get_outputs()]
        result = np.ascontiguousarray(self._run())
        ctypes.memmove(self.addresses[name], result.ctypes.data, result.nbytes)
        return True


def stand_in_library(module: str) -> SimpleNamespace:
    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            path = content.decode()
            return SimpleNamespace(create_execution_context=lambda: GraphContext(path))

    return SimpleNamespace(ILogger=ILogger, Runtime=Runtime, __version__="1.0")


@pytest.fixture
def engine_session(
    exported: Workspace, written_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> DepthSession:
    """A session over engines whose library and driver are stand-ins running on the CPU."""
    monkeypatch.setattr(trt_library, "cuda_driver_problem", lambda: None)
    monkeypatch.setattr(cuda_memory, "load_driver", HostDriver)
    monkeypatch.setattr(trt_runtime, "gpu_capability", lambda: "8.9")
    monkeypatch.setattr(TrtLibrary, "load", lambda self: stand_in_library(self.module))
    return open_session(exported.onnx, "tensorrt-rtx", engines=written_engines)


def test_engine_execution_moves_the_right_bytes(
    exported: Workspace, engine_session: DepthSession
) -> None:
    reference = open_session(exported.onnx, "onnxruntime-cpu")
    for size in ((16, 24), (24, 16), (16, 16)):
        rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = reference.infer(rgb, fov_deg=50, steps=2, seed=4)
        actual = engine_session.infer(rgb, fov_deg=50, steps=2, seed=4)
        assert actual.backend == "tensorrt-rtx"
        np.testing.assert_array_equal(actual.depth, expected.depth)


def test_a_size_outside_the_profile_is_refused(engine_session: DepthSession) -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ExportError, match=r"rgb of shape \[1, 3, 64, 64\] lies outside"):
        engine_session.infer(rgb, processing_resolution=64)


def test_stand_ins_have_the_real_librarys_names() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra 'rtx') is not installed")
    for name in ("set_input_shape", "set_tensor_address", "get_tensor_shape", "execute_async_v3"):
        assert hasattr(trt.IExecutionContext, name)
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")
    assert hasattr(trt.ICudaEngine, "create_execution_context")


def test_driver_probe_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(library: str) -> Any:
        raise OSError(library)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert "libcuda" in str(driver.load_driver.__wrapped__()) or "nvcuda" in driver.LIBRARY
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 100))
    assert driver.load_driver.__wrapped__() == "the NVIDIA driver does not start (cuInit gave 100)"
    without_gpu = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=lambda count: 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: without_gpu)
    assert driver.load_driver.__wrapped__() == "the NVIDIA driver sees no GPU"
