"""Where a factor per channel can go: into constants that are there already, never into a new node.

The value that matrix products read is followed back, through what a factor per channel passes
unchanged, to constants that take it up: scale and bias of a normalization, the weights and bias of
the layer before, constants of an activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.tensors import MappedTensor
from passes.affine.grid import Array
from passes.dynamic.store import constant, drop_unused

_DEPTH = 12
_SUFFIX = "_smoothed"
_PASSING = ("Relu", "LeakyRelu", "Identity")
_SHAPING = ("Erf", "Sigmoid", "Tanh", "Softplus", "Add", "Sub", "Mul", "Div")
NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True, eq=False)
class Edit:
    """A constant input that takes up factors.

    Attributes:
        node: The node that reads the constant.
        position: Of the constant among its inputs.
        power: 1: multiplied by the factors, -1: divided by them.
        axis: The axis of the channels in the constant, negative from the end.
    """

    node: ir.Node
    position: int
    power: int
    axis: int = -1


Trace = list[Edit] | str
"""All edits that divide a value by factors, or why there are none."""


def trace(value: ir.Value, channels: int, depth: int = 0) -> Trace:
    """Find the constants that divide a value by one factor per entry of its last axis.

    Args:
        value: Its other readers are the caller's concern.
        channels: Size of the last axis.
        depth: Nodes between the value and the one that was asked for.
    """
    node = value.producer()
    if node is None:
        return "its input is an input of the graph"
    if depth > _DEPTH:
        return "its input is made too far away"
    if node.op_type in NORMALIZATIONS:
        return _normalization(node, channels)
    if node.domain not in g.DEFAULT_DOMAINS:
        return f"{node.op_type} before it takes up no factors"
    if node.op_type in _PASSING:
        return _alone(node.inputs[0], channels, depth)
    rule = _RULES.get(node.op_type)
    return rule(node, channels, depth) if rule else f"{node.op_type} before it takes up no factors"


def _alone(value: ir.Value | None, channels: int, depth: int) -> Trace:
    """Go on with a value that nobody else reads."""
    if value is None:
        return "an input is missing"
    if len(tuple(value.uses())) != 1 or value.is_graph_output():
        return "others read what its input is made of"
    return trace(value, channels, depth + 1)


def _normalization(node: ir.Node, channels: int) -> Trace:
    axis = node.attributes.get_int("axis", -1)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axis != -1 and (shape is None or axis != len(shape) - 1):
        return "the normalization before it goes over several axes"
    edits = [Edit(node, i, -1) for i, v in enumerate(node.inputs) if i and v is not None]
    return edits if all(_takes(e, channels) for e in edits) else "a scale or bias is not constant"


def _takes(edit: Edit, channels: int) -> bool:
    """Tell whether the constant is float32 with one number per channel, or one for all."""
    tensor = g.constant(edit.node.inputs[edit.position])
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    return tensor.size in {1, channels} and (
        tensor.size == 1 or tensor.shape.numpy()[-1] == channels
    )


def _constant_position(node: ir.Node, channels: int) -> int | None:
    positions = [i for i in range(len(node.inputs)) if _takes(Edit(node, i, 1), channels)]
    return positions[0] if len(positions) == 1 else None


def _product(node: ir.Node, channels: int, depth: int) -> Trace:
    position = _constant_position(node, channels)
    if position is not None:
        return [Edit(node, position, -1)]
    found: Trace = "a product of activations before it takes up no factors"
    for one, other in ((0, 1), (1, 0)):
        if node.inputs[one] is node.inputs[other]:
            return found
        found = _alone(node.inputs[one], channels, depth)
        if not isinstance(found, str):
            return found
    for one, other in ((0, 1), (1, 0)):
        gated = _gated(node, node.inputs[one], node.inputs[other], channels, depth)
        if gated:
            return gated
    return found


def _gated(
    node: ir.Node, x: ir.Value | None, gate: ir.Value | None, channels: int, depth: int
) -> list[Edit]:
    """Follow x * f(c * x), such as GELU: c gives back to f what x loses."""
    entry = _entry(x, gate, channels)
    if x is None or entry is None or x.is_graph_output():
        return []
    if {use.node for use in x.uses()} != {node, entry.node} or len(tuple(x.uses())) != 2:
        return []
    before = trace(x, channels, depth + 1)
    return [] if isinstance(before, str) else [*before, entry]


def _entry(x: ir.Value | None, gate: ir.Value | None, channels: int) -> Edit | None:
    """Find the product with a constant through which x enters its own gate."""
    for _ in range(_DEPTH):
        node = gate.producer() if gate is not None else None
        if node is None or gate is None or not g.is_op(node, *_SHAPING):
            return None
        inner = [v for v in node.inputs if v is not None and g.constant(v) is None]
        if len(inner) != 1 or len(tuple(gate.uses())) != 1 or gate.is_graph_output():
            return None
        if inner[0] is x:
            return _scaling(node, channels)
        gate = inner[0]
    return None


def _scaling(node: ir.Node, channels: int) -> Edit | None:
    """Return the constant that undoes a division of the node's other operand."""
    position = _constant_position(node, channels)
    if position is None or node.op_type not in {"Mul", "Div"}:
        return None
    if node.op_type == "Div" and position != 1:
        return None
    return Edit(node, position, 1 if node.op_type == "Mul" else -1)


