"""What a graph should not carry is counted and removed; exported graphs carry nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from toy import toy_model

from export.clean import check_clean, clean, leftovers
from export.components import build_components
from export.describe import describe
from export.graphs import export_graph
from export.half import to_half
from export.manifest import ExportError, read_manifest
from export.specs import COMPONENTS, UNET_STEP, Precision
from metricgold.config import ExportConfig
from metricgold.workspace import Workspace

DIRTY = {
    "identity": 1,
    "cast": 2,
    "constant": 2,
    "unused node": 1,
    "unused initializer": 1,
    "unused function": 1,
}


def dirty_graph() -> onnx.ModelProto:
    """``y = half(x + (a + b)) as float``, with one or two of everything that is not needed."""
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=1.0),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Cast", ["same"], ["cast"], to=full),
        helper.make_node("Add", ["cast", "sum"], ["added"]),
        helper.make_node("Mul", ["added", "c"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["rounded"], to=half),
        helper.make_node("Cast", ["rounded"], ["wide"], to=full),
        helper.make_node("Cast", ["wide"], ["narrow"], to=half),
        helper.make_node("Neg", ["x"], ["nobody"]),
        helper.make_node("Cast", ["narrow"], ["y"], to=full),
    ]
    weights = [
        numpy_helper.from_array(np.full(3, value, np.float32), name)
        for name, value in (("a", 0.1), ("b", 0.2), ("idle", 9.0))
    ]
    graph = helper.make_graph(
        nodes,
        "dirty",
        [helper.make_tensor_value_info("x", full, [3])],
        [helper.make_tensor_value_info("y", full, [3])],
        weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    idle = helper.make_function(
        "local", "idle", ["u"], ["v"], [helper.make_node("Neg", ["u"], ["v"])], opsets[:1]
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=[idle], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def outputs(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def test_every_kind_is_counted() -> None:
    assert leftovers(ir.from_proto(dirty_graph())) == DIRTY


def test_a_dirty_graph_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"dirty: .* not cleaned \(identity: 1, cast: 2"):
        check_clean(ir.from_proto(dirty_graph()), "dirty")


def test_cleaning_leaves_nothing_and_changes_no_value() -> None:
    model = ir.from_proto(dirty_graph())
    clean(model)
    check_clean(model, "cleaned")
    x = np.random.default_rng(0).standard_normal(3).astype(np.float32)
    np.testing.assert_array_equal(outputs(ir.to_proto(model), x), outputs(dirty_graph(), x))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Cast") == 2, "to half and back rounds: those two are needed"
    assert "Identity" not in kinds


def test_a_cast_that_rounds_is_no_leftover() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy"]
    graph = helper.make_graph(nodes, "rounds", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert leftovers(ir.from_proto(onnx.shape_inference.infer_shapes(model))) == {}


def test_from_input_to_output_an_identity_is_needed() -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "through", values[:1], values[1:])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert leftovers(model) == {}
    clean(model)
    assert len(model.graph) == 1


def test_exported_graphs_carry_nothing(exported: Workspace) -> None:
    graphs = read_manifest(exported.onnx).graphs()
    assert len(graphs) == 4
    for graph in graphs.values():
        assert leftovers(ir.load(exported.onnx / graph.onnx_file)) == {}
        onnx.checker.check_model(str(exported.onnx / graph.onnx_file), full_check=True)


@pytest.mark.parametrize(("opset", "widened"), [(20, False), (23, True)])
def test_graphs_in_half_precision_carry_nothing(
    export_config: ExportConfig, tmp_path: Path, opset: int, widened: bool
) -> None:
    """With attention in float32 there are casts around it, and they are needed."""
    config = export_config.model_copy(
        update={"opset": opset, "precision": "fp16", "dynamic": False}
    )
    model = toy_model()
    to_half(model, widened)
    manifest = describe(
        model, config, attention="fp32" if widened else "fp16", licence="", checkpoint_sha256=""
    )
    module = build_components(model, Precision.FP16)[UNET_STEP.name]
    graph = export_graph(module, COMPONENTS[UNET_STEP.name], tmp_path, config, manifest)
    found = ir.load(tmp_path / graph.onnx_file)
    assert leftovers(found) == {}
    around = [n for n in found.graph if n.op_type == "Attention"]
    assert {n.inputs[0].dtype for n in around} == ({ir.DataType.FLOAT} if widened else set())
