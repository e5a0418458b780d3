"""Small results computed inside the graph, so that large tensors never leave the runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from converter.calibration.shapes import shapes
from converter.core import graph as g

if TYPE_CHECKING:
    from converter.core.graph import Names

THINNED = 1 << 14
"""Of a large tensor about this many elements are handed out for its histogram."""
_AXES_AS_INPUT = 18
"""Opset from which the reductions used here take their axes as an input."""
_SLICE_BY_INPUTS = 10
_ALL = 2**62


class Sketcher:
    """Appends nodes to one graph; asked twice for a result, it gives the same one.

    Args:
        model: Its main graph gets the nodes.
        names: Of the model.
        given: Shapes of inputs in the data.
    """

    def __init__(
        self, model: ir.Model, names: Names, given: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self.graph = model.graph
        self.opset = g.opset(model)
        self._names = names
        self._shapes = shapes(model.graph, given or {})
        self._made: dict[tuple[str, ...], ir.Value] = {}

    def sketch(self, value: ir.Value, kind: str, axis: int) -> ir.Value | None:
        """Return the result of that kind, or None where the value's rank does not allow it.

        Args:
            value: float32.
            kind: Key of :data:`SKETCHES`.
            axis: The axis of the channels, negative from the end.
        """
        key = (value.name or "", kind, str(axis) if kind in _PER_CHANNEL else "")
        if key not in self._made:
            made = SKETCHES[kind](self, value, axis)
            if made is None:
                return None
            self._made[key] = made
        return self._made[key]

    def reduce(self, value: ir.Value, op_type: str, axes: Sequence[int]) -> ir.Value:
        """Append a reduction over some axes; () is all, valid in every opset."""
        inputs, attributes = [value], {"keepdims": ir.AttrInt64("keepdims", 0)}
        if axes and self.opset < _AXES_AS_INPUT:
            attributes["axes"] = ir.AttrInt64s("axes", tuple(axes))
        elif axes:
            inputs.append(self.integers(tuple(axes)))
        return self.add(op_type, inputs, list(attributes.values()), like=value)

    def integers(self, numbers: tuple[int, ...]) -> ir.Value:
        """Return a constant int64 vector."""
        key = ("integers", *map(str, numbers))
        if key not in self._made:
            name = self._names.fresh("calibration_integers")
            self._made[key] = g.add_initializer(self.graph, name, np.array(numbers, np.int64))
        return self._made[key]

    def pool(self, op_type: str, value: ir.Value) -> ir.Value:
        """Append a pooling over all of each feature map: (N, channels, 1, 1)."""
        key = (op_type, value.name or "")
        if key not in self._made:
            self._made[key] = self.add(op_type, [value], like=value)
        return self._made[key]

    def square(self, value: ir.Value) -> ir.Value:
        """Append the squares of all elements."""
        key = ("square", value.name or "")
        if key not in self._made:
            self._made[key] = self.add("Mul", [value, value], like=value)
            self._shapes[self._made[key]] = self._shapes[value]
        return self._made[key]

    def rank(self, value: ir.Value) -> int:
        """Return the number of axes, 0 where it is not known."""
        return len(self._shapes.get(value, ()))

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Return all sizes, or None where one is not known."""
        shape = self._shapes.get(value)
        known = tuple(d for d in shape or () if d is not None)
        return known if shape is not None and len(known) == len(shape) else None

    def zero(self) -> ir.Value:
        """Return an output that is always 0, the same one every time."""
        if ("zero",) not in self._made:
            name = self._names.fresh("calibration_zero")
            zero = g.add_initializer(self.graph, name, np.zeros((), np.float32))
            self._made[("zero",)] = self.add("Identity", [zero], like=zero)
        return self._made[("zero",)]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Sequence[ir.Attr] = (),
        *,
        like: ir.Value,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """Append a node with one output, named after the value that it looks at."""
        name = self._names.fresh(f"{like.name}_{op_type}")
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        self.graph.append(
            ir.Node("", op_type, inputs, attributes, outputs=[output], name=f"{name}_node")
        )
        return output


def _low(sketcher: Sketcher, value: ir.Value, _: int) -> ir.Value | None:
    """Smallest element; 0, which is a bound, of values that cannot be negative."""
    if _pooled(sketcher, value):
        return _end(sketcher, value, "ReduceMin")
    return sketcher.reduce(value, "ReduceMin", ())


def _high(sketcher: Sketcher, value: ir.Value, _: int) -> ir.Value | None:
    """Largest element; pooled values give one per channel."""
    if _pooled(sketcher, value):
        return _end(sketcher, value, "ReduceMax")
    return sketcher.reduce(value, "ReduceMax", ())


def _end(sketcher: Sketcher, value: ir.Value, op_type: str) -> ir.Value:
    """Return one end of a pooled value: 0, or the largest per channel (N, channels, 1, 1)."""
    return sketcher.zero() if op_type == "ReduceMin" else sketcher.pool("GlobalMaxPool", value)


