"""What an exported graph should not carry: counted, and removed."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from export.manifest import ExportError

FOLDED_ELEMENTS = 2**28
"""Constants up to this many elements are computed at export: SD 2's largest weight has 2^24."""
_ROUNDS = 3
_LEFT_ALONE = {"QuantizeLinear", "DequantizeLinear"}
_RANDOM = {"Bernoulli", "Multinomial"}
_FLOATS = ir.DataType
_EXACT = {
    (_FLOATS.FLOAT16, _FLOATS.FLOAT),
    (_FLOATS.FLOAT16, _FLOATS.DOUBLE),
    (_FLOATS.BFLOAT16, _FLOATS.FLOAT),
    (_FLOATS.BFLOAT16, _FLOATS.DOUBLE),
    (_FLOATS.FLOAT, _FLOATS.DOUBLE),
    (_FLOATS.INT32, _FLOATS.INT64),
}
"""From and to: every value keeps its exact worth, so a cast that follows may start from it."""


def leftovers(model: ir.Model) -> dict[str, int]:
    """How many of each there are; empty for a clean graph.

    ``identity``; ``cast``: to the type a value has, or by way of a wider type; ``constant``: nodes
    whose result does not depend on the graph's inputs, dequantised weights apart; ``unused node``,
    ``unused initializer``: no output needs them; ``unused function``.
    """
    counts = {
        "identity": sum(_is_identity(node) for node in model.graph.all_nodes()),
        "cast": sum(_is_needless_cast(node) for node in model.graph.all_nodes()),
        "constant": sum(_is_constant(node) for node in model.graph.all_nodes()),
        "unused node": sum(_is_unused(node) for node in model.graph.all_nodes()),
        "unused initializer": sum(
            not value.uses() and not value.is_graph_output()
            for value in model.graph.initializers.values()
        ),
        "unused function": len(_unused_functions(model)),
    }
    return {kind: count for kind, count in counts.items() if count}


def clean(model: ir.Model) -> None:
    """Remove them, in place; what the graph computes stays the same."""
    for _ in range(_ROUNDS):
        if not leftovers(model):
            return
        optimizer.fold_constants(
            model,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=lambda node: None if node.op_type in _LEFT_ALONE else _is_constant(node),
        )
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        for node in list(model.graph.all_nodes()):
            _without_needless_cast(node)
        common.IdentityEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedFunctionsPass()(model)


def check_clean(model: ir.Model, name: str) -> None:
    """Refuse a graph that still has leftovers.

    Raises:
        ExportError: names the graph and what is left how often.
    """
    found = leftovers(model)
    if found:
        counted = ", ".join(f"{kind}: {count}" for kind, count in found.items())
        raise ExportError(
            f"{name}: the exported graph was not cleaned ({counted}); export with another --opset"
        )


def _is_identity(node: ir.Node) -> bool:
    """Whether it does nothing. From an input straight to an output it is needed."""
    if node.op_type != "Identity" or node.domain != "":
        return False
    source, (result,) = node.inputs[0], node.outputs
    given = source is not None and (source.is_graph_input() or source.is_initializer())
    return not (given and result.is_graph_output())


def _is_needless_cast(node: ir.Node) -> bool:
    return _same_type(node) or _wider_source(node) is not None


def _same_type(node: ir.Node) -> bool:
    if node.op_type != "Cast" or node.inputs[0] is None:
        return False
    given = node.inputs[0].dtype
    return given is not None and int(given) == node.attributes["to"].as_int()


def _wider_source(node: ir.Node) -> ir.Value | None:
    """What a cast of a cast may start from, where the first one changes no value."""
    if node.op_type != "Cast" or node.inputs[0] is None:
        return None
    first = node.inputs[0].producer()
    if first is None or first.op_type != "Cast" or first.inputs[0] is None:
        return None
    source = first.inputs[0]
    wider = ir.DataType(first.attributes["to"].as_int())
    return source if (source.dtype, wider) in _EXACT else None


def _without_needless_cast(node: ir.Node) -> None:
    source = _wider_source(node)
    if source is not None:
        node.replace_input_with(0, source)
    if _same_type(node):
        node.op_type = "Identity"
        node.attributes.clear()


def _is_constant(node: ir.Node) -> bool:
    """Whether its result could have been computed at export."""
    if node.op_type in _LEFT_ALONE | _RANDOM or node.op_type.startswith("Random"):
        return False
    inputs = [value for value in node.inputs if value is not None]
    if not inputs:
        return node.op_type == "Constant"
    return all(value.const_value is not None for value in inputs)


def _is_unused(node: ir.Node) -> bool:
    return not any(value.uses() or value.is_graph_output() for value in node.outputs)


def _unused_functions(model: ir.Model) -> list[ir.OperatorIdentifier]:
    nodes = [*model.graph.all_nodes()]
    for function in model.functions.values():
        nodes += function.all_nodes()
    called = {node.op_identifier() for node in nodes}
    return [name for name in model.functions if name not in called]
