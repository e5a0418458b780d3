"""What is known of a node before anything runs, and how shapes are compared.

The rules that use it are in the modules beside this one, the table of them in
:mod:`converter.ops.facts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int | None, ...]
Problems = Iterator[str]
LARGEST = (1 << 31) - 1
"""Largest number that is taken for a size, a stride or a count of groups."""

_SMALL = 1 << 12


@dataclass(frozen=True)
class Known:
    """What is known of a value before anything runs.

    Attributes:
        element: Element type (``TensorProto.DataType``), or None.
        shape: Dimensions, None for each unknown one; or None.
        tensor: The value itself, where it is a constant.
    """

    element: int | None = None
    shape: Shape | None = None
    tensor: onnx.TensorProto | None = None


NOTHING = Known()
"""A value that is there but unknown."""


@dataclass(frozen=True)
class NodeFacts:
    """A node and what is known of its inputs.

    Attributes:
        inputs: One per input; None for an input that is left out.
        attributes: Values by name; texts as bytes.
        outputs: Number of outputs.
        opset: Version of the operator's set.
    """

    inputs: Sequence[Known | None]
    attributes: Mapping[str, Any]
    outputs: int
    opset: int

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an input as far as it is known."""
        known = self.inputs[index] if index < len(self.inputs) else None
        return None if known is None else known.shape

    def array(self, index: int) -> np.ndarray[Any, Any] | None:
        """Return a small constant input, or None."""
        known = self.inputs[index] if index < len(self.inputs) else None
        tensor = None if known is None else known.tensor
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return onnx.numpy_helper.to_array(tensor) if math.prod(tensor.dims) <= _SMALL else None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)


Rule = Callable[[NodeFacts], Problems]
"""Looks at a node and yields a sentence for everything that is wrong with it."""


def normal_axis(axis: int, rank: int) -> int | None:
    """Return the axis counted from the front, or None when it is out of range."""
    return axis % rank if -rank <= axis < rank else None


def fits(found: Shape, wanted: Shape) -> bool:
    """Tell whether two shapes can be the same one."""
    return len(found) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(found, wanted, strict=True)
    )


def spreads(shape: Shape, target: Shape) -> bool:
    """Tell whether a shape can be broadcast to another without changing that one."""
    tail = target[len(target) - len(shape) :] if len(shape) <= len(target) else None
    return tail is not None and all(
        a in {1, None} or b is None or a == b for a, b in zip(shape, tail, strict=True)
    )


def broadcast(shapes: Sequence[Shape]) -> Shape | None:
    """Return the shape that others broadcast to, or None when they do not."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[int | None] = []
    for place in range(-rank, 0):
        sizes = {shape[place] for shape in shapes if len(shape) >= -place} - {1, None}
        if len(sizes) > 1:
            return None
        result.append(sizes.pop() if sizes else None)
    return tuple(result)
