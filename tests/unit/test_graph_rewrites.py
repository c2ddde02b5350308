"""What is rewritten after the export computes the same, for any batch and size."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export import clean, graph_rewrites
from export.specs import COMPONENTS, Precision
from metricgold.workspace import Workspace

CHANNELS, GROUPS, EPSILON = 12, 4, 1e-6
RANDOM = np.random.default_rng(0)
WEIGHT, BIAS = (RANDOM.standard_normal(CHANNELS).astype(np.float32) for _ in range(2))


def normalisation(*sizes: str) -> ir.Model:
    """One group normalisation of [b, 12, h, w], or of other sizes."""
    shape = ["b", CHANNELS, *(sizes or ("h", "w"))]
    graph = helper.make_graph(
        [
            helper.make_node(
                "GroupNormalization", ["x", "w", "b"], ["y"], num_groups=GROUPS, epsilon=EPSILON
            )
        ],
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(BIAS, "b")],
    )
    opsets = [helper.make_opsetid("", 23)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(["y"], {"x": x})[0]


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 1, 2), (2, 64, 48)])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1e3, 1e4])
def test_a_split_group_norm_is_torchs(shape: tuple[int, int, int], offset: float) -> None:
    """However far the mean is from zero: up to what float32 can tell apart there."""
    batch, height, width = shape
    x = RANDOM.standard_normal((batch, CHANNELS, height, width)).astype(np.float32) + offset
    x = x.astype(np.float32)
    data, weight, bias = (torch.from_numpy(a).double() for a in (x, WEIGHT, BIAS))
    exact = torch.nn.functional.group_norm(data, GROUPS, weight, bias, EPSILON).numpy()
    single = [torch.from_numpy(a) for a in (x, WEIGHT, BIAS)]
    torchs = torch.nn.functional.group_norm(single[0], GROUPS, *single[1:], EPSILON).numpy()
    model = normalisation()
    graph_rewrites.rewrite(model, Precision.FP32)
    assert "GroupNormalization" not in {node.op_type for node in model.graph}
    clean.clean(model)
    clean.check_clean(model, "norm")
    found = run(model, x)
    bound = 2e-6 + 1e-6 * offset  # a mean has an error of its own last digit
    assert np.abs(found - exact).max() <= bound * np.abs(exact).max()
    assert np.abs(torchs - exact).max() <= bound * np.abs(exact).max()


def test_a_row_of_pixels_is_normalised_too() -> None:
    """[b, 12, n], as before the attention in the middle of Stable Diffusion's autoencoder."""
    x = RANDOM.standard_normal((2, CHANNELS, 35)).astype(np.float32)
    data, weight, bias = (torch.from_numpy(a) for a in (x, WEIGHT, BIAS))
    model = normalisation("n")
    graph_rewrites.rewrite(model, Precision.FP32)
    assert "GroupNormalization" not in {node.op_type for node in model.graph}
    expected = torch.nn.functional.group_norm(data, GROUPS, weight, bias, EPSILON).numpy()
    np.testing.assert_allclose(run(model, x), expected, atol=2e-6)


def test_the_operator_itself_loses_what_lies_far_from_zero() -> None:
    """Why it is split: its definition subtracts squares, and ONNX Runtime runs that."""
    x = (RANDOM.standard_normal((1, CHANNELS, 64, 48)) + 1e3).astype(np.float32)
    data, weight, bias = (torch.from_numpy(a).double() for a in (x, WEIGHT, BIAS))
    exact = torch.nn.functional.group_norm(data, GROUPS, weight, bias, EPSILON).numpy()
    assert not np.abs(run(normalisation(), x) - exact).max() < 0.01 * np.abs(exact).max()


def test_half_precision_keeps_the_operator() -> None:
    model = normalisation()
    graph_rewrites.rewrite(model, Precision.FP16)
    assert [node.op_type for node in model.graph] == ["GroupNormalization"]


def test_no_exported_graph_of_float32_has_one(exported: Workspace) -> None:
    for name in COMPONENTS:
        operators = [node.op_type for node in ir.load(exported.onnx / f"{name}.onnx").graph]
        assert "GroupNormalization" not in operators
        assert operators.count("InstanceNormalization") >= 2
