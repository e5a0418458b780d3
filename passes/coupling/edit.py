"""Adding constants and nodes to a model that is being cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g

Array = np.ndarray[Any, Any]


class Edit:
    """Adds constants and nodes under names that nothing in the model has.

    Args:
        model: Changed in place.

    Attributes:
        vectors: Sizes that were written, by what they were made of.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = g.opset(model)
        self.vectors: dict[tuple[ir.Value, tuple[object, ...], str], ir.Value] = {}
        self._names: g.Names | None = None

    def name(self, base: str) -> str:
        """Return a new name."""
        if self._names is None:  # costs a walk over the model
            self._names = g.Names(self.model)
        return self._names.fresh(base)

    def constant(self, base: str, array: Array) -> ir.Value:
        """Add an initializer."""
        return g.add_initializer(self.graph, self.name(base), np.asarray(array, order="C"))

    def before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Insert a node with one output in front of another."""
        made = ir.node(op_type, inputs, attributes or {}, name=self.name(f"{node.name or 'cut'}_x"))
        made.outputs[0].name = self.name(f"{made.name}_out")
        self.graph.insert_before(node, made)
        return made.outputs[0]

    def replace(self, node: ir.Node, position: int, array: Array) -> None:
        """Give one use of a constant another content; other uses keep theirs.

        The input is filled with a new constant where there was none or where it is computed.
        """
        value = node.inputs[position] if position < len(node.inputs) else None
        own = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
        if own and value is not None and g.constant(value) is not None:
            set_constant(value, array)
            return
        base = f"{node.name or node.outputs[0].name or node.op_type}_{position}"
        self.connect(node, position, self.constant(base, array))

    def connect(self, node: ir.Node, position: int, value: ir.Value) -> None:
        """Let an input of a node read another value; the input may have been absent."""
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, value)


def set_constant(value: ir.Value, array: Array) -> None:
    """Give a constant new contents: an initializer or a Constant node with a tensor."""
    tensor = ir.tensor(array, name=value.name)
    g.replace_tensor(value, tensor)
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(tensor.shape.numpy())
