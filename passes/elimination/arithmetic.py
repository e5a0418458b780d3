"""Arithmetic with neutral elements, of a value with itself, and with constant conditions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from passes.elimination.look import bypass, is_sole, made_by
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]
_LARGEST = 1 << 16  # elements of a constant that are read to see whether all are neutral
_BROADCAST_SINCE = 7  # before, broadcasting was one-sided and asked for by an attribute

_NEUTRAL: dict[str, tuple[tuple[int, ...], float]] = {
    # Which operand may be neutral, and the value; -0.0 is the neutral element of float addition:
    # x + 0.0 turns -0.0 into 0.0.
    "Mul": ((0, 1), 1.0),
    "Div": ((1,), 1.0),
    "Pow": ((1,), 1.0),
    "Add": ((0, 1), -0.0),
    "Sub": ((1,), 0.0),
    "And": ((0, 1), 1.0),
    "Or": ((0, 1), 0.0),
    "Xor": ((0, 1), 0.0),
    "BitwiseOr": ((0, 1), 0.0),
    "BitwiseXor": ((0, 1), 0.0),
    "BitShift": ((1,), 0.0),
}


def _neutral(node: ir.Node, work: Work) -> Result:
    operands, neutral = _NEUTRAL[node.op_type]
    if work.opset(node) < _BROADCAST_SINCE or len(node.inputs) != 2:
        return None
    for operand in operands:
        tensor = constant(node.inputs[operand])
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if not 0 < tensor.size <= _LARGEST or not _are_all(tensor, neutral):
            continue
        other = node.inputs[1 - operand]
        if node.op_type == "Pow" and work.facts.of(other).dtype != ir.DataType.FLOAT:
            continue  # other types may pass through another one
        if _keeps_shape(node, other, tensor, work):
            return bypass(node, work, other)
    return None


def _keeps_shape(
    node: ir.Node, other: ir.Value | None, tensor: ir.TensorProtocol, work: Work
) -> bool:
    """Tell whether broadcasting with the constant leaves the other operand's shape as it is."""
    dims = work.facts.of(other).dims
    if tensor.size == 1:
        return not len(tensor.shape) or (dims is not None and len(dims) >= len(tensor.shape))
    return dims is not None and work.facts.of(node.outputs[0]).dims == dims


def _are_all(tensor: ir.TensorProtocol, number: float) -> bool:
    array = tensor.numpy().reshape(-1)
    if array.dtype.kind in "iub":
        return bool((array == number).all())
    if array.dtype.kind != "f":
        return False
    return bool((array == number).all() and (np.signbit(array) == np.signbit(number)).all())


def _itself(node: ir.Node, work: Work) -> Result:
    """Max, Min, And or Or of a value and itself."""
    if len(node.inputs) < 2 or len(set(node.inputs)) != 1:
        return None
    return bypass(node, work, node.inputs[0])


def _where(node: ir.Node, work: Work) -> Result:
    """Where with one value on both sides, or with a condition that is the same everywhere."""
    if len(node.inputs) != 3:
        return None
    condition, yes, no = node.inputs
    if yes is no:
        return _if_shape(node, work, yes)
    tensor = constant(condition)
    if tensor is None or not 0 < tensor.size <= _LARGEST:
        return None
    flags = tensor.numpy()
    if not flags.all() and flags.any():
        return None
    return _if_shape(node, work, yes if flags.all() else no)


def _if_shape(node: ir.Node, work: Work, source: ir.Value | None) -> Result:
    dims = work.facts.of(source).dims
    if dims is None or dims != work.facts.of(node.outputs[0]).dims:
        return "the other operands may widen the result"
    return bypass(node, work, source)


def _nested(node: ir.Node, work: Work) -> Result:
    """Max, Min or Sum whose first operand is the same: evaluated from the left in either form."""
    before = made_by(node.inputs[0], node, work, node.op_type)
    if before is None or not is_sole(node.inputs[0]) or work.opset(node) < 8:
        return None
    if len(node.inputs) < 2 or any(value is None for value in (*before.inputs, *node.inputs)):
        return None
    inner, rest = list(before.inputs), list(node.inputs[1:])
    node.resize_inputs(len(inner) + len(rest))
    for index, value in enumerate(rest, start=len(inner)):
        node.replace_input_with(index, value)
    for index, value in enumerate(inner[1:], start=1):
        node.replace_input_with(index, value)
    assert inner[0] is not None
    work.set_input(node, 0, inner[0])
    return Applied()


RULES = (
    Rule("arithmetic_removed", tuple(_NEUTRAL), _neutral),
    Rule("arithmetic_removed", ("And", "Max", "Min", "Or"), _itself),
    Rule("conditions_removed", ("Where",), _where),
    Rule("arithmetic_merged", ("Max", "Min", "Sum"), _nested),
)
"""Arithmetic that changes nothing, and nested arithmetic that fits one node."""
