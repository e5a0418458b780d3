"""Mean of the ranges of single samples: one odd sample moves it little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from converter.calibration.statistic import ONE, Request, Source, per_sample

if TYPE_CHECKING:
    import numpy as np

_UNIT = 149
"""Every float32 number is a multiple of 2^-149, so sums of them are exact as integers."""


@dataclass
class Average:
    """The mean smallest and mean largest element of a sample; merging is exact in any order.

    Attributes:
        lows: Sum of the samples' smallest elements, in units of 2^-149.
        highs: Sum of the samples' largest elements, in units of 2^-149.
        count: Samples taken in.
        unusable: Samples that held NaN or infinity; they are left out of the sums.
    """

    sketches: ClassVar[tuple[str, ...]] = ("low_per_sample", "high_per_sample")

    lows: int = 0
    highs: int = 0
    count: int = 0
    unusable: int = 0

    @classmethod
    def begin(cls, request: Request) -> Self:
        """Make an empty one."""
        return cls()

    def update(self, array: np.ndarray[Any, Any], source: Source = ONE) -> None:
        """Take in one tensor; an empty one changes nothing."""
        if array.size:
            rows = per_sample(array, source)
            self._add(rows.min(axis=1), rows.max(axis=1))

    def update_reduced(self, *values: np.ndarray[Any, Any], source: Source = ONE) -> None:
        """Take in one tensor by (smallest, largest) elements along its first axis."""
        low, high = values
        if low.size:
            highs = per_sample(high, source).max(axis=1)
            # one low end for all samples where no element can be negative
            lows = low.repeat(len(highs)) if low.ndim == 0 else per_sample(low, source).min(axis=1)
            self._add(lows, highs)

    def merge(self, other: Average) -> None:
        """Take in everything that ``other`` has seen."""
        self.lows += other.lows
        self.highs += other.highs
        self.count += other.count
        self.unusable += other.unusable

    def state(self) -> dict[str, Any]:
        """Return sums (as text, for they are long) and counts."""
        return {
            "lows": str(self.lows),
            "highs": str(self.highs),
            "count": self.count,
            "unusable": self.unusable,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Build it again from :meth:`state`."""
        return cls(
            int(state["lows"]), int(state["highs"]), int(state["count"]), int(state["unusable"])
        )

    @property
    def nbytes(self) -> int:
        """Memory held: two integers of at most 360 bits, two counts."""
        return 112

    @property
    def low(self) -> float:
        """Mean smallest element; inf before the first sample."""
        return self._mean(self.lows, math.inf)

    @property
    def high(self) -> float:
        """Mean largest element; -inf before the first sample."""
        return self._mean(self.highs, -math.inf)

    def _mean(self, total: int, missing: float) -> float:
        return total / (self.count << _UNIT) if self.count else missing

    def _add(self, lows: np.ndarray[Any, Any], highs: np.ndarray[Any, Any]) -> None:
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
            if not (math.isfinite(low) and math.isfinite(high)):
                self.unusable += 1
                continue
            self.lows += int(math.ldexp(low, _UNIT))
            self.highs += int(math.ldexp(high, _UNIT))
            self.count += 1
