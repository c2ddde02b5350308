"""The precision audit finds what is wrong in graphs made wrong on purpose, and stops the build."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import build_progress, engine_audit
from export.build_engine import EngineBuildError, build_engines
from export.engine_audit import Layer, counted, described, inspector_counts, problems
from export.manifest import read_manifest, sha256_of
from export.onnx_export import export_checkpoint
from export.specs import DEPTH_DECODER, Precision
from metricgold.config import ExportConfig
from metricgold.workspace import Workspace

FP16, FP32 = Precision.FP16, Precision.FP32


@pytest.fixture(scope="module")
def half(exported: Workspace, tmp_path_factory: pytest.TempPathFactory, export_config: Any) -> Path:
    """fp16 graphs of one size."""
    out = tmp_path_factory.mktemp("half") / "onnx"
    asked = {"precision": "fp16", "dynamic": False, "fused": False}
    export_checkpoint(exported.model, out, export_config.model_copy(update=asked))
    return out


@pytest.fixture
def build(tmp_path: Path, half: Path, export_config: ExportConfig) -> Callable[[Any], Path]:
    """Builds the fp16 graphs after a change to the decoder's."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra 'rtx') is not installed")

    def changed(change: Any) -> Path:
        onnx_folder, engines = tmp_path / "onnx", tmp_path / "engines"
        shutil.copytree(half, onnx_folder)
        path = onnx_folder / DEPTH_DECODER.file
        model = onnx.load(path)
        change(model.graph)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        manifest = read_manifest(onnx_folder)
        manifest.components[DEPTH_DECODER.name].files[path.name] = sha256_of(path)
        manifest.write(onnx_folder)
        build_engines(onnx_folder, engines, export_config, ["tensorrt-rtx"])
        return engines

    return changed


def between_casts(graph: Any, node: Any, dtype: int, back: int) -> None:
    """Make a node work in another element type."""
    index = list(graph.node).index(node)
    before = [
        helper.make_node("Cast", [name], [f"{name}_wrong{i}"], to=dtype)
        for i, name in enumerate(node.input)
    ]
    (out,) = node.output
    node.input[:] = [cast.output[0] for cast in before]
    node.output[0] = f"{out}_wrong"
    after = helper.make_node("Cast", [f"{out}_wrong"], [out], to=back)
    graph.node.insert(index + 1, after)
    for cast in reversed(before):
        graph.node.insert(index, cast)


def narrow_exp(graph: Any) -> None:
    (node,) = (n for n in graph.node if n.op_type == "Exp")
    between_casts(graph, node, TensorProto.FLOAT16, TensorProto.FLOAT)


def test_a_float32_convolution_in_a_half_graph_stops_the_build(build: Any, tmp_path: Path) -> None:
    def widen_one(graph: Any) -> None:
        node = [n for n in graph.node if n.op_type == "Conv"][3]
        between_casts(graph, node, TensorProto.FLOAT, TensorProto.FLOAT16)

    told = r"depth_decoder\.onnx does not build: precision audit: convolution '.*' is FLOAT in a"
    with pytest.raises(EngineBuildError, match=told):
        build(widen_one)
    log = (tmp_path / "engines" / "tensorrt-rtx" / "depth_decoder.log").read_text("utf-8")
    assert "metricgold: precision audit: convolution '" in log
    assert not (tmp_path / "engines" / "tensorrt-rtx" / "depth_decoder.engine").exists()


@pytest.mark.parametrize("how", ["refused", "interrupted"])
def test_a_failed_build_keeps_nothing_of_the_library(
    build: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Found as a deadlock: a builder kept by a traceback, collected while the next one logged."""
    import tensorrt_rtx

    make, made = tensorrt_rtx.Builder, []

    def watched(logger: Any) -> Any:
        builder = make(logger)
        made.append(weakref.ref(builder))
        return builder

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_rtx, "Builder", watched)
    if how == "interrupted":
        monkeypatch.setattr(build_progress, "shown", interrupt)
    expected = {"refused": EngineBuildError, "interrupted": KeyboardInterrupt}[how]
    with pytest.raises(expected) as caught:
        build(narrow_exp)
    assert caught.value.__traceback__ is not None
    assert made
    assert [builder() for builder in made] == [None] * len(made)


def test_a_half_exp_stops_the_build(build: Any) -> None:
    with pytest.raises(EngineBuildError, match=r"unary\.exp '.*' between the decoder and"):
        build(narrow_exp)


def test_a_half_mean_stops_the_build(build: Any) -> None:
    def narrow(graph: Any) -> None:
        (node,) = (n for n in graph.node if n.op_type == "ReduceMean")
        index = list(graph.node).index(node)
        source = node.input[0]
        graph.node.insert(
            index, helper.make_node("Cast", [source], ["narrow"], to=TensorProto.FLOAT16)
        )
        node.input[0] = "narrow"
        (out,) = node.output
        node.output[0] = "narrow_mean"
        graph.node.insert(
            index + 2, helper.make_node("Cast", ["narrow_mean"], [out], to=TensorProto.FLOAT)
        )

    with pytest.raises(EngineBuildError, match=r"reduce\.avg"):
        build(narrow)


def parsed(graph: Any, tmp_path: Path) -> list[Layer]:
    """Layers of an ONNX graph as TensorRT-RTX parses it."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from export.engine_options import network_flags
    from export.trt_library import make_logger

    path = tmp_path / "graph.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    logger = make_logger(trt, [])
    network = trt.Builder(logger).create_network(network_flags(trt))
    assert trt.OnnxParser(network, logger).parse_from_file(str(path))
    return engine_audit.layers_of(trt, network)


def test_layers_are_read_with_their_operations(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float16), "w")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Exp", ["f"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])],
        [weight],
    )
    layers = parsed(graph, tmp_path)
    assert counted(layers) == {
        "cast": {"FLOAT": 1},
        "convolution": {"HALF": 1},
        "unary.exp": {"FLOAT": 1},
    }
    assert described(counted(layers)) == "1 convolution HALF, 1 unary.exp FLOAT"
    assert list(problems("unet_step", layers, "y", FP16, FP16)) == []
    (told,) = problems("unet_step", layers, "y", FP32, FP32)
    assert "is HALF in a graph of precision fp32" in told


