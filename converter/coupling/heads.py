"""Which part of a split axis is removed from: heads of an attention, or dimensions within them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converter.core import graph as g
from converter.ops.axes.reshape import factor_groups
from converter.ops.axes.site import Unclear

if TYPE_CHECKING:
    import onnx_ir as ir

Shapes = Mapping[str, tuple[int, ...]]
Positions = tuple[int | None, ...]
"""Where each of the axes that are followed lies in a value; None: it is gone."""
_FARTHEST = 14
"""Nodes between the split and the product of two activations."""
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ENDS = ("Conv", "ConvTranspose", "Gemm", "Shape")
_PRODUCTS = ("Attention", "Einsum", "MatMul")


class Choices:
    """Answers ``Site.prefer``.

    Args:
        shapes: Sizes by value name.
        heads: Whether heads are preferred to the dimensions within them.
        flipped: Axes that splits take instead of their own choice, by output name.
    """

    def __init__(
        self, shapes: Shapes, *, heads: bool, flipped: Mapping[str, int] | None = None
    ) -> None:
        self._shapes = shapes
        self._heads = heads
        self._flipped = flipped or {}

    def __call__(self, node: ir.Node, sizes: Sequence[int]) -> tuple[int, str | None]:
        """Return the axis to remove from, and what people call its indices.

        Where the axes become batch and contracted axes of a product of two activations, they are
        heads and dimensions within heads; anywhere else the axis that leaves the most atoms.
        """
        parts = [axis for axis, size in enumerate(sizes) if size > 1]
        forced = self._flipped.get(node.outputs[0].name or "")
        head, inner = _Trace(self._shapes, len(sizes)).roles(node.outputs[0], parts)
        axis = max(parts, key=lambda axis: sizes[axis])
        if head is not None and inner is not None:
            axis = head if self._heads else inner
        if forced in parts:
            axis = forced
        return axis, "head" if axis == head else None


class _Trace:
    """Follows axes of a value forwards, to the products of two activations that they meet."""

    def __init__(self, shapes: Shapes, rank: int) -> None:
        self._shapes = shapes
        self._rank = rank

    def roles(self, value: ir.Value, parts: Sequence[int]) -> tuple[int | None, int | None]:
        """Return which axis is the batch of products (heads), and which one is multiplied."""
        heads: set[int] = set()
        inner: set[int] = set()
        start: Positions = tuple(axis if axis in parts else None for axis in range(self._rank))
        front: list[tuple[ir.Value, Positions]] = [(value, start)]
        seen = {value}
        for _ in range(_FARTHEST):
            following: list[tuple[ir.Value, Positions]] = []
            for here, positions in front:
                for node, index in here.uses():
                    if g.is_op(node, *_PRODUCTS):
                        self._meet(node, index, positions, heads, inner)
                        continue
                    for output in node.outputs:
                        moved = self._moved(node, here, output, positions)
                        if output not in seen and any(p is not None for p in moved):
                            seen.add(output)
                            following.append((output, moved))
            front = following
        return (min(heads - inner, default=None), min(inner - heads, default=None))

    def _meet(
        self, node: ir.Node, index: int, positions: Positions, heads: set[int], inner: set[int]
    ) -> None:
        sizes = self._sizes(node.inputs[index])
        if index > 2 or sizes is None or any(g.constant(v) is not None for v in node.inputs[:2]):
            return
        if node.op_type == "Einsum":
            batch = _letters_of_batch(node, index)
        else:
            batch = set(range(len(sizes) - 2))
        for axis, position in enumerate(positions):
            if position is not None:
                (heads if position in batch else inner).add(axis)

    def _sizes(self, value: ir.Value | None) -> tuple[int, ...] | None:
        return None if value is None else self._shapes.get(value.name or "")

    def _moved(
        self, node: ir.Node, value: ir.Value, output: ir.Value, positions: Positions
    ) -> Positions:
        gone: Positions = (None,) * len(positions)
        before, after = self._sizes(value), self._sizes(output)
        if before is None or after is None:
            return gone
        if node.op_type in _ENDS:
            return gone
        move = _MOVES.get(node.op_type, _in_place)
        where = move(node, before, after)
        return tuple(None if p is None else where.get(p) for p in positions)


def _in_place(_: ir.Node, before: Sequence[int], after: Sequence[int]) -> dict[int, int]:
    """Axes are aligned from the right."""
    shift = len(after) - len(before)
    return {} if shift < 0 else {axis: axis + shift for axis in range(len(before))}


def _transposed(node: ir.Node, before: Sequence[int], _: Sequence[int]) -> dict[int, int]:
    order = node.attributes.get_ints("perm", list(reversed(range(len(before)))))
    return {axis: place for place, axis in enumerate(order or ())}


def _picked(node: ir.Node, before: Sequence[int], after: Sequence[int]) -> dict[int, int]:
    """Gather: one axis is replaced."""
    axis = node.attributes.get_int("axis", 0) or 0
    axis %= max(len(before), 1)
    shift = len(after) - len(before)
    return {i: i if i < axis else i + shift for i in range(len(before)) if i != axis}


def _reshaped(_: ir.Node, before: Sequence[int], after: Sequence[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    try:
        groups = list(factor_groups(before, after))
    except Unclear:
        return found
    for ours, theirs in groups:
        long = [axis for axis in theirs if after[axis] > 1]
        if long:
            found.update((axis, long[-1]) for axis in ours if before[axis] > 1)
    return found


def _letters_of_batch(node: ir.Node, index: int) -> set[int]:
    """Return the axes of an operand of Einsum that all operands and the result have."""
    left, _, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if index >= len(terms) or not result or "." in left:
        return set()
    shared = set(result).intersection(*terms)
    return {axis for axis, letter in enumerate(terms[index]) if letter in shared}


_MOVES: dict[str, Callable[[Any, Sequence[int], Sequence[int]], dict[int, int]]] = {
    "Transpose": _transposed,
    "Gather": _picked,
    **dict.fromkeys(_RESHAPES, _reshaped),
}
