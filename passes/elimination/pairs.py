"""Operators after others: inverse pairs, operators that change nothing twice, nested limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from passes.elimination.look import bypass, is_sole, made_by, stand_in
from passes.rewriting import sizes
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

_INVERSE = ("Neg", "Not", "BitwiseNot")
_WHOLE = ("Ceil", "Floor", "Round")

_ABSORBED: dict[str, tuple[str, ...]] = {
    # The operator changes nothing after one of these, -0.0 and NaN included. Abs after Relu is
    # missing: Relu keeps -0.0.
    "Relu": ("Relu", "Abs", "Exp", "Sigmoid", "HardSigmoid", "Softplus"),
    "Abs": ("Abs", "Exp", "Sigmoid", "Softplus"),
    "Ceil": _WHOLE,
    "Floor": _WHOLE,
    "Round": _WHOLE,
    "Sign": ("Sign",),
}
_INPUT_BYTES = 4  # tag and length of a name in a list of inputs, and room for a suffix
_CLIP_INPUTS_SINCE = 11
_CLIP_ANY_TYPE_SINCE = 12


def _inverse(node: ir.Node, work: Work) -> Result:
    before = made_by(node.inputs[0], node, work, node.op_type)
    return None if before is None else bypass(node, work, before.inputs[0])


def _absorbed(node: ir.Node, work: Work) -> Result:
    before = made_by(node.inputs[0], node, work, *_ABSORBED[node.op_type])
    if before is None:
        return None
    if (node.op_type, before.op_type) == ("Relu", "Abs") and not _is_float(node.inputs[0], work):
        return "the absolute value of the lowest integer is negative"
    return bypass(node, work, node.inputs[0])


def _is_float(value: ir.Value | None, work: Work) -> bool:
    dtype = work.facts.of(value).dtype
    return dtype is not None and dtype.is_floating_point()


@dataclass(frozen=True)
class _Limits:
    """Bounds of a Clip; None where there is none."""

    low: float | None
    high: float | None


def _limits(node: ir.Node, work: Work) -> _Limits | None:
    """Return the bounds of a Clip or a Relu, or None if they are not certain."""
    if node.op_type == "Relu":
        return _Limits(0.0, None)
    if work.opset(node) < _CLIP_INPUTS_SINCE:
        low, high = (node.attributes.get(name) for name in ("min", "max"))
        return _Limits(
            None if low is None else low.as_float(), None if high is None else high.as_float()
        )
    found: list[float | None] = []
    for index in (1, 2):
        value = node.inputs[index] if len(node.inputs) > index else None
        tensor = constant(value)
        if value is not None and (tensor is None or tensor.size != 1):
            return None
        found.append(None if tensor is None else float(tensor.numpy().reshape(())))
    return _Limits(*found)


def _clamp(number: float | None, limits: _Limits) -> float | None:
    if number is None:
        return None
    if limits.low is not None:
        number = max(number, limits.low)
    return number if limits.high is None else min(number, limits.high)


def _clip(node: ir.Node, work: Work) -> Result:
    """Clip or Relu after Clip or Relu: one Clip."""
    before = made_by(node.inputs[0], node, work, "Clip", "Relu")
    if before is None or "Clip" not in {node.op_type, before.op_type}:
        return None
    clip = node if node.op_type == "Clip" else before
    first, second = _limits(before, work), _limits(node, work)
    dtype = work.facts.of(node.inputs[0]).dtype
    if first is None or second is None or dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16}:
        return "its limits or its type are not certain"
    if not _is_ordered(first) or not _is_ordered(second):
        return None
    low, high = _joined(first, second)
    mine = _limits(clip, work)
    if mine == _Limits(low, high) and clip is before:
        return bypass(node, work, node.inputs[0])
    if not is_sole(node.inputs[0]):
        return None
    return _narrow(node, before, work, _Limits(low, high))


def _joined(first: _Limits, second: _Limits) -> tuple[float | None, float | None]:
    low, high = _clamp(first.low, second), _clamp(first.high, second)
    return (second.low if low is None else low), (second.high if high is None else high)


def _is_ordered(limits: _Limits) -> bool:
    """Tell whether the range is one: numbers, no -0.0 and not empty."""
    given = [number for number in (limits.low, limits.high) if number is not None]
    if any(np.isnan(n) or (n == 0 and np.signbit(n)) for n in given):
        return False
    return len(given) < 2 or given[0] <= given[1]


def _narrow(node: ir.Node, before: ir.Node, work: Work, limits: _Limits) -> Result:
    """Let one Clip with the given limits take the place of both nodes."""
    origin = before.inputs[0]
    if origin is None:
        return None
    if work.opset(node) < _CLIP_INPUTS_SINCE:
        given = {"min": limits.low, "max": limits.high}
        attributes = {name: float(n) for name, n in given.items() if n is not None}
        return stand_in(node, work, [origin], attributes, op_type="Clip")
    pool = _bounds(node, work) | _bounds(before, work)
    wanted = [n for n in (limits.low, limits.high) if n is not None and n not in pool]
    name = "limit"
    cost = sum(sizes.new_constant_bytes(4, 0, name) + len(name) + _INPUT_BYTES for _ in wanted)
    if cost and not work.affords(cost - sizes.node_bytes(before)):
        return "one Clip instead would make the file bigger"
    dtype = work.facts.of(origin).dtype
    assert dtype is not None
    for number in wanted:
        pool[number] = work.new_constant(node, name, np.array(number, dtype.numpy()))
    inputs: list[ir.Value | None] = [origin]
    inputs += [None if n is None else pool[n] for n in (limits.low, limits.high)]
    while inputs[-1] is None:
        inputs.pop()
    return stand_in(node, work, inputs, {}, op_type="Clip")


def _bounds(node: ir.Node, work: Work) -> dict[float, ir.Value]:
    """Return the constants that are limits of a Clip by their number."""
    if node.op_type != "Clip":
        return {}
    given = [v for v in node.inputs[1:] if v is not None and v.graph is work.home(node)]
    tensors = [(constant(value), value) for value in given]
    return {float(t.numpy().reshape(())): v for t, v in tensors if t is not None}


RULES = (
    Rule("pairs_removed", _INVERSE, _inverse),
    Rule("repeats_removed", tuple(_ABSORBED), _absorbed),
    Rule("limits_merged", ("Clip", "Relu"), _clip),
)
"""Operators that the one before them makes superfluous."""
