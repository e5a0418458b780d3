"""A weight as small integers with scales, before anybody decides how the file stores them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_HALF_SMALLEST = 2.0**-24
_HALF_ORDINARY = 2.0**-11
_HALF_LARGEST = 60000.0


@dataclass(frozen=True, eq=False)
class Codes:
    """Integers in blocks: number = scale * (integer - zero point).

    Attributes:
        integers: int (rows, columns).
        scales: float32 (rows, blocks); float16 numbers where :attr:`half`.
        zeros: int (rows, blocks), or None for zero throughout.
        bits: Width of an integer.
        block: Columns per scale; the last block may be smaller.
    """

    integers: Array
    scales: Array
    zeros: Array | None
    bits: int
    block: int

    @property
    def low(self) -> int:
        """Smallest integer of the width: signed exactly when there are no zero points."""
        return -(2 ** (self.bits - 1)) if self.zeros is None else 0

    @property
    def half(self) -> bool:
        """True when float16 holds every scale exactly."""
        return bool(np.array_equal(self.scales.astype(np.float16).astype(np.float32), self.scales))

    def numbers(self) -> Array:
        """Return the float32 numbers that the runtime will compute with."""
        columns = self.integers.shape[1]
        scales = np.repeat(self.scales, self.block, axis=1)[:, :columns]
        steps = self.integers.astype(np.float32)
        if self.zeros is not None:
            steps -= np.repeat(self.zeros, self.block, axis=1)[:, :columns].astype(np.float32)
        return np.asarray(steps * scales, np.float32)


def storable(scales: Array) -> Array:
    """Round scales to what the file will hold: float16 where their range allows, else float32.

    Rounding them before the integers are chosen lets the integers make up for it. A few very small
    scales beside ordinary ones lose digits that nobody would notice.

    Args:
        scales: Above zero.
    """
    largest = float(scales.max(initial=0.0))
    if not _HALF_ORDINARY <= largest <= _HALF_LARGEST:
        return np.asarray(scales, np.float32)
    return np.maximum(scales, _HALF_SMALLEST).astype(np.float16).astype(np.float32)


def even_block(columns: int, wanted: int) -> int:
    """Return the divisor of ``columns`` that is closest to ``wanted``, as a ratio; smaller on ties.

    Args:
        columns: At least 1.
        wanted: Columns per scale; 0: all.
    """
    if wanted == 0 or wanted >= columns:
        return columns
    divisors = [d for d in range(1, columns + 1) if columns % d == 0]
    return min(divisors, key=lambda d: (abs(math.log(d / wanted)), d))
