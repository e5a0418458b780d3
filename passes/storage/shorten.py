"""Names around the nodes that quantize: long ones that nobody chose and nobody asks for."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from converter.core import graph as g
from converter.core.packed import is_decoder
from passes.rewriting.rename import renamed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

_STEM = "q"
_SHORT = 8
"""Characters of a name that may stay."""
_TAGS = 2
_ANNOTATED = "quant_parameter_tensor_names"
"""Key of notes that name scales and zero points by their names, in onnx_ir."""


def shorten(model: ir.Model) -> int:
    """Give short names to what quantizers add: their nodes, scales, zero points, inner values.

    Names of tensors that are stored as integers, of inputs and of outputs stay.

    Returns:
        About the bytes that they took.
    """
    nodes = [
        node
        for node in model.graph
        if g.is_op(node, "QuantizeLinear", "DequantizeLinear") and not is_decoder(node)
    ]
    if not nodes or any(value.meta.get(_ANNOTATED) for value in _values(model)):
        return 0
    names = g.Names(model)
    numbers = count(1)
    total = 0
    for node in nodes:
        total += len(node.name) + _TAGS if node.name else 0
        node.name = None
        for value in (*node.inputs[1:], *node.outputs):
            total += 0 if value is None else _rename(value, names, numbers, model.graph)
    return total


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in g.graphs(model):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _rename(value: ir.Value, names: g.Names, numbers: Iterator[int], graph: ir.Graph) -> int:
    old = value.name or ""
    if len(old) <= _SHORT or value.is_graph_output() or value.is_graph_input():
        return 0
    if value.is_initializer() and (value.graph is not graph or value.const_value is None):
        return 0
    new = names.fresh(f"{_STEM}{next(numbers)}")
    if value.const_value is not None and value.is_initializer():
        # The tensor has the name as well, and may be shared with other models.
        value.const_value = renamed(value.const_value, new)
    value.name = new
    return (len(old) - len(new)) * (1 + len(value.uses()))
