"""Triton's repository: its schema, and its ensemble run in ONNX Runtime as its files wire it."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_engines import rewritten, write_engines
from google.protobuf import text_format
from numpy.typing import NDArray

from export import numpy_sampler, triton
from export.engine_manifest import read_engine_manifest, read_sidecar
from export.manifest import ExportError, read_manifest, sha256_of
from export.onnx_export import export_checkpoint
from export.runtime import open_session
from export.specs import COMPONENTS, UNET_STEP
from export.triton import Choices, main, write_repository
from export.triton_config import Word, text
from export.triton_graphs import camera_graph, step_graph
from metricgold.config import EngineProfileConfig, EnginesConfig, ExportConfig
from metricgold.geometry import ray_latent
from metricgold.workspace import Workspace

UNET = UNET_STEP.name
CPU = ["CPUExecutionProvider"]
DTYPES = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32}


@pytest.fixture(scope="module")
def schema() -> Any:
    """Triton's ``model_config.proto``, compiled, as NVIDIA's client carries it; gRPC stays out."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed, whose copy of model_config.proto is needed")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(exported: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_repository(exported.onnx, folder, Choices(max_batch=4, instances=2, threads=3))
    return folder


class Triton:
    """What Triton does with a repository: every shape and type is held against its config."""

    def __init__(self, folder: Path, schema: Any) -> None:
        self.folder = folder
        self._schema = schema

    def config(self, model: str) -> Any:
        path = self.folder / model / "config.pbtxt"
        config = text_format.Parse(path.read_text(), self._schema.ModelConfig())
        assert config.name == model
        assert (self.folder / model / "1").is_dir()
        return config

    def _check(self, config: Any, tensor: Any, value: NDArray[Any]) -> None:
        kind = self._schema.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        assert value.dtype == DTYPES[kind], (config.name, tensor.name)
        shape = value.shape
        if config.max_batch_size:
            assert 1 <= shape[0] <= config.max_batch_size
            shape = shape[1:]
        assert len(shape) == len(tensor.dims), (config.name, tensor.name, value.shape)
        assert all(d in (-1, n) for d, n in zip(tensor.dims, shape, strict=True)), value.shape

    def infer(self, model: str, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        config = self.config(model)
        assert set(given) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            self._check(config, tensor, given[tensor.name])
        found = self._steps(config, given) if config.platform == "ensemble" else {}
        found = found or self._graph(config, given)
        for tensor in config.output:
            self._check(config, tensor, found[tensor.name])
        return {tensor.name: found[tensor.name] for tensor in config.output}

    def _steps(self, config: Any, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        known = dict(given)
        for step in config.ensemble_scheduling.step:
            inputs = {name: known[tensor] for name, tensor in step.input_map.items()}
            outputs = self.infer(step.model_name, inputs)
            known |= {tensor: outputs[name] for name, tensor in step.output_map.items()}
        return known

    def _graph(self, config: Any, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        path = self.folder / config.name / "1" / config.default_model_filename
        session = onnxruntime.InferenceSession(str(path), providers=CPU)
        batch = 1 if config.max_batch_size else 0

        def reshaped(tensor: Any, value: NDArray[Any], shape: list[int]) -> NDArray[Any]:
            if not tensor.HasField("reshape"):
                return value
            return value.reshape(value.shape[:batch] + tuple(shape))

        inputs = {t.name: reshaped(t, given[t.name], list(t.reshape.shape)) for t in config.input}
        names = [tensor.name for tensor in config.output]
        found = dict(zip(names, session.run(names, inputs), strict=True))
        return {t.name: reshaped(t, found[t.name], list(t.dims)) for t in config.output}


def test_one_request_gives_the_sessions_metres(
    repository: Path, exported: Workspace, schema: Any
) -> None:
    session, server = open_session(exported.onnx, "onnxruntime-cpu"), Triton(repository, schema)
    for size in ((16, 24), (12, 28), (40, 8)):
        rgb = np.random.default_rng(1).integers(0, 256, (3, *size, 3), dtype=np.uint8)
        fovs = [None, 50.0, 95.0]
        fov = np.array([[f or 0.0] for f in fovs], np.float32)
        depth = server.infer("metricgold", {"picture": rgb, "fov_y_deg": fov})["depth"]
        assert depth.shape == (3, 1, *size)
        for found, picture, fov_deg in zip(depth, rgb, fovs, strict=True):
            expected = session.infer(picture, fov_deg=fov_deg, processing_resolution=0)
            np.testing.assert_allclose(found[0], expected.depth, rtol=1e-4)


def test_every_field_of_the_configs(repository: Path, exported: Workspace, schema: Any) -> None:
    server, manifest = Triton(repository, schema), read_manifest(exported.onnx)
    order = ["camera", "vae_encoder", "unet_step", "ddim_step", "depth_decoder"]
    for name in order:
        config = server.config(name)
        file = repository / name / "1" / config.default_model_filename
        session = onnxruntime.InferenceSession(str(file), providers=CPU)
        assert {t.name for t in config.input} == {i.name for i in session.get_inputs()}
        assert {t.name for t in config.output} == {o.name for o in session.get_outputs()}
        for tensor in (*config.input, *config.output):
            both = [*session.get_inputs(), *session.get_outputs()]
            (known,) = [v for v in both if v.name == tensor.name]
            lengths = [n if isinstance(n, int) else -1 for n in known.shape]
            assert lengths[0] == -1, "the batch is Triton's"
            dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
            assert dims == lengths[1:]
            kind = schema.DataType.Name(tensor.data_type).removeprefix("TYPE_")
            of_onnx = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(uint8)": "UINT8"}
            assert kind == of_onnx[known.type]
        assert config.platform == "onnxruntime_onnx"
        assert config.max_batch_size == 4
        assert config.dynamic_batching.max_queue_delay_microseconds == 2000
        (group,) = config.instance_group
        helper = name in ("camera", "ddim_step")
        assert group.count == (1 if helper else 2)
        kinds = schema.ModelInstanceGroup
        assert group.kind == (kinds.KIND_CPU if helper else kinds.KIND_AUTO)
        assert config.parameters["intra_op_thread_count"].string_value == "3"
    for name, graph in manifest.components.items():
        assert sha256_of(repository / name / "1" / graph.onnx_file) == graph.onnx_sha256
    whole = server.config("metricgold")
    assert (whole.platform, whole.max_batch_size) == ("ensemble", 4)
    assert [s.model_name for s in whole.ensemble_scheduling.step] == order
    assert {s.model_version for s in whole.ensemble_scheduling.step} == {-1}
    assert not whole.instance_group
    assert not whole.HasField("dynamic_batching")
    assert whole.parameters["depth_max_m"].string_value == str(manifest.depth_max_m)
    assert whole.parameters["checkpoint_sha256"].string_value == manifest.checkpoint_sha256
    assert not any(t.HasField("reshape") for t in (*whole.input, *whole.output))


def test_graphs_of_one_size_have_no_batch_of_tritons(
    exported: Workspace, export_config: ExportConfig, tmp_path: Path, schema: Any
) -> None:
    static = export_config.model_copy(update={"dynamic": False, "fused": False})
    export_checkpoint(exported.model, tmp_path / "onnx", static)
    write_repository(tmp_path / "onnx", tmp_path / "models", Choices())
    server = Triton(tmp_path / "models", schema)
    for name in ("camera", "unet_step", "metricgold"):
        config = server.config(name)
        assert config.max_batch_size == 0
        assert not config.HasField("dynamic_batching")
    height, width = static.engine_size
    rgb = np.random.default_rng(2).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    given = {"picture": rgb, "fov_y_deg": np.array([60.0], np.float32)}
    depth = server.infer("metricgold", given)["depth"]
    session = open_session(tmp_path / "onnx", "onnxruntime-cpu")
    np.testing.assert_allclose(depth[0, 0], session.infer(rgb[0], fov_deg=60.0).depth, rtol=1e-4)


@pytest.fixture
def engines(exported: Workspace, export_config: ExportConfig, tmp_path: Path) -> Path:
    """A folder as a build of TensorRT leaves it, for batches of 2; no engine is real."""
    sizes = {"min": (8, 8), "opt": (16, 24), "max": (24, 24)}
    two = EngineProfileConfig(**sizes, batch=(1, 1, 2))
    config = export_config.model_copy(update={"engines": EnginesConfig(profiles=(two,))})
    return write_engines(tmp_path / "engines", exported.onnx, config, "tensorrt")


def test_engines_take_the_graphs_place(
    exported: Workspace, engines: Path, tmp_path: Path, schema: Any
) -> None:
    write_repository(exported.onnx, tmp_path / "models", Choices(), engines)
    server = Triton(tmp_path / "models", schema)
    for name in COMPONENTS:
        config = server.config(name)
        assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 2)
        plan = tmp_path / "models" / name / "1" / config.default_model_filename
        assert plan.read_bytes() == (engines / "tensorrt" / f"{name}.engine").read_bytes()
    assert server.config("camera").platform == "onnxruntime_onnx"
    assert server.config("metricgold").max_batch_size == 2


def test_engines_that_do_not_fit_are_refused(
    exported: Workspace, engines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models"

    def refused(said: str) -> None:
        with pytest.raises(ExportError, match=said):
            write_repository(exported.onnx, out, Choices(), engines)
        assert not out.exists()

    sidecar = read_sidecar(engines, read_engine_manifest(engines).builds["tensorrt"].engines[UNET])
    (engines / sidecar.file).write_bytes(b"other")
    refused(r"unet_step\.engine: differs")
    rewritten(engines, sidecar, sha256=sha256_of(engines / sidecar.file), graph={"a.onnx": "0"})
    refused("the engine of unet_step was built from another unet_step.onnx")
    path = engines / "manifest.json"
    raw = json.loads(path.read_text())
    raw["builds"] = {"tensorrt-rtx": raw["builds"]["tensorrt"]}
    path.write_text(json.dumps(raw))
    refused("no engines in .*Triton runs no other library's")


def test_what_cannot_be_served_is_refused(exported: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(exported.onnx, folder)
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"num_inference_steps": 4}))
    with pytest.raises(ExportError, match="takes 4 steps, and an ensemble of Triton has no loop"):
        main(["--model", str(folder), "--out", str(tmp_path / "models")])
    path.write_text(json.dumps(raw))
    (folder / "unet_step.onnx").write_bytes(b"other")
    with pytest.raises(ExportError, match=r"unet_step\.onnx: differs"):
        main(["--model", str(folder), "--out", str(tmp_path / "models")])
    with pytest.raises(ExportError, match="--max-batch must be 1 or more, got 0"):
        main(["--max-batch", "0", "--out", str(tmp_path / "models")])
    assert not (tmp_path / "models").exists()


def test_the_command_says_how_to_serve(
    exported: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(exported.onnx), "--out", str(tmp_path / "models")]) == 0
    said = capsys.readouterr().out
    assert "metricgold, camera, vae_encoder, unet_step, ddim_step, depth_decoder" in said
    assert f"-v {tmp_path / 'models'}:/models:ro" in said
    assert "tritonserver --model-repository=/models" in said
    assert triton.ENSEMBLE == "metricgold"


def test_the_camera_graph_is_the_samplers(exported: Workspace) -> None:
    manifest = read_manifest(exported.onnx)
    session = onnxruntime.InferenceSession(
        camera_graph(manifest).SerializeToString(), providers=CPU
    )
    rgb = np.random.default_rng(0).integers(0, 256, (4, 16, 28, 3), dtype=np.uint8)
    fovs = np.array([0.0, 50.0, np.nan, 120.0], np.float32)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"picture": rgb, "fov_y_deg": fovs}), strict=True))
    known = [None, 50.0, None, 120.0]
    unknown = np.array([math.nan if f is None else f for f in known])
    rays = ray_latent(unknown, (8, 14), manifest.latent_channels)
    np.testing.assert_allclose(found["noisy_depth_latent"], rays, atol=1e-6)
    features = np.concatenate([numpy_sampler.fov_features(f, manifest.fov) for f in known])
    np.testing.assert_allclose(found["fov"], features, atol=2e-5)
    np.testing.assert_array_equal(found["rgb"], rgb.transpose(0, 3, 1, 2) / np.float32(255) * 2 - 1)
    assert found["timestep"].tolist() == [999] * 4


