"""What operators between layers do to channels that are divided by positive factors.

Each rule tells whether it knows; if so, it has noted what happens to the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.affine.eligible import bound
from passes.equalization.flow import Channels, Flow, Vector
from passes.equalization.layers import owned

Rule = Callable[[Flow, ir.Node], bool]


def rule_of(node: ir.Node) -> Rule | None:
    """Return the rule of an operator; None: it does not commute with positive factors."""
    return _RULES.get(node.op_type) if node.domain in g.DEFAULT_DOMAINS else None


def _source(flow: Flow, node: ir.Node) -> Channels | None:
    value = node.inputs[0] if node.inputs else None
    return None if value is None else flow.channels.get(value)


def _same(flow: Flow, node: ir.Node) -> bool:
    """A positive factor of a channel goes straight through."""
    found = _source(flow, node)
    if found is not None:
        flow.channels[node.outputs[0]] = found
    return found is not None


def _maximum_pool(flow: Flow, node: ir.Node) -> bool:
    return sum(1 for value in node.outputs if value.name) == 1 and _same(flow, node)


def _global_pool(flow: Flow, node: ir.Node) -> bool:
    found = _source(flow, node)
    if found is None or found.rank is None or found.axis != 1 - found.rank:
        return False
    flow.channels[node.outputs[0]] = replace(found, single=True)
    return True


def _clip(flow: Flow, node: ir.Node) -> bool:
    found = _source(flow, node)
    low, high = bounds(node)
    if found is None or low is None or high is None or low > 0.0 or high < 0.0:
        return False
    if any(np.isfinite(end) and end != 0.0 for end in (low, high)):
        flow.limits.append((node, found.ids))
    return _same(flow, node)


def bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Return both ends of a Clip; None for one that is not constant."""
    return bound(node, 1, "min", -np.inf), bound(node, 2, "max", np.inf)


def _slope(flow: Flow, node: ir.Node) -> bool:
    return g.constant(node.inputs[1]) is not None and _same(flow, node)


def _sum(flow: Flow, node: ir.Node) -> bool:
    """Add and its like: values have equal scales, constants are divided as the channels are."""
    values = [v for v in node.inputs if v is not None]
    found = [flow.channels.get(v) for v in values]
    known = [c for c in found if c is not None]
    if not known or any(not known[0].alike(c) for c in known):
        return False
    for value, channels in zip(values, found, strict=True):
        if channels is None and not _added_constant(flow, node, value, known[0]):
            return False
    for other in known[1:]:
        flow.tie(known[0], other)
    ranks = {c.rank for c in known}
    flow.channels[node.outputs[0]] = replace(
        known[0],
        rank=known[0].rank if len(ranks) == 1 else None,
        single=all(c.single for c in known),
    )
    return len(ranks) == 1


def _added_constant(flow: Flow, node: ir.Node, value: ir.Value, channels: Channels) -> bool:
    """Take note of a constant with one number per channel; zeros may have any shape."""
    array = g.constant_array(value)
    if array is None or node.op_type not in {"Add", "Sub"} or channels.flat:
        return False
    rank = channels.rank
    if array.ndim > (rank if rank is not None else 1):
        return False
    if not array.any():
        return array.size == 1
    per_channel = [1] * max(0, array.ndim + channels.axis) + [channels.ids.size]
    per_channel += [1] * (-1 - channels.axis)
    if list(array.shape) != per_channel or array.dtype != np.float32 or not owned(value):
        return False
    flow.vectors.append(Vector(value, channels.ids))
    return True


def _product(flow: Flow, node: ir.Node) -> bool:
    """Times a constant, or times a gate that nobody scales."""
    left, right = node.inputs
    if left is None or right is None or (node.op_type == "Div" and right in flow.channels):
        return False
    value, gate = (right, left) if right in flow.channels else (left, right)
    found = flow.channels.get(value)
    if found is None or gate in flow.channels or found.flat:
        return False
    array = g.constant_array(gate)
    maker = gate.producer()
    if array is None:
        if maker is None or not g.is_op(maker, *_GATES) or maker.inputs[0] is None:
            return False
        source = flow.channels.get(maker.inputs[0])
        if source is None or source.rank is None or source.rank != found.rank:
            return False
    elif array.ndim > (found.rank or 1):
        return False
    flow.channels[node.outputs[0]] = replace(found, single=False)
    return True


