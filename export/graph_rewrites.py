"""Forms of a graph's parts that run faster and are the same: standard operators, in any runtime.

Each is applied after the export and held to the same parity as everything else.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.specs import Precision


def rewrite(graph: ir.Model, precision: Precision) -> None:
    """Apply what suits the arithmetic, in place."""
    if precision is Precision.FP32:
        split_group_norms(graph)


def split_group_norms(model: ir.Model) -> None:
    """Group normalisation as one scale and one shift a channel: ``y = s x + t``.

    With a group's mean ``m`` and variance ``v = E[x^2] - m^2``, ``s = w / sqrt(v + eps)`` and
    ``t = b - s m``. ONNX Runtime has no kernel for ``GroupNormalization`` on the CPU: it
    runs the operator's definition, eight operators over the whole picture, among them a cast that
    changes nothing. Here there are five, and the rest is done with a number a channel. Not for
    half precision, where the operator itself says that sums are made in float32.
    """
    for node in list(model.graph):
        if node.op_type == "GroupNormalization" and node.domain == "":
            _split(model.graph, node)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    value, weight, bias = node.inputs
    assert value is not None
    weights, biases = _constant(weight), _constant(bias)
    groups = node.attributes["num_groups"].as_int()
    epsilon = node.attributes["epsilon"].as_float()
    channels = len(weights)
    prefix = node.outputs[0].name
    added: list[ir.Node] = []

    def constant(name: str, content: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(content, name=f"{prefix}/{name}")
        found = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
        found.shape = ir.Shape(content.shape)
        graph.register_initializer(found)
        return found

    def apply(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = ir.node(operator, inputs, attributes=attributes)
        output = made.outputs[0]
        output.name = f"{prefix}/{len(added)}"
        added.append(made)
        return output

    def a_channel(name: str, content: NDArray[np.float32]) -> ir.Value:
        return constant(name, content.reshape(1, groups, channels // groups))

    last = constant("axis", np.array([2], np.int64))
    members = apply("Reshape", value, constant("members", np.array([0, groups, -1], np.int64)))
    mean = apply("ReduceMean", members, last, keepdims=1)  # [B, G, 1]
    mean_square = apply("ReduceMean", apply("Mul", members, members), last, keepdims=1)
    variance = apply("Sub", mean_square, apply("Mul", mean, mean))
    epsilons = constant("epsilon", np.array([epsilon], np.float32))
    deviation = apply("Sqrt", apply("Add", variance, epsilons))
    scale = apply("Div", a_channel("weight", weights), deviation)  # [B, G, C / G]
    shift = apply("Sub", a_channel("bias", biases), apply("Mul", mean, scale))
    to_channels = constant("channels", np.array([0, channels, 1, 1], np.int64))
    scaled = apply("Mul", value, apply("Reshape", scale, to_channels))
    shifted = apply("Add", scaled, apply("Reshape", shift, to_channels))
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], added, list(node.outputs), [shifted]
    )


def _constant(value: ir.Value | None) -> NDArray[np.float32]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
