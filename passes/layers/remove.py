"""Taking a block out of a graph: its input is handed on, with the mean of what is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g

if TYPE_CHECKING:
    from passes.layers.blocks import Block

Array = np.ndarray[Any, Any]
_NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt")


_BIASES = {"Conv": 2, "Gemm": 2, "BatchNormalization": 2}
"""Position of the bias of layers whose outputs it is added to, by channel."""


def remove(model: ir.Model, block: Block, mean: Array | None, axis: int) -> int:
    """Take a block out.

    Args:
        model: Edited in place.
        block: Of this very model.
        mean: Of output minus input by channel, float64 (channels,), to be added; None: nothing.
        axis: Of the channels.

    Returns:
        How many nodes are gone.
    """
    before = len(model.graph)
    constants = [v for node in block.nodes for v in node.inputs if v is not None]
    given, made = block.given, block.made
    if mean is not None and mean.any():
        given = _with_mean(model, block, mean, axis)
    done = g.redirect(made, given)
    assert done, "blocks whose input cannot be handed on are never found"
    _drop_relu(given)
    model.graph.remove(list(block.nodes), safe=True)
    _drop_unused(model, constants)
    return before - len(model.graph)


def _with_mean(model: ir.Model, block: Block, mean: Array, axis: int) -> ir.Value:
    """Return the input of the block with the mean added: into a bias, else by a node."""
    given = block.given
    inside = set(block.nodes)
    if all(use.node in inside for use in given.uses()) and _absorb(model, given, mean, axis):
        return given
    constant = g.add_initializer(
        model.graph, f"{given.name}_mean", _vector(block.made, mean, axis, given)
    )
    output = ir.Value(name=g.Names(model).fresh(f"{given.name}_shifted"), type=given.type)
    node = ir.Node("", "Add", [given, constant], outputs=[output], name=output.name)
    block.node.graph.insert_before(block.node, node)  # type: ignore[union-attr]
    return output


def _vector(made: ir.Value, mean: Array, axis: int, given: ir.Value) -> Array:
    kind = made.dtype or given.dtype or ir.DataType.FLOAT
    return mean.astype(kind.numpy()).reshape(-1, *[1] * (-axis - 1))


def _absorb(model: ir.Model, value: ir.Value, mean: Array, axis: int) -> bool:
    """Add a mean to the bias of the layer that makes a value; False when there is none."""
    node = value.producer()
    if node is None or value.is_graph_output():
        return False
    if g.is_op(node, *_BIASES):
        scaled = node.attributes.get_float("beta", 1.0) != 1.0
        if scaled or (axis == -1) != (node.op_type == "Gemm"):
            return False
        position = _BIASES[node.op_type]
        return position < len(node.inputs) and _shift(model, node, position, mean)
    if not g.is_op(node, "Add"):
        return False
    for position, operand in enumerate(node.inputs):
        if g.constant(operand) is not None:
            return axis == -1 and _shift(model, node, position, mean)
    return any(
        operand is not None and len(operand.uses()) == 1 and _absorb(model, operand, mean, axis)
        for operand in reversed(node.inputs)
    )


def _shift(model: ir.Model, node: ir.Node, position: int, mean: Array) -> bool:
    value = node.inputs[position]
    array = g.constant_array(value)
    if value is None or array is None or array.shape != mean.shape or array.dtype.kind != "f":
        return False
    moved = (array.astype(np.float64) + mean).astype(array.dtype)
    fresh = g.add_initializer(model.graph, f"{value.name}_shifted", moved)
    node.replace_input_with(position, fresh)
    _drop_unused(model, [value])
    return True


def _drop_relu(value: ir.Value) -> None:
    """Let users of Relu read the value itself where it is never negative."""
    producer = value.producer()
    if producer is None or not g.is_op(producer, *_NOT_NEGATIVE):
        return
    for use in list(value.uses()):
        node = use.node
        if (
            g.is_op(node, "Relu")
            and node.graph is producer.graph
            and g.redirect(node.outputs[0], value)
        ):
            assert node.graph is not None
            node.graph.remove(node, safe=True)


def _drop_unused(model: ir.Model, values: list[ir.Value]) -> None:
    """Remove constants that nobody reads any more."""
    for value in values:
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        if value.is_initializer():
            model.graph.initializers.pop(value.name or "", None)
        else:
            producer = value.producer()
            if g.is_op(producer, "Constant") and producer is not None and producer.graph:
                producer.graph.remove(producer, safe=True)
