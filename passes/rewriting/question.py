"""What an operator is asked for the dimensions of its outputs, and how dimensions broadcast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from passes.rewriting.facts import UNKNOWN, Dims, Fact, Size
from passes.rewriting.symbols import unknown


@dataclass(frozen=True, slots=True)
class Question:
    """A node and what is certain about its inputs.

    Attributes:
        node: The node.
        inputs: One fact per input.
        version: Default operator set in force.
    """

    node: ir.Node
    inputs: tuple[Fact, ...]
    version: int

    def input(self, index: int) -> Fact:
        """Return the fact of an input; unknown when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else UNKNOWN

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def integer(self, name: str, default: int | None = None) -> int | None:
        """Return an integer attribute."""
        attribute = self.node.attributes.get(name)
        if attribute is None or attribute.type != ir.AttributeType.INT:
            return default
        return attribute.as_int()

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute with integers."""
        attribute = self.node.attributes.get(name)
        if attribute is None or attribute.type != ir.AttributeType.INTS:
            return None
        return tuple(attribute.as_ints())

    def vector(self, name: str, index: int, since: int) -> Dims | None:
        """Return integers that are an input from operator set ``since`` on, an attribute before."""
        return self.input(index).content if self.version >= since else self.integers(name)


Rule = Callable[[Question], tuple[Fact, ...]]


def broadcast(*shapes: Dims | None) -> Dims | None:
    """Return the shape that results from numpy broadcasting."""
    result: Dims | None = ()
    for shape in shapes:
        if result is None or shape is None:
            return None
        pairs = zip_longest(reversed(result), reversed(shape), fillvalue=1)
        result = tuple(_widest(a, b) for a, b in pairs)[::-1]
    return result


def _widest(a: Size, b: Size) -> Size:
    """Return the size of an axis after broadcasting; a fixed size above 1 always wins."""
    if b in (a, 1):
        return a
    if a == 1:
        return b
    for size in (a, b):
        if isinstance(size, int):
            return size
    first, second = sorted((a, b), key=lambda dim: dim.serial)  # type: ignore[union-attr]
    return unknown("wider", first, second)


def axis_in(axis: int | None, rank: int) -> int | None:
    """Return a non-negative axis, or None when there is no such axis."""
    if axis is None or not -rank <= axis < rank:
        return None
    return axis % rank
