"""Integer grids: real number = scale * (integer - zero point), cut off at both ends.

Values beyond the ends saturate. They must never wrap around as integers modulo 2^8 would: the
smallest overflow would turn the largest value into the smallest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SMALLEST_SCALE = float(np.float32(1e-30))
"""Products of two scales and quotients by a third stay normal float32 numbers down to here."""


@dataclass(frozen=True)
class IntegerRange:
    """The integers of a grid.

    Attributes:
        low: Smallest integer used.
        high: Largest integer used.
        dtype: Storage type.
    """

    low: int
    high: int
    dtype: np.dtype[Any]


UINT8 = IntegerRange(0, 255, np.dtype(np.uint8))
INT8_SYMMETRIC = IntegerRange(-127, 127, np.dtype(np.int8))
INT32 = IntegerRange(-(2**31), 2**31 - 1, np.dtype(np.int32))


@dataclass(frozen=True)
class Grid:
    """One grid for a whole tensor.

    Attributes:
        scale: Step, a float32 number above zero.
        zero_point: The integer that stands for exactly 0.0.
        integers: The integers in use.
    """

    scale: float
    zero_point: int
    integers: IntegerRange = UINT8

    @property
    def low(self) -> float:
        """Smallest number on the grid."""
        return self.scale * (self.integers.low - self.zero_point)

    @property
    def high(self) -> float:
        """Largest number on the grid."""
        return self.scale * (self.integers.high - self.zero_point)

    def quantize(self, array: Array) -> Array:
        """Round to the nearest integer of the grid (halves to even), saturating at its ends."""
        with np.errstate(over="ignore"):  # infinity saturates like every other large number
            steps = np.rint(array.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        limited: Array = np.clip(steps, self.integers.low, self.integers.high)
        return limited.astype(self.integers.dtype)

    def dequantize(self, array: Array) -> Array:
        """Return the float32 numbers that the integers stand for."""
        steps: Array = array.astype(np.float32) - np.float32(self.zero_point)
        with np.errstate(over="ignore"):  # the ends of the widest grids lie beyond float32
            return np.asarray(steps * np.float32(self.scale))


def asymmetric(low: float, high: float, integers: IntegerRange = UINT8) -> Grid:
    """Return the grid that spans ``low`` to ``high`` and zero, with zero exactly on it.

    Args:
        low: Finite.
        high: Finite, not below ``low``.
        integers: The integers to use.

    Raises:
        ValueError: The range is not finite or is reversed.
    """
    low, high = _with_zero(low, high)
    steps = integers.high - integers.low
    # In double precision: high - low may overflow float32, and rounding twice could move an end.
    scale = float(np.float32(max((high - low) / steps, 0.0)))
    if scale < SMALLEST_SCALE:
        # A constant zero: any step will do, and 1 is harmless in every product of scales.
        scale = 1.0 if high - low == 0.0 else SMALLEST_SCALE
    zero_point = round(integers.low - low / scale)
    return Grid(scale, min(max(zero_point, integers.low), integers.high), integers)


def symmetric(low: float, high: float, integers: IntegerRange = UINT8) -> Grid:
    """Return the grid around zero that spans ``low`` to ``high``.

    Its zero point is the middle of the integers, or their smallest one when ``low`` is not below
    zero: the other half would never be used.

    Raises:
        ValueError: The range is not finite or is reversed.
    """
    low, high = _with_zero(low, high)
    middle = integers.low if low == 0.0 else (integers.low + integers.high + 1) // 2
    bound = max(-low, high)
    scale = float(np.float32(bound / (integers.high - middle)))
    if scale < SMALLEST_SCALE:
        scale = 1.0 if bound == 0.0 else SMALLEST_SCALE
    return Grid(scale, middle, integers)


def centred(low: float, high: float, integers: IntegerRange) -> Grid:
    """Return the grid with zero point 0 that spans ``low`` to ``high``, whatever their signs.

    Raises:
        ValueError: The range is not finite or is reversed.
    """
    low, high = _with_zero(low, high)
    bound = max(-low, high)
    scale = float(np.float32(bound / integers.high))
    if scale < SMALLEST_SCALE:
        scale = 1.0 if bound == 0.0 else SMALLEST_SCALE
    return Grid(scale, 0, integers)


def _with_zero(low: float, high: float) -> tuple[float, float]:
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"no grid for the range {low} to {high}")
    return min(low, 0.0), max(high, 0.0)
