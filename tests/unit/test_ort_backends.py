"""ONNX Runtime's options, its cache of optimised graphs, latents that stay on its device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export import backends, ort_options
from export.backends import OnnxRuntimeBackend, ResidentOnnxRuntimeBackend
from export.manifest import ExportError, MemoryShortError, read_manifest
from export.ort_options import OrtOptions
from export.runtime import DepthSession, InferenceError, open_session
from metricgold.workspace import Workspace

CPU = OnnxRuntimeBackend.name
RGB = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


def pictures(count: int) -> list[NDArray[np.uint8]]:
    """Of three sizes, all different, worked at one size."""
    return [np.roll(RGB[: 29 + i % 3], i, axis=1) for i in range(count)]


@pytest.fixture(scope="module")
def session(exported: Workspace) -> DepthSession:
    return open_session(exported.onnx, CPU)


@pytest.fixture
def resident(exported: Workspace) -> DepthSession:
    """The back-end of a GPU, on the CPU's provider."""
    manifest = read_manifest(exported.onnx)
    return DepthSession(manifest, ResidentOnnxRuntimeBackend(exported.onnx, manifest.components))


@pytest.mark.parametrize(
    "options",
    [
        OrtOptions(threads=1),
        OrtOptions(threads=3, spinning=False),
        OrtOptions(arena=False),
        OrtOptions(level="basic"),
        OrtOptions(level="extended"),
        OrtOptions(level="none"),
    ],
)
def test_options_change_no_depth(
    exported: Workspace, session: DepthSession, options: OrtOptions
) -> None:
    with open_session(exported.onnx, CPU, options=options) as other:
        found = other.infer(RGB, fov_deg=60.0).depth
    np.testing.assert_allclose(found, session.infer(RGB, fov_deg=60.0).depth, rtol=1e-4)


def test_options_reach_onnxruntime(tmp_path: Path) -> None:
    import onnxruntime

    given = OrtOptions(threads=3, spinning=False, arena=False, level="basic", profile=tmp_path)
    settings = given.session_options(onnxruntime, "unet_step")
    assert settings.intra_op_num_threads == 3
    assert not settings.enable_cpu_mem_arena
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert settings.get_session_config_entry("session.force_spinning_stop") == "1"
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert settings.graph_optimization_level == level
    assert settings.profile_file_prefix == str(tmp_path / "unet_step")
    default = OrtOptions().session_options(onnxruntime, "unet_step")
    assert default.intra_op_num_threads == ort_options.usable_cores()
    with pytest.raises(ExportError, match="threads must be 1 or more, got 0"):
        OrtOptions(threads=0)


def test_a_cached_graph_is_taken_and_gives_the_same(
    exported: Workspace, session: DepthSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OrtOptions(cache=tmp_path)
    expected = session.infer(RGB).depth
    with open_session(exported.onnx, CPU, options=options) as first:
        np.testing.assert_array_equal(first.infer(RGB).depth, expected)
    folders = sorted(tmp_path.iterdir())
    assert [f.name.split("-")[0] for f in folders] == ["depth_decoder", "unet_step", "vae_encoder"]
    opened: list[str] = []
    real = OnnxRuntimeBackend._session

    def noted(self: OnnxRuntimeBackend, ort: Any, path: Path, settings: Any) -> Any:
        opened.append(str(path))
        return real(self, ort, path, settings)

    monkeypatch.setattr(OnnxRuntimeBackend, "_session", noted)
    with open_session(exported.onnx, CPU, options=options) as second:
        np.testing.assert_array_equal(second.infer(RGB).depth, expected)
    assert sorted(opened) == [str(f / "graph.onnx") for f in folders]
    opened.clear()
    (folders[1] / "graph.onnx").write_bytes(b"damaged")
    with open_session(exported.onnx, CPU, options=options) as third:
        np.testing.assert_array_equal(third.infer(RGB).depth, expected)
    assert str(exported.onnx / "unet_step.onnx") in opened, "made again from the graph"
    assert (folders[1] / "graph.onnx").stat().st_size > 1000


def test_a_cache_is_for_one_graph_version_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    options = OrtOptions(cache=tmp_path)
    found = {options.cache_folder(onnxruntime, "unet_step", sha256) for sha256 in ("a", "b")}
    found.add(OrtOptions(cache=tmp_path, level="basic").cache_folder(onnxruntime, "unet_step", "a"))
    monkeypatch.setattr(onnxruntime, "__version__", "2.0")
    found.add(options.cache_folder(onnxruntime, "unet_step", "a"))
    monkeypatch.setattr(ort_options, "_processor", lambda: "another")
    found.add(options.cache_folder(onnxruntime, "unet_step", "a"))
    assert len(found) == 5
    assert OrtOptions().cache_folder(onnxruntime, "unet_step", "a") is None


def test_the_samplers_graph_is_what_it_says() -> None:
    axes = ["batch", "channels", "height", "width"]
    shapes: Mapping[str, list[str]] = {
        "latent": axes, "velocity": axes, "of_latent": [], "of_velocity": []
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["of_latent", "latent"], ["a"]),
            helper.make_node("Mul", ["of_velocity", "velocity"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["next"]),
        ],
        "combine",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, axes)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert onnx.load_from_string(backends.COMBINE_GRAPH) == made
    onnx.checker.check_model(made)