def test_the_step_graph_is_the_sampler(exported: Workspace) -> None:
    manifest = read_manifest(exported.onnx)
    rng = np.random.default_rng(0)
    start, velocity = rng.standard_normal((2, 2, 4, 3, 5), dtype=np.float32)
    alphas = manifest.scheduler.alphas_cumprod.split()
    # As it is, with zero terminal SNR, and with a schedule in which nothing vanishes.
    for last, final in ((alphas[-1], 1.0), ("0.3", 0.9)):
        table = vars(manifest.scheduler) | {
            "alphas_cumprod": " ".join([*alphas[:-1], last]), "final_alpha_cumprod": final,
        }  # fmt: skip
        changed = type(manifest)(
            **vars(manifest) | {"scheduler": type(manifest.scheduler)(**table)}
        )
        session = onnxruntime.InferenceSession(
            step_graph(changed).SerializeToString(), providers=CPU
        )
        (found,) = session.run(None, {"noisy_depth_latent": start, "velocity": velocity})
        constant = velocity
        expected = numpy_sampler.sample(
            lambda z, t, v=constant: v,
            start,
            changed.scheduler,
            1,  # type: ignore[misc]
        )
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_text_is_escaped() -> None:
    assert text({"a": 'x"\\\n'}) == 'a: "x\\"\\\\\\n"\n'
    assert text({"a": [], "b": [{"c": 1}, {"c": Word.CPU}]}) == (
        "a: []\nb {\n  c: 1\n}\nb {\n  c: KIND_CPU\n}\n"
    )
