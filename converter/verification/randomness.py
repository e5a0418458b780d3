"""Which outputs of a model depend on random numbers, read from its graph."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from converter.measure.size import read_structure

RANDOM_OPERATORS = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)
_DOMAINS = ("", "ai.onnx")


def random_outputs(path: Path) -> dict[str, str]:
    """Return the outputs that a random operator reaches, each with the reason.

    A seed attribute changes nothing: two runs of one session give different numbers all the same.
    """
    model, _ = read_structure(path)
    functions = {(f.domain, f.name): f for f in model.functions}
    random = _random_functions(functions)
    tainted = _spread(model.graph.node, random, {}, _constants(model.graph))
    return {o.name: tainted[o.name] for o in model.graph.output if o.name in tainted}


Key = tuple[str, str]


def _random_functions(functions: dict[Key, onnx.FunctionProto]) -> set[Key]:
    """Return the functions that hold a random operator, also through other functions."""
    found: set[Key] = set()
    while True:
        more = {
            key
            for key, function in functions.items()
            if key not in found and _spread(function.node, found, {}, {})
        }
        if not more:
            return found
        found |= more


def _spread(
    nodes: Iterable[onnx.NodeProto],
    random: set[Key],
    outer: dict[str, str],
    constants: dict[str, bool],
) -> dict[str, str]:
    """Return the random values of a scope with the reason; nodes are in topological order."""
    tainted = dict(outer)
    added: dict[str, str] = {}
    for node in nodes:
        reason = _reason(node, random, constants)
        reason = reason or next((tainted[name] for name in node.input if name in tainted), "")
        reason = reason or _inside(node, random, tainted, constants)
        if reason:
            for name in filter(None, node.output):
                tainted[name] = added[name] = reason
    return added


def _reason(node: onnx.NodeProto, random: set[Key], constants: dict[str, bool]) -> str:
    label = node.name or node.op_type
    if (node.domain, node.op_type) in random:
        return f"function {node.op_type} uses random numbers"
    if node.domain not in _DOMAINS:
        return ""
    if node.op_type in RANDOM_OPERATORS:
        return f"it depends on {label} ({node.op_type})"
    mode = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
    # a training mode that is no constant may be switched on
    if mode and constants.get(mode, True):
        return f"it depends on {label} (Dropout in training mode)"
    return ""


def _inside(
    node: onnx.NodeProto, random: set[Key], tainted: dict[str, str], constants: dict[str, bool]
) -> str:
    """Return the reason if a sub-graph makes or uses random numbers."""
    for attribute in node.attribute:
        bodies = [*attribute.graphs]
        if attribute.HasField("g"):
            bodies.append(attribute.g)
        for body in bodies:
            found = _spread(body.node, random, tainted, {**constants, **_constants(body)})
            for output in body.output:
                if output.name in found or output.name in tainted:
                    return found.get(output.name) or tainted[output.name]
    return ""


def _constants(graph: onnx.GraphProto) -> dict[str, bool]:
    """Return boolean scalars that nobody can change; a graph input can be."""
    inputs = {value.name for value in graph.input}
    tensors = {t.name: t for t in graph.initializer if t.name not in inputs}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in _DOMAINS:
            tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return {
        name: bool(onnx.numpy_helper.to_array(tensor).any())
        for name, tensor in tensors.items()
        if tensor.data_type == onnx.TensorProto.BOOL
        and tensor.data_location != onnx.TensorProto.EXTERNAL
    }
