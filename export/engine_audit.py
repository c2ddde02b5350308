"""Is every layer in the precision it should be? Counted, and judged before an engine is built.

What is judged is the strongly typed network after parsing: its layers and the element types of
their tensors, which the builder of such a network must keep. Reading them needs no GPU. What the
engine inspector says of the finished engine, whose layers are fused and renamed, is written down
beside it where a GPU lets the engine be loaded, and judges nothing.

In an fp16 graph convolutions, matrix products and attention are half precision; attention alone
is float32 in one that says so. The decoder's channel mean, clip and exp are float32 in any graph,
and nothing between them and the depth is rounded to less. Of quantised graphs, which keep some
layers in float32 by choice, only this last is demanded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from export.manifest import BackendUnavailableError
from export.specs import DEPTH_DECODER, ONE_STEP, Precision
from export.trt_library import TrtLibrary

HEAVY = ("convolution", "deconvolution", "matrix_multiply", "attention_input", "einsum")
"""Kinds of layers that do nearly all of the arithmetic."""
TAIL = ("reduce.avg", "activation.clip", "unary.exp")
"""What turns a decoded picture into metres: mean over the channels, clip to [-1, 1], exp."""
_WANTED = {Precision.FP32: ("FLOAT",), Precision.FP16: ("HALF", "BF16")}
_FLOATING = ("FLOAT", "HALF", "BF16", "FP8")
_OPERATIONS = {
    "unary": ("IUnaryLayer", "op"),
    "reduce": ("IReduceLayer", "op"),
    "activation": ("IActivationLayer", "type"),
}
"""Kinds that stand for many operations, and where which of them is said."""

Counts = dict[str, dict[str, int]]
"""Kind of layer to element type of its output to number of layers."""


@dataclass(frozen=True)
class Layer:
    """One layer of a network: its kind, and names and element types of what goes in and out."""

    kind: str
    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def dtype(self) -> str:
        """Of its output."""
        return next(iter(self.outputs.values()), "")


def layers_of(trt: Any, network: Any) -> list[Layer]:
    """All layers of an ``INetworkDefinition``."""
    return [_layer(trt, network.get_layer(index)) for index in range(network.num_layers)]


def counted(layers: Iterable[Layer]) -> Counts:
    """How many of each kind and element type; constants and integers (shapes) left out."""
    found = Counter(
        (x.kind, x.dtype) for x in layers if x.dtype in _FLOATING and x.kind != "constant"
    )
    counts: Counts = {}
    for (kind, dtype), number in sorted(found.items()):
        counts.setdefault(kind, {})[dtype] = number
    return counts


def described(counts: Counts) -> str:
    """The kinds that matter, in one phrase."""
    parts = []
    for kind in (*HEAVY, *TAIL):
        for dtype, number in counts.get(kind, {}).items():
            parts.append(f"{number} {kind.replace('_', ' ')} {dtype}")
    return ", ".join(parts)


def problems(
    component: str, layers: list[Layer], output: str, precision: Precision, attention: Precision
) -> Iterator[str]:
    """Every layer that is not in the precision it should be, in words.

    Args:
        output: name of the network's output tensor.
        precision: of the graph.
        attention: inside attention.
    """
    made_by = {tensor: layer for layer in layers for tensor in layer.outputs}
    for layer in layers:
        inside = _is_attention(layer, made_by)
        wanted = _WANTED.get(attention if inside else precision)
        if layer.kind in HEAVY and wanted and layer.dtype not in wanted:
            yield (
                f"{layer.kind.replace('_', ' ')} '{layer.name}' is {layer.dtype} in a graph of "
                f"precision {precision}" + (f" with attention {attention}" if inside else "")
            )
    if component not in (DEPTH_DECODER.name, ONE_STEP.name):
        return
    tail = _tail(made_by, output)
    for layer in tail:
        narrowed = layer.kind == "cast" and "FLOAT" in layer.inputs.values()
        if layer.dtype != "FLOAT" and (narrowed or layer.kind in TAIL):
            yield (
                f"{layer.kind} '{layer.name}' between the decoder and the depth is {layer.dtype}, "
                "not FLOAT"
            )
    kinds = [layer.kind for layer in tail]
    for kind in TAIL:
        if kind not in kinds:
            yield f"there is no {kind} between the decoder and the depth"


def inspected(library: TrtLibrary, serialized: Any, logger: Any) -> tuple[Counts | None, str]:
    """What the engine inspector counts in a built engine, or None and why it cannot be asked."""
    try:
        trt = library.load_for_running()
    except BackendUnavailableError as reason:
        return None, str(reason)
    engine = trt.Runtime(logger).deserialize_cuda_engine(serialized)
    if engine is None:
        return None, "this GPU does not load it"
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return inspector_counts(told), ""
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"the inspector's answer was not understood ({error})"


def inspector_counts(told: str) -> Counts:
    """Of the inspector's JSON: ``LayerType`` and the ``Format/Datatype`` of the first output."""
    counts: Counts = {}
    for layer in json.loads(told)["Layers"]:
        outputs = layer.get("Outputs") or [{}]
        by_type = counts.setdefault(layer["LayerType"], {})
        dtype = outputs[0].get("Format/Datatype", "none")
        by_type[dtype] = by_type.get(dtype, 0) + 1
    return counts


def _layer(trt: Any, layer: Any) -> Layer:
    kind = layer.type.name.lower()
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    name = layer.name
    if kind in _OPERATIONS:
        wrapper, attribute = _OPERATIONS[kind]
        layer.__class__ = getattr(trt, wrapper)
        kind = f"{kind}.{getattr(layer, attribute).name.lower()}"
    return Layer(
        kind=kind,
        name=name,
        inputs={tensor.name: tensor.dtype.name for tensor in inputs if tensor is not None},
        outputs={tensor.name: tensor.dtype.name for tensor in outputs},
    )


def _is_attention(layer: Layer, made_by: Mapping[str, Layer]) -> bool:
    """Attention itself, or the product of two activations that a parser made of it."""
    if layer.kind == "attention_input":
        return True
    return layer.kind == "matrix_multiply" and not any(
        _is_weight(tensor, made_by) for tensor in layer.inputs
    )


def _is_weight(tensor: str, made_by: Mapping[str, Layer]) -> bool:
    """Whether nothing but constants and changes of shape and type make a tensor."""
    layer = made_by.get(tensor)
    while layer is not None and layer.kind in ("shuffle", "unsqueeze", "squeeze", "cast"):
        layer = made_by.get(next(iter(layer.inputs)))
    return layer is not None and layer.kind == "constant"


def _tail(made_by: Mapping[str, Layer], output: str) -> list[Layer]:
    """What lies between a network's output and the last convolution, the output's side first."""
    found: dict[str, Layer] = {}
    waiting = [output]
    while waiting:
        layer = made_by.get(waiting.pop(0))
        if layer is None or layer.kind in HEAVY or layer.name in found:
            continue
        if layer.dtype in _FLOATING:
            found[layer.name] = layer
            waiting += layer.inputs
    return list(found.values())