def _concat(flow: Flow, node: ir.Node) -> bool:
    found = [flow.channels.get(v) for v in node.inputs if v is not None]
    known = [c for c in found if c is not None and c.rank is not None and not c.flat]
    if not known or len(known) < len(node.inputs):
        return False
    first, axis = known[0], node.attributes.get_int("axis", 1)
    rank = first.rank or 0
    if any((c.rank, c.axis) != (first.rank, first.axis) for c in known):
        return False
    if (axis if axis < 0 else axis - rank) == first.axis:
        ids = np.concatenate([c.ids for c in known])
        flow.channels[node.outputs[0]] = replace(
            first, ids=ids, single=all(c.single for c in known)
        )
        return True
    if any(c.ids.size != first.ids.size for c in known):
        return False
    for other in known[1:]:
        flow.tie(first, other)
    flow.channels[node.outputs[0]] = replace(first, single=False)
    return True


def _flatten(flow: Flow, node: ir.Node) -> bool:
    found = _source(flow, node)
    axis = node.attributes.get_int("axis", 1)
    if found is None or found.rank is None or found.flat or found.axis != 1 - found.rank:
        return False
    if axis not in {1, 1 - found.rank}:
        return False
    flat = not found.single
    flow.channels[node.outputs[0]] = Channels(found.ids, -1, 2, flat=flat, single=not flat)
    return True


def _reshape(flow: Flow, node: ir.Node) -> bool:
    """Only what flattens everything but the samples for certain."""
    found, shape = _source(flow, node), g.constant_array(node.inputs[1])
    if (
        found is None
        or shape is None
        or shape.size != 2
        or node.attributes.get_int("allowzero", 0) != 0
    ):
        return False
    if found.rank is None or found.flat or found.axis != 1 - found.rank:
        return False
    batch, rest = (int(n) for n in shape)
    whole = batch == 0 and (rest == -1 or (found.single and rest == found.ids.size))
    if not whole and not (found.single and rest == found.ids.size):
        return False
    flat = not found.single
    flow.channels[node.outputs[0]] = Channels(found.ids, -1, 2, flat=flat, single=not flat)
    return True


def _spatial(flow: Flow, node: ir.Node) -> bool:
    """ReduceMean and Squeeze over all axes behind the channels."""
    found = _source(flow, node)
    if found is None or found.rank is None or found.axis != 1 - found.rank or found.rank < 3:
        return False
    rank = found.rank
    array = g.constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = node.attributes.get_ints("axes", ()) if array is None else tuple(array.reshape(-1))
    if sorted(int(a) % rank for a in axes) != list(range(2, rank)):
        return False
    kept = node.op_type != "Squeeze" and node.attributes.get_int("keepdims", 1) == 1
    if kept:
        flow.channels[node.outputs[0]] = replace(found, single=True)
    else:
        flow.channels[node.outputs[0]] = Channels(found.ids, -1, 2, single=True)
    return True


def _transpose(flow: Flow, node: ir.Node) -> bool:
    found = _source(flow, node)
    if found is None or found.rank is None or found.flat:
        return False
    order = node.attributes.get_ints("perm", tuple(reversed(range(found.rank))))
    axis = list(order).index(found.rank + found.axis) - found.rank
    flow.channels[node.outputs[0]] = replace(found, axis=axis)
    return True


def _pad(flow: Flow, node: ir.Node) -> bool:
    """Zeros at the borders stay zeros; new channels would have no class."""
    found = _source(flow, node)
    pads = node.attributes.get_ints("pads", ())
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = g.constant_array(node.inputs[1])
        pads = () if array is None else tuple(int(n) for n in array)
    filling = node.inputs[2] if len(node.inputs) > 2 else None
    value = g.constant_array(filling) if filling is not None else None
    padded_with_zero = (value is not None and not value.any()) if filling is not None else True
    if found is None or found.rank is None or found.flat or len(pads) != 2 * found.rank:
        return False
    if node.attributes.get_float("value", 0.0) != 0.0 or len(node.inputs) > 3:
        return False
    position = found.rank + found.axis
    if pads[position] or pads[found.rank + position] or not padded_with_zero:
        return False
    flow.channels[node.outputs[0]] = replace(found, single=False)
    return True


def _repeated(names: Iterable[str], rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


_GATES = ("Sigmoid", "HardSigmoid", "Softmax")
_RULES: Mapping[str, Rule] = {
    **_repeated(("Relu", "LeakyRelu", "Identity", "AveragePool", "LpPool"), _same),
    **_repeated(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **_repeated(("Add", "Sub", "Sum", "Max", "Min", "Mean"), _sum),
    **_repeated(("Mul", "Div"), _product),
    **_repeated(("ReduceMean", "Squeeze"), _spatial),
    "MaxPool": _maximum_pool,
    "Clip": _clip,
    "PRelu": _slope,
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Pad": _pad,
}
"""Operators that commute with positive factors per channel."""
