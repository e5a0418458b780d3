"""A constant, and the ways in which a file can store it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from passes.encoding.build import Builder

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
    """

    value: ir.Value
    array: Array
    rows: int = 1
    blank: int = 0

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
