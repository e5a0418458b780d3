"""Bounds of values per channel, from the bounds of activation functions and the weights.

A channel that is below zero whatever comes in is constant behind its Relu: networks trained with
Relu6 and weight decay have such channels, with weights of 1e-10 and a negative bias. Nothing is
assumed of inputs, except of pictures: a pixel is at most 65536 in magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import is_op
from passes.coupling.layers import Linear
from passes.importance.weights import weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
PIXEL = 65536.0
_COLOURS = 4
_ROUNDING = 2.0**-24
"""A range narrower than this, relative to its ends, is one number: float32 rounds more."""


@dataclass(frozen=True, eq=False)
class Range:
    """Bounds of a value.

    Attributes:
        low: float64 (size,) along ``axis``, or (1,): the same everywhere. May be infinite.
        high: Likewise.
        axis: Not negative.
    """

    low: Array
    high: Array
    axis: int = 0

    def everywhere(self) -> Range:
        """Return bounds that hold for all indices."""
        return Range(self.low.min(keepdims=True), self.high.max(keepdims=True))

    def constants(self) -> Array:
        """Return the number of every index that has only one: float64, NaN: it has more."""
        with np.errstate(invalid="ignore"):
            ends = np.maximum(np.abs(self.low), np.abs(self.high))
            alone = self.high - self.low <= _ROUNDING * ends
        return np.where(alone & np.isfinite(ends), self.high, np.nan)


ANY = Range(np.array([-np.inf]), np.array([np.inf]))
_FLOATS = frozenset({1, 10, 11, 16})
_INTEGERS = {"UINT8": (0.0, 255.0), "INT8": (-128.0, 127.0), "BOOL": (0.0, 1.0)}


class Ranges:
    """The bounds of all values that have any; nodes are visited in topological order."""

    def __init__(self) -> None:
        self._found: dict[ir.Value, Range] = {}

    def at(self, value: ir.Value | None) -> Range:
        """Return the bounds of a value."""
        if value is None:
            return ANY
        found = self._found.get(value)
        if found is None and value.is_graph_input() and value.dtype is not None:
            bounds = _INTEGERS.get(value.dtype.name)
            found = bounds and Range(np.array([bounds[0]]), np.array([bounds[1]]))
        return found or ANY

    def visit(self, node: ir.Node, layer: Linear | None, rank: int | None) -> Range | None:
        """Note the bounds of what a node gives.

        Args:
            node: The node.
            layer: The same as a layer, if it is one.
            rank: Number of axes of its first input.

        Returns:
            The bounds, or None when there are none.
        """
        if layer is not None:
            made: Range | None = _linear(layer, self._input(layer, rank))
        else:
            rule = _RULES.get(node.op_type) if is_op(node, node.op_type) else None
            made = None if rule is None else rule(self, node)
        if made is None or not (np.isfinite(made.low).any() or np.isfinite(made.high).any()):
            return None
        self._found[node.outputs[0]] = made
        return made

    def _input(self, layer: Linear, rank: int | None) -> Range:
        value = layer.node.inputs[0]
        pictures = rank == 4 and layer.columns <= _COLOURS and is_op(layer.node, "Conv")
        if value is not None and value.is_graph_input() and pictures:
            return Range(np.array([-PIXEL]), np.array([PIXEL]))
        return self.at(value)


def _linear(layer: Linear, given: Range) -> Range | None:
    """Add up the smallest and the largest contributions of all inputs."""
    if layer.bias is None or (given.low.size > 1 and given.axis != layer.axis):
        return None
    groups, _, columns, _ = layer.weight.shape
    low, high = given.low, given.high
    if low.size not in {1, layer.columns}:
        return None
    if layer.uneven:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    ends = [np.broadcast_to(e, (layer.columns,)).reshape(groups, 1, columns) for e in (low, high)]
    weight = layer.weight.astype(np.float32, copy=False)
    up = np.maximum(weight, 0).sum(axis=3, dtype=np.float64) * layer.scale
    down = np.minimum(weight, 0).sum(axis=3, dtype=np.float64) * layer.scale
    if layer.scale < 0:
        up, down = down, up
    most = _times(up, ends[1]) + _times(down, ends[0])
    least = _times(up, ends[0]) + _times(down, ends[1])
    bias = layer.bias
    return Range(
        least.sum(axis=2).reshape(-1) + bias, most.sum(axis=2).reshape(-1) + bias, layer.out_axis
    )


def _times(first: Array, second: Array) -> Array:
    """Multiply; zero times infinity is zero."""
    with np.errstate(invalid="ignore"):
        return np.where((first == 0) | (second == 0), 0.0, first * second)


# --- rules ----------------------------------------------------------------------------------------


def _monotone(function: Callable[[ir.Node, Array], Array]) -> Callable[[Ranges, ir.Node], Range]:
    """Return the rule of a function that never falls."""

    def rule(ranges: Ranges, node: ir.Node) -> Range:
        given = ranges.at(node.inputs[0])
        return Range(function(node, given.low), function(node, given.high), given.axis)

    return rule


def _sigmoid(node: ir.Node, x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _hard_sigmoid(node: ir.Node, x: Array) -> Array:
    slope = node.attributes.get_float("alpha", 0.2)
    return np.clip(slope * x + node.attributes.get_float("beta", 0.5), 0, 1)


def _clip(ranges: Ranges, node: ir.Node) -> Range | None:
    ends: list[float] = []
    for position, (name, unset) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None:
            ends.append(node.attributes.get_float(name, unset))
            continue
        array = weight_of(value)
        if array is None or array.size != 1:
            return None
        ends.append(float(array.reshape(-1)[0]))
    given = ranges.at(node.inputs[0])
    low, high = (np.clip(e, ends[0], ends[1]) for e in (given.low, given.high))
    return Range(low, high, given.axis) if ends[0] <= ends[1] else None


def _leaky(ranges: Ranges, node: ir.Node) -> Range | None:
    slope = node.attributes.get_float("alpha", 0.01)
    given = ranges.at(node.inputs[0])
    if slope < 0:
        return None
    low, high = (np.where(e < 0, _times(np.array(slope), e), e) for e in (given.low, given.high))
    return Range(low, high, given.axis)


def _normalization(ranges: Ranges, node: ir.Node) -> Range | None:
    given = ranges.at(node.inputs[0])
    parts = [weight_of(v) for v in node.inputs[1:5]]
    if len(parts) < 4 or node.attributes.get_int("training_mode", 0) != 0:
        return None
    if any(p is None or p.ndim != 1 for p in parts) or (given.low.size > 1 and given.axis != 1):
        return None
    scale, bias, mean, variance = (np.asarray(p, np.float64) for p in parts)
    if given.low.size not in {1, scale.size} or (variance < 0).any():
        return None
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    first, last = (_times(factor, e - mean) + bias for e in (given.low, given.high))
    return Range(np.minimum(first, last), np.maximum(first, last), 1)


def _sum(ranges: Ranges, node: ir.Node) -> Range | None:
    """Add two values of the same shape, or a number."""
    sides = []
    for value in node.inputs:
        array = weight_of(value)
        if array is None:
            sides.append(ranges.at(value))
        elif array.size == 1:
            number = array.astype(np.float64).reshape(1)
            sides.append(Range(number, number))
        else:
            return None
    wide = [side for side in sides if side.low.size > 1]
    if len(wide) > 1 and (wide[0].axis != wide[1].axis or wide[0].low.size != wide[1].low.size):
        sides = [side.everywhere() for side in sides]
    axis = wide[0].axis if wide else 0
    return Range(sides[0].low + sides[1].low, sides[0].high + sides[1].high, axis)


def _same(ranges: Ranges, node: ir.Node) -> Range:
    return ranges.at(node.inputs[0])


def _even(ranges: Ranges, node: ir.Node) -> Range:
    """Forget channels: axes move."""
    return ranges.at(node.inputs[0]).everywhere()


def _cast(ranges: Ranges, node: ir.Node) -> Range | None:
    """Keep bounds where a cast keeps numbers."""
    return ranges.at(node.inputs[0]) if node.attributes.get_int("to", 0) in _FLOATS else None


def _pad(ranges: Ranges, node: ir.Node) -> Range | None:
    """Zeros come along, or copies of what is there."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = weight_of(value)
    filled = node.attributes.get_float("value", 0.0) if value is None else array
    return None if filled is None or np.any(filled != 0) else _with_zero(ranges, node)


