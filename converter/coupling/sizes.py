"""Arithmetic with sizes: what it gives, and which axes must stay because of it.

Shape hands out sizes. Where they become operands such as the shape of a Reshape, they follow when
an axis is cut. Where they become numbers (a mean's divisor, the scale of an attention), the cut
writes down what they were; where that depends on the input, the axis stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.ops.axes.movement import sliced

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.ops.axes.site import Axes

Array = np.ndarray[Any, Any]
Origins = tuple[tuple[Array, ...], ...]
"""For every element the labels of the axes whose sizes it was computed from."""
COMPUTED = "the model computes with the size of the axis"
_MOST = 64
_FAR = 1 << 62
_OPERANDS: dict[str, tuple[int, ...]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Inputs that say how long axes are, or where they are cut."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """A small value made of sizes and constants.

    Attributes:
        array: float64, NaN where a size is not certain.
        origins: Of every element, in C order.
        whole: Integers: a division drops the remainder.
    """

    array: Array
    origins: Origins
    whole: bool = True

    @property
    def certain(self) -> bool:
        """Whether all elements are known."""
        return bool(np.isfinite(self.array).all())


class Sizes:
    """Values that follow from sizes and constants alone, in the order of the graph."""

    def __init__(self) -> None:
        self._numbers: dict[ir.Value, Numbers] = {}
        self.used: list[tuple[Array, ir.Node]] = []

    def exact(self, value: ir.Value) -> Array | None:
        """Return a value as integers where it is certain."""
        numbers = self._numbers.get(value)
        if numbers is None or not numbers.whole or not numbers.certain:
            return None
        return numbers.array.clip(-_FAR, _FAR).astype(np.int64)

    def vectors(self) -> dict[ir.Value, Array]:
        """Return every vector of integers that is certain."""
        found = {value: self.exact(value) for value in self._numbers}
        return {value: x for value, x in found.items() if x is not None and x.ndim == 1}

    def shape_of(self, node: ir.Node, sizes: Sequence[int], axes: Axes) -> None:
        """Take in a Shape node: sizes are certain where weights make them, or the file says so."""
        fixed = g.constant(node.inputs[0]) is not None
        declared = node.inputs[0].shape if node.inputs[0] is not None else None
        array, origins = np.full(len(sizes), np.nan), []
        for axis, size in enumerate(sizes):
            labels = axes[axis] if axis < len(axes) else None
            stated = declared[axis] if declared is not None and len(declared) > axis else None
            if labels is not None or fixed or isinstance(stated, int):
                array[axis] = size
            origins.append(() if labels is None else (labels,))
        start = node.attributes.get_int("start", 0) or 0
        end = node.attributes.get_int("end", None)
        if node.op_type == "Size":
            everything = tuple(labels for one in origins for labels in one)
            found = Numbers(np.asarray(math.prod(array)), (everything,))
        else:
            found = Numbers(array[start:end], tuple(origins[start:end]))
        self._numbers[node.outputs[0]] = found

    def visit(self, node: ir.Node, sizes: Sequence[int] | None) -> None:
        """Follow numbers through a node; note where they meet what depends on the input.

        Args:
            node: Any but Shape and Size.
            sizes: Of its first output, None where they are not known.
        """
        read = [i for i, value in enumerate(node.inputs) if value in self._numbers]
        if node.op_type == "Constant" or not node.inputs:
            return
        if not read and any(v is not None and g.constant(v) is None for v in node.inputs):
            return
        operands = [self._of(value) for value in node.inputs]
        if all(x is not None for x in operands) and node.outputs and sizes is not None:
            numbers = _follow(node, [x for x in operands if x is not None], sizes)
            if numbers is not None:
                self._numbers[node.outputs[0]] = numbers
                return
        harmless = _OPERANDS.get(node.op_type, ()) if node.domain in g.DEFAULT_DOMAINS else ()
        for position in read:
            if position not in harmless:
                self.use(node.inputs[position], node)

    def use(self, value: ir.Value | None, node: ir.Node) -> None:
        """Note that sizes become numbers of a result; what is certain is kept as a constant."""
        numbers = self._numbers.get(value) if value is not None else None
        if numbers is not None and numbers.certain:
            return
        for origins in numbers.origins if numbers is not None else ():
            self.used.extend((labels, node) for labels in origins)

    def _of(self, value: ir.Value | None) -> Numbers | None:
        if value is None:
            return Numbers(np.zeros(0), ())
        if value in self._numbers:
            return self._numbers[value]
        tensor = g.constant(value)
        if tensor is None or tensor.size > _MOST or tensor.dtype.name == "STRING":
            return None
        whole = tensor.dtype.is_integer() or tensor.dtype.name == "BOOL"
        array = tensor.numpy().astype(np.float64)
        return Numbers(array, ((),) * array.size, whole=whole)


def _follow(node: ir.Node, given: Sequence[Numbers], sizes: Sequence[int]) -> Numbers | None:
    """Return what a node makes of numbers; unknown operators make unknown numbers."""
    if math.prod(sizes) > _MOST or node.domain not in g.DEFAULT_DOMAINS:
        return None
    rule = _RULES.get(node.op_type)
    whole = all(numbers.whole for numbers in given)
    if rule is not None:
        picked = _tried(rule, node, [numbers.array for numbers in given])
        if picked is not None and picked.size == math.prod(sizes):
            array = picked.reshape(sizes)
            if node.op_type == "Div" and whole:
                array = np.trunc(array)
            if node.op_type == "Cast":
                whole = node.attributes.get_int("to", 7) in (6, 7)
                array = np.trunc(array) if whole else array
            return Numbers(array, _origins(node, given, array.size), whole=whole)
    everything: tuple[Array, ...] = ()
    read = given[: _CONTENTS.get(node.op_type, len(given))]
    if not all(numbers.certain for numbers in read):  # else the cut writes down what they were
        everything = tuple(labels for x in read for one in x.origins for labels in one)
    unknown = np.full(tuple(sizes), np.nan)
    return Numbers(unknown, (everything,) * unknown.size, whole=whole)


def _tried(rule: Rule, node: ir.Node, given: Sequence[Array]) -> Array | None:
    """Return None where the operands do not fit: the model itself says what is wrong with them."""
    try:
        return rule(node, given)
    except (ValueError, IndexError, TypeError):
        return None


def _origins(node: ir.Node, given: Sequence[Numbers], size: int) -> Origins:
    """Return the origins of a result, element by element where the operator moves elements."""
    given = given[: _CONTENTS.get(node.op_type, len(given))]
    table = [one for numbers in given for one in numbers.origins]
    everything = tuple(labels for one in table for labels in one)
    rule = _RULES[node.op_type]
    if node.op_type in _MOVES:
        starts = np.cumsum([0, *(len(numbers.origins) for numbers in given)])
        ids = [
            np.arange(start, start + numbers.array.size).reshape(numbers.array.shape)
            for start, numbers in zip(starts, given, strict=False)
        ]
        operands = [ids[0], *(numbers.array for numbers in given[1:])]
        moved = _tried(rule, node, ids if node.op_type == "Concat" else operands)
        if moved is not None:
            return tuple(table[int(i)] for i in moved.ravel())
    return (everything,) * size


Rule = Callable[["ir.Node", Sequence[Array]], Array | None]


def _gather(node: ir.Node, given: Sequence[Array]) -> Array | None:
    if not np.isfinite(given[1]).all():
        return None
    return given[0].take(given[1].astype(np.int64), axis=node.attributes.get_int("axis", 0))


def _concat(node: ir.Node, given: Sequence[Array]) -> Array:
    return np.concatenate(given, axis=node.attributes.get_int("axis", 0))


def _slice(node: ir.Node, given: Sequence[Array]) -> Array | None:
    if len(given) < 3 or not all(np.isfinite(x).all() for x in given[1:]):
        return None
    array = given[0]
    starts, ends = (_whole(x) for x in given[1:3])
    rest = [_whole(x) for x in given[3:]]
    axes = rest[0] if rest and rest[0] else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 and rest[1] else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        array = array.take(sliced(array.shape[axis], start, end, step), axis=axis)
    return array


def _whole(array: Array) -> list[int]:
    found: list[int] = array.ravel().clip(-_FAR, _FAR).astype(np.int64).tolist()
    return found


def _transpose(node: ir.Node, given: Sequence[Array]) -> Array:
    return given[0].transpose(node.attributes.get_ints("perm", None))


def _filled(node: ir.Node, given: Sequence[Array]) -> Array | None:
    attribute = node.attributes.get("value")
    value = 0.0 if attribute is None else float(attribute.as_tensor().numpy().ravel()[0])
    return np.full(given[0].astype(np.int64), value) if np.isfinite(given[0]).all() else None


def _first(_: ir.Node, given: Sequence[Array]) -> Array:
    return given[0]


def _plain(function: Callable[..., Any]) -> Rule:
    def rule(_: ir.Node, given: Sequence[Array]) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(*given))

    return rule


_MOVES = (
    *("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"),
    "Unsqueeze",
)
_CONTENTS = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Inputs that give the numbers; the others say how many there are."""
_RULES: dict[str, Rule] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "Cast": _first,
    "Ceil": _plain(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _plain(np.divide),
    "Floor": _plain(np.floor),
    "Gather": _gather,
    "Identity": _first,
    "Max": _plain(lambda *x: np.max(np.broadcast_arrays(*x), axis=0)),
    "Min": _plain(lambda *x: np.min(np.broadcast_arrays(*x), axis=0)),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Reshape": _first,
    "Slice": _slice,
    "Sqrt": _plain(np.sqrt),
    "Squeeze": _first,
    "Transpose": _transpose,
    "Sub": _plain(np.subtract),
    "Unsqueeze": _first,
}
