"""Concat of Concats, of empty parts, and of the parts of a Split; Pad after Pad."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from passes.elimination.look import ask, bypass, is_sole, made_by, skip_over, stand_in
from passes.rewriting import sizes
from passes.rewriting.facts import Dims, static
from passes.rewriting.question import axis_in
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

_AXIS_SINCE = 4  # the axis may be left out before
_MOST_INPUTS = 4096


def _axis(node: ir.Node, work: Work, dims: Dims | None) -> int | None:
    """Return the axis of a Concat or Split, counted from the front if the rank is known."""
    default = 0 if node.op_type == "Split" else 1 if work.opset(node) < _AXIS_SINCE else None
    axis = ask(node, work).integer("axis", default)
    return axis_in(axis, len(dims)) if dims is not None and axis is not None else axis


def _flatten(node: ir.Node, work: Work) -> Result:
    """A Concat that only this Concat of the same axis reads: its parts come directly."""
    mine = _axis(node, work, work.facts.of(node.outputs[0]).dims)
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        inner = made_by(value, node, work, "Concat") if is_sole(value) else None
        # The bound keeps the pass linear: a value moves up once per level.
        if (
            inner is None
            or len(inner.inputs) > _MOST_INPUTS
            or _axis(inner, work, work.facts.of(value).dims) != mine
        ):
            inputs.append(value)
        else:
            inputs.extend(inner.inputs)
    return stand_in(node, work, inputs, node.attributes) if len(inputs) > len(node.inputs) else None


def _drop_empty(node: ir.Node, work: Work) -> Result:
    """Parts that certainly have no elements along the axis."""
    if len(node.inputs) < 2:
        return None
    shapes = [work.facts.of(value).dims for value in node.inputs]
    if not all(shapes) or len({len(dims or ()) for dims in shapes}) != 1:
        return None
    axis = _axis(node, work, shapes[0])
    if axis is None or not any(dims and dims[axis] == 0 for dims in shapes):
        return None
    pairs = zip(node.inputs, shapes, strict=True)
    kept = [value for value, dims in pairs if dims is None or dims[axis] != 0]
    return stand_in(node, work, kept or [node.inputs[0]], node.attributes)


def _rejoin(node: ir.Node, work: Work) -> Result:
    """All parts of a Split in their order along the same axis."""
    split = made_by(node.inputs[0], node, work, "Split") if node.inputs else None
    if split is None or tuple(split.outputs) != tuple(node.inputs):
        return None
    dims = work.facts.of(split.inputs[0]).dims
    mine, other = (_axis(n, work, dims) for n in (node, split))
    return bypass(node, work, split.inputs[0]) if mine == other and mine is not None else None


def _pads(node: ir.Node, work: Work) -> Result:
    """Two Pads with the same constant become one."""
    before = made_by(node.inputs[0], node, work, "Pad")
    if before is None or not is_sole(node.inputs[0]) or work.opset(node) < 2:
        return None
    if not all(_is_constant_pad(n) for n in (before, node)):
        return "one of them does not pad with a constant"
    if _filling(node, work) != _filling(before, work):
        return "they pad with different numbers"
    return _sum_pads(node, before, work)


def _sum_pads(node: ir.Node, before: ir.Node, work: Work) -> Result:
    first, second = (static(ask(n, work).vector("pads", 1, 11)) for n in (before, node))
    if first is None or second is None or len(first) != len(second) or min(*first, *second) < 0:
        return None
    total = [a + b for a, b in zip(first, second, strict=True)]
    if work.opset(node) < 11:
        node.attributes["pads"] = ir.AttrInt64s("pads", total)
        return skip_over(node, work)
    cost = sizes.new_constant_bytes(8 * len(total), 1, "pads")
    gone = {node, before}
    room = sum(work.constant_saving(v, gone) for v in {node.inputs[1], before.inputs[1]})
    if not work.affords(cost - room - sizes.node_bytes(before)):
        return "one Pad instead would make the file bigger"
    work.set_input(node, 1, work.new_constant(node, "pads", np.array(total, np.int64)))
    return skip_over(node, work)


def _is_constant_pad(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return False
    return len(node.inputs) < 4 or node.inputs[3] is None


def _filling(node: ir.Node, work: Work) -> object:
    """Return what identifies the number that a Pad fills in."""
    if work.opset(node) < 11:
        value = node.attributes.get("value")
        return 0.0 if value is None else value.as_float()
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        return b""
    tensor = constant(given)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return given
    data = tensor.tobytes()
    return b"" if not any(data) else data


RULES = (
    Rule("concats_merged", ("Concat",), _flatten),
    Rule("empty_parts_removed", ("Concat",), _drop_empty),
    Rule("concats_removed", ("Concat",), _rejoin),
    Rule("pads_merged", ("Pad",), _pads),
)
"""Joining fewer parts, or not at all."""