def _with_zero(ranges: Ranges, node: ir.Node) -> Range:
    given = ranges.at(node.inputs[0])
    return Range(np.minimum(given.low, 0), np.maximum(given.high, 0), given.axis)


def _unit(ranges: Ranges, node: ir.Node) -> Range:
    return Range(np.array([0.0]), np.array([1.0]))


def _concat(ranges: Ranges, node: ir.Node) -> Range:
    parts = [ranges.at(value).everywhere() for value in node.inputs]
    low, high = (np.stack(ends) for ends in ([p.low for p in parts], [p.high for p in parts]))
    return Range(low.min(axis=0), high.max(axis=0))


_RULES: dict[str, Callable[[Ranges, ir.Node], Range | None]] = {
    "Add": _sum,
    "AveragePool": _with_zero,
    "BatchNormalization": _normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Flatten": _even,
    "GlobalAveragePool": _same,
    "GlobalMaxPool": _same,
    "HardSigmoid": _monotone(_hard_sigmoid),
    "Identity": _same,
    "LeakyRelu": _leaky,
    "MaxPool": _same,
    "Pad": _pad,
    "Relu": _monotone(lambda node, x: np.maximum(x, 0)),
    "Reshape": _even,
    "Sigmoid": _monotone(_sigmoid),
    "Softmax": _unit,
    "Squeeze": _even,
    "Tanh": _monotone(lambda node, x: np.tanh(x)),
    "Transpose": _even,
    "Unsqueeze": _even,
}