def _pooled(sketcher: Sketcher, value: ir.Value) -> bool:
    """Tell whether pooling gives the ends: a feature map after Relu or Clip from 0.

    onnxruntime keeps feature maps in blocks of channels and pools them as they are, but orders
    them anew for a reduction, which costs four times as much as reducing.
    """
    node = value.producer()
    if sketcher.rank(value) != 4 or node is None or node.domain:
        return False
    if node.op_type != "Clip":
        return node.op_type == "Relu"
    if len(node.inputs) < 2:
        return node.attributes.get_float("min", -1.0) == 0.0
    array = g.constant_array(node.inputs[1])
    return array is not None and array.size == 1 and float(array.reshape(-1)[0]) == 0.0


def _whole(op_type: str) -> Callable[[Sketcher, ir.Value, int], ir.Value | None]:
    """Reduce over all axes: shape ()."""
    return lambda sketcher, value, _: sketcher.reduce(value, op_type, ())


def _per_sample(op_type: str) -> Callable[[Sketcher, ir.Value, int], ir.Value | None]:
    """Reduce over all axes but the first: (first axis,)."""

    def build(sketcher: Sketcher, value: ir.Value, _: int) -> ir.Value | None:
        if _pooled(sketcher, value):
            return _end(sketcher, value, op_type)
        rank = sketcher.rank(value)
        return sketcher.reduce(value, op_type, range(1, rank)) if rank > 1 else None

    return build


def _per_channel(op_type: str) -> Callable[[Sketcher, ir.Value, int], ir.Value | None]:
    """Reduce over all axes but the channels': (channels,)."""

    def build(sketcher: Sketcher, value: ir.Value, axis: int) -> ir.Value | None:
        rank = sketcher.rank(value)
        if not -rank <= axis < rank or rank < 2:
            return None
        if axis % rank == 1 and _pooled(sketcher, value):
            end = _end(sketcher, value, op_type)
            return end if op_type == "ReduceMin" else sketcher.reduce(end, op_type, (0, 2, 3))
        return sketcher.reduce(value, op_type, [a for a in range(rank) if a != axis % rank])

    return build


def _mean(sketcher: Sketcher, value: ir.Value, axis: int) -> ir.Value | None:
    """Mean per entry of the first axis and channel: (first axis, channels), or with ones after."""
    rank = sketcher.rank(value)
    if not -rank <= axis < rank or axis % rank == 0 or rank < 3:
        return None
    if rank == 4 and axis % rank == 1:
        return sketcher.pool("GlobalAveragePool", value)
    others = [a for a in range(1, rank) if a != axis % rank]
    return sketcher.reduce(value, "ReduceMean", others)


def _mean_square(sketcher: Sketcher, value: ir.Value, axis: int) -> ir.Value | None:
    """Mean of the squares per entry of the first axis and channel."""
    rank = sketcher.rank(value)
    if not -rank <= axis < rank or axis % rank == 0 or rank < 3:
        return None
    return _mean(sketcher, sketcher.square(value), axis)


def _size(sketcher: Sketcher, value: ir.Value, _: int) -> ir.Value:
    """Number of elements: int64, shape ()."""
    return sketcher.add("Size", [value], like=value, dtype=ir.DataType.INT64)


def _thinned(sketcher: Sketcher, value: ir.Value, _: int) -> ir.Value | None:
    """Every k-th element: (elements,). k shares no factor with a known size of an axis.

    So no position, row or channel is left out for good.
    """
    if sketcher.opset < _SLICE_BY_INPUTS:
        return None
    sizes = sketcher.shape(value)
    stride = 1 if sizes is None or len(sizes) != 4 else math.isqrt(math.prod(sizes) // THINNED) + 1
    if stride > 2:  # as blocks of channels, see _pooled; one element is its own average
        strides = ir.AttrInt64s("strides", (stride, stride))
        kernel = ir.AttrInt64s("kernel_shape", (1, 1))
        return sketcher.add("AveragePool", [value], [kernel, strides], like=value)
    flat = sketcher.add("Reshape", [value, sketcher.integers((-1,))], like=value)
    step = _unknown_step(sketcher, value) if sizes is None else sketcher.integers((_step(sizes),))
    ends = [sketcher.integers((number,)) for number in (0, _ALL, 0)]
    return sketcher.add("Slice", [flat, *ends, step], like=value)


def _step(sizes: Sequence[int]) -> int:
    product = math.prod(sizes)
    step = max(1, product // THINNED)
    while math.gcd(step, product) > 1:
        step += 1
    return step


def _unknown_step(sketcher: Sketcher, value: ir.Value) -> ir.Value:
    """Compute an odd step from the number of elements: int64 (1,)."""
    size = sketcher.sketch(value, "size", 0)
    assert size is not None
    step, integer = size, ir.DataType.INT64
    for op_type, number in (("Div", 2 * THINNED), ("Mul", 2), ("Add", 1)):
        step = sketcher.add(
            op_type, [step, sketcher.integers((number,))], like=value, dtype=integer
        )
    return step


SKETCHES: Mapping[str, Callable[[Sketcher, ir.Value, int], ir.Value | None]] = {
    "low": _low,
    "high": _high,
    "low_per_sample": _per_sample("ReduceMin"),
    "high_per_sample": _per_sample("ReduceMax"),
    "low_per_channel": _per_channel("ReduceMin"),
    "high_per_channel": _per_channel("ReduceMax"),
    "mean": _mean,
    "mean_square": _mean_square,
    "size": _size,
    "thinned": _thinned,
}
"""What can be computed inside the graph."""
_PER_CHANNEL = {"low_per_channel", "high_per_channel", "mean", "mean_square"}
