"""New constants and nodes: beside the constants that they replace, in any scope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.affine.grid import Array


def constant(
    names: g.Names, like: ir.Value, name: str, data: Array | ir.TensorProtocol
) -> ir.Value:
    """Store an array where the constant ``like`` lies; a function has no initializers."""
    tensor = ir.Tensor(data) if isinstance(data, np.ndarray) else data
    producer = like.producer()
    if producer is None:
        assert like.graph is not None
        return g.add_initializer(like.graph, names.fresh(name), tensor)
    value = ir.Value(
        name=names.fresh(name),
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
    )
    made = ir.Node(
        "",
        "Constant",
        [],
        [ir.AttrTensor("value", tensor)],
        outputs=[value],
        name=names.fresh(f"{value.name}_Constant"),
    )
    assert producer.graph is not None
    producer.graph.insert_before(producer, made)
    return value


def drop_unused(values: Sequence[ir.Value]) -> None:
    """Remove constants that nobody reads any more, with what only passed them on."""
    for value in dict.fromkeys(values):
        for node in tuple(value.consumers()):
            _drop_readers(node)
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer, graph = value.producer(), value.graph
        if producer is not None and producer.graph is not None:
            producer.graph.remove(producer, safe=True)
        elif graph is not None and value.name is not None and value.name in graph.initializers:
            del graph.initializers[value.name]


def _drop_readers(node: ir.Node) -> None:
    if not g.is_op(node, "Identity", "Transpose") or node.graph is None:
        return
    output = node.outputs[0]
    for user in tuple(output.consumers()):
        _drop_readers(user)
    if not output.uses() and not output.is_graph_output():
        node.graph.remove(node, safe=True)


class Builder:
    """Puts new nodes before another one.

    Args:
        names: Hands out names.
        anchor: The node that the new ones come before.
    """

    def __init__(self, names: g.Names, anchor: ir.Node) -> None:
        assert anchor.graph is not None
        self.names = names
        self._anchor = anchor
        self._graph: Any = anchor.graph

    def __call__(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node and return its only output, whose name starts with ``name``."""
        value = ir.Value(
            name=self.names.fresh(f"{name}_{op_type}"),
            type=ir.TensorType(dtype),
        )
        given = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        made = ir.Node(
            "", op_type, inputs, given, outputs=[value], name=self.names.fresh(f"{value.name}_node")
        )
        self._graph.insert_before(self._anchor, made)
        return value


def take_place(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Let everybody read ``new`` under the name of ``old``, the only output of ``node``."""
    name, shape = old.name, old.shape
    g.redirect(old, new)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    if new.name != name:
        old.name = f"{name}_replaced"
        new.name = name
    if new.shape is None:
        new.shape = shape
    new.metadata_props.update(old.metadata_props)
