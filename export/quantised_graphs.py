"""Weights and activations of a graph in 8 bits, by the standard's QuantizeLinear pairs.

A quantised layer is a Conv, MatMul or Gemm with constant weights. Weights are stored in 8 bits,
scaled by output channel, and pass a DequantizeLinear; activations, scaled as a whole, pass a
QuantizeLinear and a DequantizeLinear. Zero points are zero, as TensorRT requires.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.specs import Precision

LAYER_TYPES = ("Conv", "MatMul", "Gemm")
FLOAT_LAYERS = {
    "conv_in, conv_out": "first and last convolution of every network",
    "quant_conv, post_quant_conv": "the convolutions beside the latent",
    "time_embedding, class_embedding, time_emb_proj": "what timestep and camera go through",
    "normalisation, activation functions, products inside attention": "operators without weights",
    "channel mean, clip, exp": "the depth decoder's end, in metres",
}
"""What stays in float32: name and what it is. The first three by the names of their weights."""
_FLOAT_WEIGHTS = re.compile(
    r"\.(conv_in|conv_out|quant_conv|post_quant_conv|time_embedding|class_embedding|time_emb_proj)\."
)


@dataclass(frozen=True)
class _Grid:
    """Numbers of 8 bits: their type and the largest."""

    dtype: type
    largest: float

    def scale(self, magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
        """What one is worth, so that ``magnitude`` is the largest."""
        return np.asarray(np.maximum(magnitude, 1e-12) / self.largest, np.float32)

    def nearest(self, values: NDArray[np.floating]) -> NDArray[np.generic]:
        """``values``, at most the largest, as numbers of 8 bits."""
        whole = np.rint(values) if self.dtype is np.int8 else values
        return np.clip(whole, -self.largest, self.largest).astype(self.dtype)


_GRIDS = {
    Precision.INT8_WEIGHTS: _Grid(np.int8, 127.0),
    Precision.INT8: _Grid(np.int8, 127.0),
    Precision.FP8: _Grid(ml_dtypes.float8_e4m3fn, 448.0),
}


def layers(model: ir.Model) -> list[ir.Node]:
    """Those that are quantised, in order."""
    return [node for node in model.graph if _has_weights(node) and not _stays_float(node)]


def count_layers(model: ir.Model) -> int:
    """All layers with weights, quantised or not."""
    return sum(_has_weights(node) for node in model.graph)


def quantise(
    model: ir.Model, precision: Precision, ranges: Mapping[str, float] | None = None
) -> int:
    """Put the layers' weights, and with ``ranges`` their inputs, into 8 bits, in place.

    Args:
        ranges: largest magnitude of activations by name; None leaves them in float32.

    Returns:
        How many layers.
    """
    grid, done = _GRIDS[precision], 0
    weights: dict[str, ir.Value] = {}
    activations: dict[str, ir.Value] = {}
    for node in layers(model):
        activation, weight = node.inputs[0], node.inputs[1]
        assert activation is not None
        assert weight is not None
        name = str(weight.name)
        if name not in weights:
            weights[name] = _weight(node, weight, grid)
        node.replace_input_with(1, weights[name])
        name = str(activation.name)
        if ranges is not None:
            if name not in activations:
                activations[name] = _activation(node, activation, grid, ranges[name])
            node.replace_input_with(0, activations[name])
        done += 1
    for name in weights:
        del model.graph.initializers[name]
    return done


def _has_weights(node: ir.Node) -> bool:
    return (
        node.op_type in LAYER_TYPES
        and len(node.inputs) > 1
        and node.inputs[1] is not None
        and node.inputs[1].is_initializer()
    )


def _stays_float(node: ir.Node) -> bool:
    weight = node.inputs[1]
    assert weight is not None
    return bool(_FLOAT_WEIGHTS.search(f".{weight.name}"))


def _output_axis(node: ir.Node, weight: ir.Value) -> int:
    """The axis of the weights that counts the layer's outputs."""
    if node.op_type == "Conv":
        return 0
    transposed = node.attributes.get("transB")
    if transposed is not None and transposed.as_int():
        return 0
    assert weight.shape is not None
    return len(weight.shape) - 1


def _weight(node: ir.Node, weight: ir.Value, grid: _Grid) -> ir.Value:
    assert weight.const_value is not None
    values, axis = weight.const_value.numpy(), _output_axis(node, weight)
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = grid.scale(np.abs(values).max(axis=others))
    small = grid.nearest(values / np.expand_dims(scale, others))
    inputs = _constants(node, f"{weight.name}", small, scale, np.zeros(scale.shape, grid.dtype))
    return _added(node, "DequantizeLinear", inputs, f"{weight.name}_dequantised", weight, axis)


def _activation(node: ir.Node, activation: ir.Value, grid: _Grid, magnitude: float) -> ir.Value:
    name, largest = str(activation.name), np.array(magnitude, np.float32)
    zero: NDArray[np.generic] = np.zeros((), grid.dtype)
    scale, zero_point = _constants(node, name, None, grid.scale(largest), zero)
    inputs = [activation, scale, zero_point]
    small = _added(node, "QuantizeLinear", inputs, f"{name}_quantised", activation)
    small.type = zero_point.type
    inputs = [small, scale, zero_point]
    return _added(node, "DequantizeLinear", inputs, f"{name}_dequantised", activation)


def _constants(
    node: ir.Node,
    name: str,
    small: NDArray[np.generic] | None,
    scale: NDArray[np.float32],
    zero: NDArray[np.generic],
) -> list[ir.Value]:
    """Initializers of a pair."""
    made = []
    for suffix, array in (("quantised", small), ("scale", scale), ("zero_point", zero)):
        if array is not None:
            tensor = ir.tensor(np.asarray(array, order="C"), name=f"{name}_{suffix}")
            made.append(
                ir.Value(
                    name=tensor.name,
                    shape=ir.Shape(array.shape),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
            )
            assert node.graph is not None
            node.graph.register_initializer(made[-1])
    return made


def _added(
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    name: str,
    like: ir.Value,
    axis: int | None = None,
) -> ir.Value:
    """Output of a new node before ``node``, of the shape and type of ``like``."""
    attributes = {} if axis is None else {"axis": axis}
    new = ir.node(op_type, inputs, attributes, name=f"node_{name}")
    (output,) = new.outputs
    output.name, output.shape, output.type = name, like.shape, like.type
    assert node.graph is not None
    node.graph.insert_before(node, new)
    return output