def chain(*kinds: str, dtype: str = "FLOAT") -> list[Layer]:
    """Layers one behind the other, from tensor ``0`` to the tensor of the last number."""
    return [
        Layer(kind=kind, name=kind, inputs={str(i): dtype}, outputs={str(i + 1): dtype})
        for i, kind in enumerate(kinds)
    ]


def test_a_decoder_without_its_exp_is_told() -> None:
    layers = chain("convolution", "reduce.avg", "activation.clip", "elementwise")
    told = list(problems("depth_decoder", layers, "4", FP32, FP32))
    assert told == ["there is no unary.exp between the decoder and the depth"]


def test_what_lies_before_the_last_convolution_is_no_tail() -> None:
    decoder = chain("unary.exp", dtype="HALF")
    layers = [
        *decoder,
        Layer(kind="convolution", name="c", inputs={"1": "HALF"}, outputs={"2": "HALF"}),
        Layer(kind="cast", name="k", inputs={"2": "HALF"}, outputs={"3": "FLOAT"}),
        Layer(kind="reduce.avg", name="m", inputs={"3": "FLOAT"}, outputs={"4": "FLOAT"}),
        Layer(kind="activation.clip", name="p", inputs={"4": "FLOAT"}, outputs={"5": "FLOAT"}),
        Layer(kind="unary.exp", name="e", inputs={"5": "FLOAT"}, outputs={"6": "FLOAT"}),
    ]
    assert list(problems("depth_decoder", layers, "6", FP16, FP16)) == []


def products(dtype: str) -> list[Layer]:
    """A product with a weight, and one of two activations as attention is made of."""
    return [
        Layer(kind="constant", name="k", inputs={}, outputs={"w": "HALF"}),
        Layer(kind="unsqueeze", name="u", inputs={"w": "HALF"}, outputs={"w1": "HALF"}),
        Layer(
            kind="matrix_multiply", name="linear", inputs={"x": "HALF", "w1": "HALF"},
            outputs={"q": "HALF"},
        ),
        Layer(
            kind="matrix_multiply", name="scores", inputs={"q": dtype, "p": dtype},
            outputs={"s": dtype},
        ),
        Layer(kind="attention_input", name="fused", inputs={"q": dtype}, outputs={"a": dtype}),
    ]  # fmt: skip


def test_rounding_on_the_way_to_the_depth_is_told() -> None:
    layers = chain("convolution", "reduce.avg", "activation.clip", "unary.exp")
    layers += [
        Layer(kind="cast", name="narrow", inputs={"4": "FLOAT"}, outputs={"5": "HALF"}),
        Layer(kind="cast", name="wide", inputs={"5": "HALF"}, outputs={"6": "FLOAT"}),
    ]
    told = list(problems("depth_decoder", layers, "6", FP32, FP32))
    assert told == ["cast 'narrow' between the decoder and the depth is HALF, not FLOAT"]


@pytest.mark.parametrize(("attention", "dtype"), [(FP16, "HALF"), (FP32, "FLOAT")])
def test_attention_has_a_precision_of_its_own(attention: Precision, dtype: str) -> None:
    assert list(problems("unet_step", products(dtype), "a", FP16, attention)) == []
    other = {"HALF": "FLOAT", "FLOAT": "HALF"}[dtype]
    told = list(problems("unet_step", products(other), "a", FP16, attention))
    assert [t.split("'")[1] for t in told] == ["scores", "fused"]


def test_quantised_graphs_keep_what_they_like_but_the_tail() -> None:
    quantised: Any = "int8-weights"
    assert list(problems("unet_step", chain("convolution"), "1", quantised, FP32)) == []
    layers = chain("convolution", "reduce.avg", "activation.clip", "unary.exp", dtype="HALF")
    told = list(problems("depth_decoder", layers, "4", quantised, FP32))
    assert len(told) == 3


def test_the_inspectors_answer_is_counted() -> None:
    """In the form of TensorRT's own documentation; no engine was inspected on a GPU."""
    told = """{"Layers": [
      {"Name": "conv1 + relu", "LayerType": "CaskConvolution",
       "Inputs": [{"Name": "x", "Format/Datatype": "Half"}],
       "Outputs": [{"Name": "y", "Format/Datatype": "Half"}]},
      {"Name": "exp", "LayerType": "kgen", "Inputs": [],
       "Outputs": [{"Name": "z", "Format/Datatype": "Float"}]},
      {"Name": "signal", "LayerType": "signal", "Inputs": [], "Outputs": []}
    ], "Bindings": ["x", "z"]}"""
    assert inspector_counts(told) == {
        "CaskConvolution": {"Half": 1},
        "kgen": {"Float": 1},
        "signal": {"none": 1},
    }
