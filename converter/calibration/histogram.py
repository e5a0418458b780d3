"""Histogram of a tensor's elements: 2,048 bins that double their width when the range grows.

Widths are powers of two and bins begin at multiples of them, so every bin of a coarse histogram is
the union of bins of a finer one. The width is the smallest that covers everything seen and zero in
2,048 bins. Both together make merging exact: the result depends on what was seen, not on its order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from converter.calibration.statistic import ONE, Request, Source

Array = np.ndarray[Any, Any]
BINS = 2048
_FINEST = -126
"""Exponent of the narrowest bins: its inverse is still a normal float32 number."""
_SHIFT = 11


@dataclass(eq=False)
class Histogram:
    """Counts of elements in bins of one width.

    Of large tensors the runtime hands out a part: every k-th element, k odd, see
    :data:`converter.calibration.sketches.THINNED`. Exact ends are what ``minmax`` is for.

    Attributes:
        exponent: Bins are ``2 ** exponent`` wide.
        first: Bin ``i`` holds the elements from ``(first + i) * width`` to below the next bin.
        counts: int64 (bins,), at most 2,048; empty before the first element.
        unusable: Elements that were NaN or infinite; they are not counted.
    """

    sketches: ClassVar[tuple[str, ...]] = ("thinned",)

    exponent: int = _FINEST
    first: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    unusable: int = 0

    @classmethod
    def begin(cls, request: Request) -> Self:
        """Make an empty one."""
        return cls()

    def update(self, array: Array, source: Source = ONE) -> None:
        """Take in one tensor; an empty one changes nothing."""
        flat = array.reshape(-1)
        if flat.dtype != np.float32:
            flat = flat.astype(np.float32)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            usable = flat[np.isfinite(flat)]
            self.unusable += flat.size - usable.size
            self.update(usable)
            return
        first, last = self._make_room(low, high)
        bins = flat * np.float32(2.0**-self.exponent)
        np.floor(bins, out=bins)
        bins -= np.float32(first)
        self._add(first, np.bincount(bins.astype(np.intp), minlength=last - first + 1))

    def update_reduced(self, *values: Array, source: Source = ONE) -> None:
        """Take in the part of a tensor that was handed out."""
        self.update(values[0], source)

    def merge(self, other: Histogram) -> None:
        """Take in everything that ``other`` has seen."""
        self.unusable += other.unusable
        if not other.counts.size:
            return
        if not self.counts.size:
            self.exponent, self.first = other.exponent, other.first
            self.counts = other.counts.copy()
            return
        finer = other
        if other.exponent > self.exponent:
            self._coarsen(other.exponent)
        # Both now have what they need of width; their union may need more.
        first, counts = _coarser(finer.first, finer.counts, self.exponent - finer.exponent)
        while _span(self.first, self.counts, first, counts) > BINS:
            self._coarsen(self.exponent + 1)
            first, counts = _coarser(first, counts, 1)
        self._add(first, counts)

    def state(self) -> dict[str, Any]:
        """Return the width, the place and the counts."""
        return {
            "exponent": self.exponent,
            "first": self.first,
            "counts": self.counts,
            "unusable": self.unusable,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Build it again from :meth:`state`."""
        counts = np.asarray(state["counts"], np.int64)
        return cls(int(state["exponent"]), int(state["first"]), counts, int(state["unusable"]))

    @property
    def nbytes(self) -> int:
        """Memory held, at most 2,048 counts."""
        return int(self.counts.nbytes) + 24

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(2.0**self.exponent)

    @property
    def total(self) -> int:
        """Elements counted."""
        return int(self.counts.sum())

    @property
    def edges(self) -> Array:
        """Ends of the bins: float64 (bins + 1,)."""
        return (self.first + np.arange(self.counts.size + 1, dtype=np.float64)) * self.width

    def _make_room(self, low: float, high: float) -> tuple[int, int]:
        """Widen the bins until the range fits; return the bins of both ends."""
        last_held = self.first + self.counts.size - 1
        held = (self.first, last_held) if self.counts.size else (0, 0)
        shift = 0
        exponent = self.exponent
        if not self.counts.size:
            exponent = _guess(low, high)
        while True:
            first, last = (
                math.floor(math.ldexp(low, -exponent)),
                math.floor(math.ldexp(high, -exponent)),
            )
            ends = min(first, held[0] >> shift, 0), max(last, held[1] >> shift, 0)
            if ends[1] - ends[0] < BINS:
                break
            exponent += 1
            shift += self.counts.size > 0
        if self.counts.size:
            self._coarsen(exponent)
        self.exponent = exponent
        return first, last

    def _coarsen(self, exponent: int) -> None:
        self.first, self.counts = _coarser(self.first, self.counts, exponent - self.exponent)
        self.exponent = exponent

    def _add(self, first: int, counts: Array) -> None:
        """Add counts of bins of the same width, which begin at bin ``first``."""
        if not self.counts.size:
            self.first, self.counts = first, counts.astype(np.int64)
            return
        start = min(first, self.first)
        end = max(first + counts.size, self.first + self.counts.size)
        if (start, end) != (self.first, self.first + self.counts.size):
            grown = np.zeros(end - start, np.int64)
            grown[self.first - start : self.first - start + self.counts.size] = self.counts
            self.first, self.counts = start, grown
        self.counts[first - start : first - start + counts.size] += counts


def _guess(low: float, high: float) -> int:
    """Return an exponent that is not too large for the range with zero."""
    span = max(high, 0.0) - min(low, 0.0)
    return max(_FINEST, math.frexp(span / BINS)[1] - 1) if span else _FINEST


def _coarser(first: int, counts: Array, doublings: int) -> tuple[int, Array]:
    """Join the bins of histograms ``2 ** doublings`` at a time."""
    while doublings > 0:
        step = min(doublings, _SHIFT)
        start = first >> step
        end = (first + counts.size - 1 >> step) + 1
        padded = np.zeros((end - start) << step, np.int64)
        padded[first - (start << step) :][: counts.size] = counts
        first, counts = start, padded.reshape(end - start, -1).sum(axis=1)
        doublings -= step
    return first, counts


def _span(first: int, counts: Array, other_first: int, other_counts: Array) -> int:
    """Return the bins from the first to the last of both and zero."""
    last = max(first + counts.size, other_first + other_counts.size, 1)
    return last - min(first, other_first, 0)
