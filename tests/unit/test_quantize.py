"""Graphs in 8 bits: what is rounded and what is not, and that the cost is told with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from made_frames import make_frame, write_shards
from PIL import Image
from test_components import profile

from export import trt_infer
from export.calibration import activation_ranges, record
from export.manifest import ExportError, read_manifest
from export.parity import ParityError, run
from export.quantised import QUANTIZATION_FILE, measured
from export.quantised_graphs import layers, quantise
from export.quantize import main, quantize
from export.runtime import open_session
from export.service.limits import Limits
from export.service.model import Model
from export.specs import COMPONENTS, QUANTISED, UNET_STEP, VAE_ENCODER, Precision
from export.triton import Choices, write_repository
from metricgold.config import ExportConfig, ProfileConfig
from metricgold.workspace import Workspace

CPU = "onnxruntime-cpu"
LARGEST = {Precision.INT8_WEIGHTS: 127, Precision.INT8: 127, Precision.FP8: 448}
TYPES = {
    Precision.INT8_WEIGHTS: ir.DataType.INT8,
    Precision.INT8: ir.DataType.INT8,
    Precision.FP8: ir.DataType.FLOAT8E4M3FN,
}


@pytest.fixture(scope="module")
def ws(exported: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("quantised"))
    shutil.copytree(exported.model, made.model)
    shutil.copytree(exported.onnx, made.onnx)
    for number, name in enumerate(("hypersim", "virtual_kitti", "tartanair")):
        for split, first in (("train", 10), ("holdout", 0)):
            frames = [make_frame(number, first + i, (20, 28)) for i in range(2)]
            write_shards(made.shards(name), split, frames)
    return made


@pytest.fixture(scope="module")
def config(export_config: ExportConfig) -> ProfileConfig:
    return profile(export_config.model_copy(update={"parity_frames": 2}))


@pytest.fixture(scope="module", params=QUANTISED)
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param


@pytest.fixture(scope="module")
def made(ws: Workspace, config: ProfileConfig, precision: Precision) -> Path:
    folder = ws.onnx.with_name(f"onnx-{precision.value}")
    quantize(ws.onnx, folder, precision, config, ws, calibration_frames=2)
    return folder


def test_the_cost_is_measured_and_stands_beside_the_graphs(
    ws: Workspace, made: Path, precision: Precision
) -> None:
    found = json.loads((made / QUANTIZATION_FILE).read_text())
    assert found["precision"] == precision.value
    assert found["mean"]["frames"] == 6
    assert set(found["datasets"]) == {"hypersim", "virtual_kitti", "tartanair"}
    assert 0 < found["mean"]["median_relative"] < 0.2
    assert found["mean"]["abs_rel"] != found["mean"]["reference_abs_rel"]
    assert found["bytes"] == sum(g.bytes for g in read_manifest(made).components.values())
    calibration = found["calibration"]
    if precision is Precision.INT8_WEIGHTS:
        assert calibration is None
    else:
        assert (calibration["split"], calibration["frames"]) == ("train", 6)


def test_a_runtime_opens_them_like_any_other(
    ws: Workspace, made: Path, precision: Precision
) -> None:
    session, original = open_session(made, CPU), open_session(ws.onnx, CPU)
    assert session.manifest.arithmetic is precision
    rgb = make_frame(0, 0, (20, 28)).rgb
    depth, expected = (s.infer(rgb, fov_deg=60.0).depth for s in (session, original))
    off = np.median(np.abs(depth / expected - 1))
    assert 0 < off < 0.2


def test_weights_are_rounded_by_output_channel(
    ws: Workspace, made: Path, precision: Precision
) -> None:
    before = ir.load(ws.onnx / UNET_STEP.file)
    after = ir.load(made / UNET_STEP.file)
    constants = after.graph.initializers
    names = [layer.inputs[1].name for layer in layers(before)]
    assert len(set(names)) > 10
    for name in names:
        weight = before.graph.initializers[name].const_value.numpy()
        small, scale = (constants[f"{name}_{part}"].const_value for part in ("quantised", "scale"))
        assert small.dtype == TYPES[precision]
        assert name not in constants, "the float weights are gone"
        (user,) = {u.node for u in constants[f"{name}_quantised"].uses()}
        axis = user.attributes["axis"].as_int()
        others = tuple(i for i in range(weight.ndim) if i != axis)
        np.testing.assert_allclose(
            scale.numpy(), np.abs(weight).max(axis=others) / LARGEST[precision], rtol=1e-6
        )
        spread = np.expand_dims(scale.numpy(), others)
        error = np.abs(small.numpy().astype(np.float32) * spread - weight)
        if precision is Precision.FP8:  # three bits of mantissa; below 2^-6 a fixed step
            assert (error <= np.maximum(np.abs(weight) / 16, spread * 2**-10) * 1.001).all()
        else:
            assert (error <= spread * 0.501).all()


def test_what_is_stated_stays_float(made: Path) -> None:
    for spec in COMPONENTS.values():
        graph = ir.load(made / spec.file).graph
        for node in graph:
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            if weight is None or not weight.is_initializer() or node.op_type != "Conv":
                continue
            assert any(part in str(weight.name) for part in ("conv_in", "conv_out", "quant_conv"))
            assert weight.dtype == ir.DataType.FLOAT
        kinds = {n.op_type for n in graph if any(_from_pair(v) for v in n.inputs)}
        assert kinds <= {"Conv", "MatMul", "Gemm", "DequantizeLinear"}


def _from_pair(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type in ("QuantizeLinear", "DequantizeLinear")


def test_activations_pass_a_pair_only_where_asked(made: Path, precision: Precision) -> None:
    graph = ir.load(made / UNET_STEP.file).graph
    pairs = [n for n in graph if n.op_type == "QuantizeLinear"]
    if precision is Precision.INT8_WEIGHTS:
        assert not pairs
        return
    assert len(pairs) > 10
    for node in pairs:
        assert node.inputs[2].dtype == TYPES[precision]
        assert node.inputs[2].const_value.numpy().astype(np.float32) == 0.0
        (after,) = {u.node.op_type for u in node.outputs[0].uses()}
        assert after == "DequantizeLinear"


def test_ranges_are_those_that_the_graphs_meet(ws: Workspace) -> None:
    """The encoder's from pictures, the U-Net's from what the encoder gives."""
    session = open_session(ws.onnx, CPU)
    frames = [(make_frame(0, i, (20, 28)), 24) for i in range(3)]
    readings = record(session, frames)
    assert [len(r) for r in readings.values()] == [3, 3, 3]
    latents = [
        session.backend.run(VAE_ENCODER.name, reading) for reading in readings[VAE_ENCODER.name]
    ]
    for latent, reading in zip(latents, readings[UNET_STEP.name], strict=True):
        np.testing.assert_array_equal(latent, reading["rgb_latent"])
    graph = session.manifest.components[VAE_ENCODER.name]
    ranges = activation_ranges(ws.onnx, graph, readings[VAE_ENCODER.name])
    largest = max(np.abs(r["rgb"]).max() for r in readings[VAE_ENCODER.name])
    assert ranges["rgb"] == pytest.approx(largest)
    assert {f.name for f in ws.onnx.iterdir()} == {
        "manifest.json", "one_step.onnx", *(s.file for s in COMPONENTS.values())
    }  # fmt: skip
    model = ir.load(ws.onnx / graph.onnx_file)
    assert all(str(layer.inputs[0].name) in ranges for layer in layers(model))
    assert quantise(model, Precision.INT8, ranges) > 3


def test_inference_says_what_they_cost(
    made: Path, precision: Precision, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(make_frame(0, 0, (20, 28)).rgb).save(tmp_path / "a.png")
    line = [str(tmp_path / "a.png"), "--model", str(made), "--out", str(tmp_path / "out")]
    assert trt_infer.main([*line, "--backend", CPU]) == 0
    said = capsys.readouterr().out
    assert f"quantised to {precision.value}: on 6 held-out frames AbsRel" in said
    assert Model(made, CPU, Limits())._accuracy in said
    write_repository(made, tmp_path / "triton", Choices())
    assert "held-out frames" in (tmp_path / "triton" / "metricgold" / "config.pbtxt").read_text()


def test_without_their_cost_they_are_not_offered(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    record = json.loads((copy / QUANTIZATION_FILE).read_text())
    ways: list[tuple[Any, str]] = [
        (record | {"source_checkpoint_sha256": "0"}, "belongs to other graphs"),
        ({"precision": "int8"}, "not the record of a quantisation"),
        (None, "no such file"),
    ]
    for content, said in ways:
        if content is None:
            (copy / QUANTIZATION_FILE).unlink()
        else:
            (copy / QUANTIZATION_FILE).write_text(json.dumps(content))
        told = rf"quantization\.json: {said}.* run 'python -m export\.quantize' again"
        with pytest.raises(ExportError, match=told):
            open_session(copy, CPU)
        with pytest.raises(ExportError, match=told):
            Model(copy, CPU, Limits())
        with pytest.raises(ExportError, match=told):
            write_repository(copy, tmp_path / "triton", Choices())
    assert list(tmp_path.iterdir()) == [copy]


def test_plain_graphs_cost_nothing(exported: Workspace) -> None:
    assert measured(exported.onnx, read_manifest(exported.onnx)) is None


def test_parity_is_not_for_them(made: Path, config: ProfileConfig, tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    shutil.copytree(made, ws.onnx)
    shutil.copytree(made.parent / "metricgold", ws.model)
    with pytest.raises(ParityError, match="quantised"):
        run(config, ws)


def test_what_cannot_be_quantised_is_refused(
    ws: Workspace, made: Path, config: ProfileConfig, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="quantised graphs are made of fp32 ones"):
        quantize(made, tmp_path / "again", Precision.INT8, config, ws)
    none = config.model_copy(
        update={"export": config.export.model_copy(update={"parity_frames": 0})}
    )
    with pytest.raises(ExportError, match=r"export\.parity_frames is 0"):
        quantize(ws.onnx, tmp_path / "again", Precision.INT8, none, ws)
    with pytest.raises(ExportError, match="no train frame"):
        quantize(ws.onnx, tmp_path / "again", Precision.INT8, config, Workspace(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_one_folder_is_for_one_precision(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["int8", "fp8", "--out", "somewhere"])
    assert "--out is for one precision" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["int8", "--calibration-frames", "0"])