def _quotient(node: ir.Node, channels: int, _: int) -> Trace:
    edit = Edit(node, 1, 1)
    return [edit] if _takes(edit, channels) else "a quotient of activations takes up no factors"


def _sum(node: ir.Node, channels: int, depth: int) -> Trace:
    position = _constant_position(node, channels)
    if position is None:
        return "a sum of activations before it takes up no factors"
    before = _alone(node.inputs[1 - position], channels, depth)
    return before if isinstance(before, str) else [*before, Edit(node, position, -1)]


def _matmul(node: ir.Node, channels: int, _: int) -> Trace:
    edit = Edit(node, 1, -1)
    return [edit] if _weighs(edit, channels) else "the weight of the layer before is not constant"


def _gemm(node: ir.Node, channels: int, _: int) -> Trace:
    axis = -2 if node.attributes.get_int("transB", 0) else -1
    edits = [Edit(node, 1, -1, axis)]
    if not _weighs(edits[0], channels):
        return "the weight of the layer before is not constant"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        edits.append(Edit(node, 2, -1))
        if not _takes(edits[1], channels):
            return "the bias of the layer before is not constant"
    return edits


def _weighs(edit: Edit, channels: int) -> bool:
    tensor = g.constant(edit.node.inputs[edit.position])
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return False
    return bool(tensor.shape.numpy()[edit.axis] == channels)


_RULES: dict[str, Callable[[ir.Node, int, int], Trace]] = {
    "Mul": _product,
    "Div": _quotient,
    "Add": _sum,
    "MatMul": _matmul,
    "Gemm": _gemm,
}


def twin_of(node: ir.Node, names: g.Names) -> ir.Node:
    """Put a second normalization behind the first, for readers that want other factors."""
    assert node.graph is not None
    made = ir.Node(
        node.domain,
        node.op_type,
        list(node.inputs),
        list(node.attributes.values()),
        num_outputs=1,
        name=names.fresh(f"{node.name or node.op_type}_smoothed"),
    )
    made.outputs[0].name = names.fresh(f"{node.outputs[0].name}_smoothed")
    made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    node.graph.insert_after(node, made)
    return made


def fold(edit: Edit, factors: Array, names: g.Names) -> None:
    """Multiply a constant by the factors, or divide it; others that read it keep the old one."""
    value = edit.node.inputs[edit.position]
    tensor = g.constant(value)
    assert tensor is not None
    assert value is not None
    scale = factors if edit.power > 0 else 1.0 / factors
    _rename(edit.node.outputs[0], names)
    if tensor.size == 1:
        made: ir.TensorProtocol = ir.Tensor(np.asarray(tensor.numpy() * scale, np.float32))
    else:
        made = _scaled(tensor, scale, edit.axis)
    if value.is_initializer() and len(tuple(value.uses())) == 1:
        g.set_constant(value, made)
        return
    new = constant(names, value, f"{value.name}_smoothed", made)
    edit.node.replace_input_with(edit.position, new)
    drop_unused([value])


def _rename(value: ir.Value, names: g.Names) -> None:
    """Name a value that holds other numbers now: nobody compares it with what had its name."""
    if value.name and not value.name.endswith(_SUFFIX) and not value.is_graph_output():
        value.name = names.fresh(value.name + _SUFFIX)


def _scaled(tensor: ir.TensorProtocol, scale: Array, axis: int) -> ir.TensorProtocol:
    """Return a constant times a factor per channel, computed when it is read."""
    inner = 1 if axis == -1 else int(tensor.shape.numpy()[-1])

    def rescale(chunk: Array, start: int) -> Array:
        channels = np.arange(start, start + chunk.size) // inner % scale.size
        return np.asarray(chunk * scale[channels], np.float32)

    return MappedTensor(tensor, rescale)