@pytest.mark.parametrize(
    "options", [{}, {"ensemble_size": 2}, {"steps": 3, "ensemble_size": 2, "seed": 5}]
)
def test_latents_on_the_device_give_the_same_depth(
    session: DepthSession,
    resident: DepthSession,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, int],
) -> None:
    expected = session.infer_many(pictures(3), fov_deg=[None, 40.0, 90.0], **options)
    fetched: list[list[int]] = []
    real = resident.backend.to_host

    def noted(value: Any) -> NDArray[np.float32]:
        fetched.append(list(value.shape()))
        return real(value)

    monkeypatch.setattr(resident.backend, "to_host", noted)
    found = resident.infer_many(pictures(3), fov_deg=[None, 40.0, 90.0], **options)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.depth, other.depth, rtol=1e-5)
    assert {shape[1] for shape in fetched} == {1}, "nothing but depth comes to the host"
    assert [n for n, *_ in fetched] == [3] * options.get("ensemble_size", 1), "and that once"


@pytest.mark.parametrize("kind", ["session", "resident"])
def test_threads_share_a_session(request: pytest.FixtureRequest, kind: str) -> None:
    session: DepthSession = request.getfixturevalue(kind)
    todo = pictures(48)
    expected = [session.infer(rgb, fov_deg=50.0).depth for rgb in todo]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda rgb: session.infer(rgb, fov_deg=50.0).depth, todo))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


class OneAtATime:
    """Fails when two threads are in it."""

    name = "fragile"
    max_batch = None

    def __init__(self, inner: OnnxRuntimeBackend) -> None:
        self.inner = inner
        self.busy = threading.Lock()

    def run(self, component: str, inputs: backends.Arrays) -> NDArray[np.float32]:
        assert self.busy.acquire(blocking=False), "two threads at once"
        try:
            return self.inner.run(component, inputs)
        finally:
            self.busy.release()


def test_a_backend_for_one_thread_is_used_in_turn(session: DepthSession) -> None:
    assert isinstance(session.backend, OnnxRuntimeBackend)
    fragile = DepthSession(session.manifest, OneAtATime(session.backend))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda rgb: fragile.infer(rgb).depth, pictures(16)))
    for one, rgb in zip(found, pictures(16), strict=True):
        np.testing.assert_array_equal(one, session.infer(rgb).depth)


def test_two_sessions_in_one_process(exported: Workspace, session: DepthSession) -> None:
    expected = [session.infer(rgb).depth for rgb in pictures(6)]
    with (
        open_session(exported.onnx, CPU, options=OrtOptions(threads=1)) as one,
        open_session(exported.onnx, CPU, fused=True) as other,
    ):
        for rgb, depth in zip(pictures(6), expected, strict=True):
            np.testing.assert_allclose(one.infer(rgb).depth, depth, rtol=1e-4)
            assert other.infer(rgb).depth.shape == depth.shape
    np.testing.assert_array_equal(session.infer(pictures(6)[5]).depth, expected[5])


def test_a_closed_session_says_so(exported: Workspace) -> None:
    session = open_session(exported.onnx, CPU)
    with session as same:
        assert same is session
        same.infer(RGB)
    with pytest.raises(InferenceError, match="the session is closed"):
        session.infer(RGB)
    session.close()


def test_a_cache_that_cannot_be_written_is_told(exported: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    options = OrtOptions(cache=tmp_path / "file")
    with pytest.raises(ExportError, match=r"file: the optimised graph cannot be kept here"):
        open_session(exported.onnx, CPU, options=options)


def test_memory_that_does_not_suffice_is_told(
    session: DepthSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def run(self, *_: Any) -> Any:
            raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for 99 bytes")

    backend: Any = session.backend
    monkeypatch.setitem(backend._sessions, "depth_decoder", Full())
    with pytest.raises(MemoryShortError, match=r"depth_decoder failed: .*99 bytes") as raised:
        backend.run("depth_decoder", {})
    assert isinstance(raised.value, MemoryError)


def test_a_failure_inside_onnxruntime_is_told(session: DepthSession) -> None:
    wrong = {"depth_latent": np.zeros((1, 3, 4, 4), np.float32)}
    with pytest.raises(ExportError, match=f"{CPU}: depth_decoder failed: .*Got: 3 Expected: 4"):
        session.backend.run("depth_decoder", wrong)
