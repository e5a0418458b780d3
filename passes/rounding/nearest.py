"""Scales for groups of weights, and rounding to the nearest step.

Rows are groups that share a scale: output channels, or blocks of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SMALLEST_SCALE = 1e-30
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Grid:
    """The integer grid of every row.

    Attributes:
        scales: float32 (rows,), above zero: real number per step.
        zeros: int32 (rows,): the integer that stands for exactly 0.0.
        low: Smallest integer.
        high: Largest integer.
    """

    scales: Array
    zeros: Array
    low: int
    high: int

    def quantize(self, rows: Array) -> Array:
        """Round (rows, K) to the nearest integers, saturating at both ends."""
        steps = np.rint(rows / self.scales[:, None].astype(np.float64)) + self.zeros[:, None]
        limited: Array = np.clip(steps, self.low, self.high)
        return limited.astype(np.int32)

    def dequantize(self, integers: Array) -> Array:
        """Return the numbers that integers (rows, K) stand for, float64."""
        steps: Array = integers - self.zeros[:, None].astype(np.float64)
        return steps * self.scales[:, None].astype(np.float64)


def integer_range(bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Return the ends of an integer type; ``narrow`` leaves out the one without a counterpart."""
    if not signed:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + (1 if narrow else 0), 2 ** (bits - 1) - 1


def symmetric(rows: Array, low: int, high: int) -> Grid:
    """Return grids with zero point 0 on which the largest magnitude of every row fits.

    An end that reaches further on one side is used: with -8..7, a row whose largest magnitude is
    negative gets steps of magnitude / 8 where the positive end still fits.

    Args:
        rows: float (rows, K).
        low: Below zero.
        high: Above zero.
    """
    positive = rows.max(axis=1, initial=0.0) / high
    negative = rows.min(axis=1, initial=0.0) / low
    scales = _safe(np.maximum(positive, negative))
    return Grid(scales, np.zeros(len(rows), np.int32), low, high)


def asymmetric(rows: Array, low: int, high: int) -> Grid:
    """Return grids from the smallest to the largest element of every row, zero exactly on them."""
    smallest = np.minimum(rows.min(axis=1, initial=0.0), 0.0).astype(np.float64)
    largest = np.maximum(rows.max(axis=1, initial=0.0), 0.0).astype(np.float64)
    return _spanning(smallest, largest, low, high)


def searched(
    rows: Array,
    grid: Grid,
    importance: Array | None = None,
    *,
    smallest: float = 0.4,
    candidates: int = 31,
    coherence: float = 0.0,
) -> Grid:
    """Shrink the scales where that makes the squared error of rounding to nearest smaller.

    Saturating a few large weights buys a finer step for all others. The zero points stay: the grid
    shrinks towards zero.

    Args:
        rows: float (rows, K).
        grid: Grids that hold everything.
        importance: Weight of every column's error, (K,) or (rows, K): the diagonal of the Gram
            matrix; None: all equal.
        smallest: Least share of the scale that is tried.
        candidates: Shares that are tried between that and 1.
        coherence: How much the square of the sum of a row's errors counts beside the sum of their
            squares: inputs that are never negative add errors up.

    Returns:
        The grids with the smallest error; those given where none is better.
    """
    wide = rows.astype(np.float64)
    best = grid.scales.astype(np.float64)
    least = _error(wide, grid, best, importance, coherence)
    for share in np.linspace(1.0, smallest, candidates)[1:]:
        tried = np.asarray(_safe(grid.scales * share), np.float64)
        error = _error(wide, grid, tried, importance, coherence)
        better = error < least
        best = np.where(better, tried, best)
        least = np.where(better, error, least)
    return Grid(best.astype(np.float32), grid.zeros, grid.low, grid.high)


def refitted(target: Array, integers: Array, gram: Array, scales: Array) -> Array:
    """Return the scale of every channel that is best for integers already chosen.

    Args:
        target: float (channels, K) or (layers, channels, K).
        integers: Of target's shape, zero points taken off.
        gram: (K, K) or (layers, K, K).
        scales: The scales they were chosen on, (channels,) or (layers, channels).

    Returns:
        float32 scales within 30 % of those given.
    """
    pushed = integers.astype(np.float64) @ gram
    against = (pushed * target).sum(axis=-1)
    square = (pushed * integers).sum(axis=-1)
    usable = (square > 0) & (scales > 0)
    ratio = np.divide(against, square * scales, out=np.ones_like(square), where=usable)
    return np.asarray(scales * np.clip(ratio, 0.7, 1.3), np.float32)


def _spanning(smallest: Array, largest: Array, low: int, high: int) -> Grid:
    scales = _safe((largest - smallest) / (high - low))
    zeros = np.clip(np.rint(low - smallest / scales), low, high)
    return Grid(scales, zeros.astype(np.int32), low, high)


def _safe(scales: Array) -> Array:
    """Return float32 scales above zero: 1 for a row of zeros, on which any scale is exact."""
    single = np.asarray(scales, np.float64)
    raised = np.where(single <= 0.0, 1.0, np.maximum(single, SMALLEST_SCALE))
    return raised.astype(np.float32)


def _error(
    rows: Array, grid: Grid, scales: Array, importance: Array | None, coherence: float
) -> Array:
    step, zero = scales[:, None], grid.zeros[:, None]
    steps = np.rint(rows / step)
    np.clip(steps, grid.low - zero, grid.high - zero, out=steps)
    steps *= step
    steps -= rows
    total = coherence * np.square(steps.sum(axis=1)) if coherence else 0.0
    np.square(steps, out=steps)
    if importance is not None:
        steps *= importance
    return np.asarray(steps.sum(axis=1) + total)
