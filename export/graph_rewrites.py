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
    """Group normalisation as instance normalisation of its groups, and an affine map.

    ONNX Runtime has no kernel for ``GroupNormalization`` on the CPU: it runs the operator's
    definition, eight operators over the whole picture, whose variance ``E[x^2] - E[x]^2`` cancels
    where the mean exceeds the deviation: at a thousand times it is negative, and the result NaN.
    Kernels of ``InstanceNormalization`` subtract the mean first, and there are three operators over
    the picture. Not for half precision: there the rounding of the input alone costs as much as
    the cancellation, a graph that gives NaN is not exported (:mod:`export.trial`), and TensorRT
    has a layer of its own for the operator.
    """
    for node in list(model.graph):
        if node.op_type == "GroupNormalization" and node.domain == "":
            value = node.inputs[0]
            if value is not None and value.shape is not None:  # its rank is known
                _split(model.graph, node, value, value.shape.rank())


def _split(graph: ir.Graph, node: ir.Node, value: ir.Value, rank: int) -> None:
    """``value`` is [B, C, H, W], or [B, C, N] before the attention of an autoencoder."""
    _, weight, bias = node.inputs
    weights, biases = _constant(weight), _constant(bias)
    groups = node.attributes["num_groups"].as_int()
    epsilon = node.attributes["epsilon"].as_float()
    prefix = node.outputs[0].name
    added: list[ir.Node] = []

    def constant(name: str, content: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(content, name=f"{prefix}/{name}")
        found = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
        found.shape = ir.Shape(content.shape)
        graph.register_initializer(found)
        return found

    def apply(operator: str, *inputs: ir.Value, **attributes: float) -> ir.Value:
        made = ir.node(operator, inputs, attributes=attributes)
        output = made.outputs[0]
        output.name = f"{prefix}/{len(added)}"
        added.append(made)
        return output

    def a_channel(name: str, content: NDArray[np.float32]) -> ir.Value:
        return constant(name, content.reshape(1, -1, *(1,) * (rank - 2)))

    members = apply("Reshape", value, constant("members", np.array([0, groups, -1], np.int64)))
    normal = apply(
        "InstanceNormalization",
        members,  # [B, G, C / G * H * W]
        constant("ones", np.ones(groups, np.float32)),
        constant("zeros", np.zeros(groups, np.float32)),
        epsilon=epsilon,
    )
    whole = apply("Reshape", normal, apply("Shape", value))
    scaled = apply("Mul", whole, a_channel("weight", weights))
    shifted = apply("Add", scaled, a_channel("bias", biases))
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], added, list(node.outputs), [shifted]
    )


def _constant(value: ir.Value | None) -> NDArray[np.float32]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
