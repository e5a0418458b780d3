"""A constant, and the ways in which a file can store it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from passes.encoding.build import Builder
    from passes.encoding.weights import View

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant as it is stored now.

    Attributes:
        value: Initializer, or output of a Constant node.
        array: Its elements, not to be written to; any element type that numpy or ml_dtypes has.
        rows: Number of rows that could have a scale each: the array is (outer, summed, inner) for
            the products it is used in, see :class:`passes.encoding.weights.View`; 1 when unknown.
        blank: The element that most of the array is: 0, or the zero point of integers.
        view: Which axes the rows are; None when unknown.
    """

    value: ir.Value
    array: Array
    rows: int = 1
    blank: int = 0
    view: View | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements in the file now."""
        return int((self.value.const_value or ir.tensor(self.array)).nbytes)


@dataclass(frozen=True, eq=False)
class Offer:
    """One way to store a constant.

    Attributes:
        form: Name for the report: "bitmask", "gaps", "palette", "scaled", "half", "plain" ...
        nbytes: What it adds to the file: elements, tables, nodes, names; an upper bound that is
            within a few percent.
        nanoseconds: What decoding costs at load, per element, estimated.
        peak: Bytes that decoding needs for a moment beside the result.
        error: Largest difference to the array, relative to its largest element; 0: exact.
        decoded: Computes in numpy what the nodes will make: same type and shape as the array.
        write: Adds nodes and constants with a builder and returns the value that takes the place
            of the constant; its type is the constant's.
    """

    form: str
    nbytes: int
    nanoseconds: float
    peak: int
    error: float
    decoded: Callable[[], Array]
    write: Callable[[Builder], ir.Value]


@dataclass(frozen=True, eq=False)
class Member:
    """What becomes of one constant in a pool; see :class:`Offer` for the attributes they share.

    Attributes:
        constant: The constant.
        nbytes: Its part of what the pool adds to the file, the decoder's divided by size.
    """

    constant: Constant
    form: str
    nbytes: int
    nanoseconds: float
    error: float
    decoded: Callable[[], Array]


@dataclass(frozen=True, eq=False)
class Pool:
    """Several constants that share one decoder, which small ones would not be worth alone.

    Attributes:
        members: The constants, in the order they were given.
        nbytes: What all of them add to the file.
        peak: Bytes that onnxruntime holds for a moment beside the results: it keeps what it has
            folded until all is folded, so those of several pools add up.
        write: Adds nodes and constants with a builder of the graph that the constants live in, and
            returns the values that take their places, in the order of the members. No value but
            these states its type: declarations would be a third of what a node adds to a file.
    """

    members: tuple[Member, ...]
    nbytes: int
    peak: int
    write: Callable[[Builder], Sequence[ir.Value]]
