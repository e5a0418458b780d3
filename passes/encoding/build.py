"""New nodes and constants in front of a graph, under names that nobody has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g

Array = np.ndarray[Any, Any]


class Builder:
    """Adds constants and nodes to one graph.

    Args:
        graph: The graph; constants become its initializers.
        names: Names of the whole model.
        opset: Version of the default operator set.
        anchor: New nodes stand before this node; None: before all.
        stem: Start of the names of nodes for which nobody asks for another one.

    Attributes:
        shared: Values that several decoders of this graph read, by what they hold.
    """

    def __init__(
        self,
        graph: ir.Graph,
        names: g.Names,
        opset: int,
        anchor: ir.Node | None = None,
        stem: str = "decode",
    ) -> None:
        self.graph = graph
        self.opset = opset
        self.shared: dict[str, ir.Value] = {}
        self._names = names
        self._anchor = anchor
        self._stem = names.fresh(stem)
        self._count = 0

    def before(self, node: ir.Node) -> Builder:
        """Return a builder that puts nodes right before ``node``."""
        graph = node.graph if isinstance(node.graph, ir.Graph) else self.graph
        return Builder(graph, self._names, self.opset, node)

    def constant(self, name: str, data: Array | ir.TensorProtocol) -> ir.Value:
        """Add an initializer."""
        return g.add_initializer(self.graph, self._names.fresh(name), data)

    def scalar(self, number: float, kind: ir.DataType) -> ir.Value:
        """Return an initializer that holds one number; equal ones are shared."""
        return self._shared(
            f"decode_{kind.name.lower()}_{number:g}", np.asarray(number, kind.numpy())
        )

    def sizes(self, dims: Sequence[int]) -> ir.Value:
        """Return an int64 vector; equal ones are shared."""
        name = "decode_shape_" + "x".join(str(dim) for dim in dims)
        return self._shared(name, np.asarray(dims, np.int64))

    def _shared(self, name: str, data: Array) -> ir.Value:
        """Return the initializer of this name and these elements; make it if there is none."""
        present = self.graph.initializers.get(name)
        found = None if present is None else g.constant_array(present)
        equal = found is not None and found.dtype == data.dtype and np.array_equal(found, data)
        return present if present is not None and equal else self.constant(name, data)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        kind: ir.DataType,
        attributes: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> ir.Value:
        """Add a node with one output of type ``kind`` and return that.

        Names are short where nobody asks for one: a decoder has a dozen nodes, and names are much
        of what it adds to a file.
        """
        self._count += 1
        name = self._names.fresh(name or f"{self._stem}_{self._count}")
        output = ir.Value(name=name, type=ir.TensorType(kind))
        self.place(ir.node(op_type, inputs, dict(attributes or {}), outputs=[output], name=name))
        return output

    def part(self, value: ir.Value, start: int, end: int, kind: ir.DataType) -> ir.Value:
        """Return the elements ``start`` to ``end`` of a vector, with the Slice of this opset."""
        if self.opset < 10:
            attributes = {"starts": [start], "ends": [end], "axes": [0]}
            return self.node("Slice", [value], kind, attributes)
        return self.node("Slice", [value, self.sizes([start]), self.sizes([end])], kind)

    def place(self, node: ir.Node) -> None:
        """Put a node where new nodes go."""
        if self._anchor is None:
            first = next(iter(self.graph), None)
            if first is None:
                self.graph.append(node)
                return
            self._anchor = first
        self.graph.insert_before(self._anchor, [node])

    def fresh(self, name: str) -> str:
        """Return a name not used yet."""
        return self._names.fresh(name)


def owner(value: ir.Value, model: ir.Model) -> ir.Graph:
    """Return the graph in which a constant lives."""
    if value.is_initializer():
        return value.graph or model.graph
    producer = value.producer()
    graph = producer.graph if producer is not None else None
    return graph if isinstance(graph, ir.Graph) else model.graph


def replace(value: ir.Value, new: ir.Value) -> None:
    """Let every user of a constant read ``new`` instead, and drop the constant."""
    new.shape = value.shape
    ir.convenience.replace_all_uses_with(value, new)
    drop(value)


def drop(value: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    if value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is not None:
        if producer.graph is not None:
            producer.graph.remove(producer, safe=True)
    elif value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name, None)
