"""Magnitude as importance: unsigned integers that order floats by absolute value.

The bits of an IEEE float without its sign, read as an unsigned integer, rise with the absolute
value: zero is 0 (also -0.0), denormals come next, infinity follows the largest finite number and
NaN lies above infinity. Comparing them needs no float arithmetic, is exact for every type and
costs one AND per element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy
import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_SIGNED: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}


@dataclass(frozen=True)
class Magnitude:
    """The keys of one element type.

    Attributes:
        float_type: Type whose bits are the keys; arrays of narrower types are widened to it, which
            is exact, so that tensors of several types can be ordered together.
    """

    float_type: np.dtype[Any]

    @classmethod
    def of(cls, tensors: Sequence[ir.TensorProtocol]) -> Magnitude:
        """Return the keys in which all the tensors can be compared."""
        kinds = {np.dtype(tensor.dtype.numpy()) for tensor in tensors}
        return cls(kinds.pop() if len(kinds) == 1 else np.dtype(np.float64))

    @property
    def key_type(self) -> Any:
        """Unsigned integer type of the keys."""
        return _UNSIGNED[self.float_type.itemsize]

    @property
    def bits(self) -> int:
        """Number of bits that a key can have."""
        return 8 * self.float_type.itemsize - 1

    @property
    def infinity(self) -> int:
        """Key of infinity; larger keys are NaN."""
        return self._bits_of(self.float_type.type(np.inf))

    def keys(self, chunk: Array) -> Array:
        """Return the keys of a flat array of floats as a new array."""
        values = chunk.astype(self.float_type, copy=False)
        mask = self.key_type((1 << self.bits) - 1)
        keys: Array = np.bitwise_and(values.view(self.key_type), mask)
        return keys

    def at_least(self, value: float) -> int:
        """Return the smallest key whose number is not below ``value`` (>= 0, finite)."""
        with np.errstate(over="ignore"):
            nearest = self.float_type.type(value)
        key = self._bits_of(nearest)
        return key + 1 if float(nearest) < value else key

    def value(self, key: int) -> float:
        """Return the number of a key; exact, because every type here fits into float64."""
        return float(np.array([key], self.key_type).view(self.float_type)[0])

    def _bits_of(self, number: Any) -> int:
        return int(np.array([number], self.float_type).view(self.key_type)[0])


def drop_below(chunk: Array, key: int) -> Array:
    """Return a copy of a flat float array with every element zeroed whose key is below ``key``.

    ``key`` is one of the array's own type, from 0 to that of infinity plus 1.
    """
    signed = _SIGNED[chunk.dtype.itemsize]
    bits = chunk.view(signed)
    keep = np.bitwise_and(bits, np.iinfo(signed).max)
    # The sign of (key - 1 - magnitude), spread over all bits, is the mask of what stays: three
    # integer operations in place, where a boolean mask would need a slower selection.
    np.subtract(signed(key - 1), keep, out=keep)
    np.right_shift(keep, 8 * chunk.dtype.itemsize - 1, out=keep)
    np.bitwise_and(bits, keep, out=keep)
    result: Array = keep.view(chunk.dtype)
    return result
