"""Smallest and largest element of a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from converter.calibration.statistic import ONE, Request, Source

if TYPE_CHECKING:
    import numpy as np


@dataclass
class MinMax:
    """The range of all elements seen; merging is exact and independent of order and grouping.

    Attributes:
        low: Smallest element, inf before the first one. NaN once a NaN was seen.
        high: Largest element, -inf before the first one. NaN once a NaN was seen.
    """

    sketches: ClassVar[tuple[str, ...]] = ("low", "high")

    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def begin(cls, request: Request) -> Self:
        """Make an empty one."""
        return cls()

    def update(self, array: np.ndarray[Any, Any], source: Source = ONE) -> None:
        """Take in one tensor; an empty one changes nothing."""
        if array.size:
            self._widen(float(array.min()), float(array.max()))

    def update_reduced(
        self,
        *values: np.ndarray[Any, Any],
        source: Source = ONE,
    ) -> None:
        """Take in one tensor by the smallest and largest elements of its parts."""
        low, high = values
        if low.size:
            ends = float(low.min()), float(high.max())
            # A maximum that skips NaN finds nothing at all where there is nothing else.
            self._widen(*(ends if not ends[0] > ends[1] else (math.nan, math.nan)))

    def merge(self, other: MinMax) -> None:
        """Take in everything that ``other`` has seen."""
        self._widen(other.low, other.high)

    def state(self) -> dict[str, Any]:
        """Return both ends."""
        return {"low": self.low, "high": self.high}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Build it again from :meth:`state`."""
        return cls(**state)

    @property
    def nbytes(self) -> int:
        """Memory held: two numbers."""
        return 16

    @property
    def seen(self) -> bool:
        """True once at least one element was taken in."""
        return not (self.low == math.inf and self.high == -math.inf)

    @property
    def finite(self) -> bool:
        """True when both ends are finite numbers."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def _widen(self, low: float, high: float) -> None:
        # A NaN that was seen stays: no number is smaller or larger than it.
        if low < self.low or math.isnan(low):
            self.low = low
        if high > self.high or math.isnan(high):
            self.high = high
