"""Half-quadratic quantization: grids that fit most weights well and let the outliers go.

Minimises the sum of ``|w - dequantized|^p`` with ``p < 1`` over the grid of each block, without
data: an auxiliary variable takes up the outliers, and what is left is a least-squares problem with
a closed form (Badri and Shaji, "HQQ", 2023).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.rounding.nearest import Grid, asymmetric, symmetric

Array = np.ndarray[Any, Any]

_P = 0.7
_BETA = 10.0
_GROWTH = 1.01
_ROUNDS = 20


def hqq(blocks: Array, low: int, high: int, *, zero_points: bool) -> Grid:
    """Return a grid for every block.

    Args:
        blocks: float (blocks, elements).
        low: Smallest integer.
        high: Largest integer.
        zero_points: Move zero points and scales; otherwise zero points are 0 and stay.

    Returns:
        Per block the best grid met on the way, the one to start with included: the measure is the
        sum of ``|error|^p``.
    """
    wide = blocks.astype(np.float64)
    grid = (asymmetric if zero_points else symmetric)(wide, low, high)
    best, least = grid, _measure(wide, grid)
    beta = _BETA
    for _ in range(_ROUNDS):
        integers = grid.quantize(wide)
        # Relative to the block's step, so that beta means the same in every block.
        step = np.abs(grid.scales[:, None].astype(np.float64))
        outliers = _shrink((wide - grid.dequantize(integers)) / step, beta) * step
        move = _moved_zeros if zero_points else _moved_scales
        grid = move(grid, integers, wide - outliers)
        measure = _measure(wide, grid)
        better = measure < least
        if not better.any():
            break
        scales = np.where(better, grid.scales, best.scales)
        best = Grid(scales, np.where(better, grid.zeros, best.zeros), low, high)
        least = np.where(better, measure, least)
        beta *= _GROWTH
    return best


def _moved_zeros(grid: Grid, integers: Array, wanted: Array) -> Grid:
    """Move the zero points, and the scales after them: whole zero points alone hardly move."""
    zeros = (integers - wanted / grid.scales[:, None].astype(np.float64)).mean(axis=1)
    limited = np.clip(np.rint(zeros), grid.low, grid.high).astype(np.int32)
    moved = Grid(grid.scales, limited, grid.low, grid.high)
    return _moved_scales(moved, integers, wanted)


def _moved_scales(grid: Grid, integers: Array, wanted: Array) -> Grid:
    steps = integers - grid.zeros[:, None].astype(np.float64)
    square = np.square(steps).sum(axis=1)
    scales = np.divide(
        (steps * wanted).sum(axis=1),
        square,
        out=grid.scales.astype(np.float64),
        where=square > 0,
    )
    sane = np.where(scales > 0.25 * grid.scales, scales, grid.scales)
    return Grid(sane.astype(np.float32), grid.zeros, grid.low, grid.high)


def _shrink(errors: Array, beta: float) -> Array:
    """Generalised soft threshold: what is small becomes 0, what is large hardly changes."""
    size = np.abs(errors)
    threshold = np.power(np.maximum(size, 1e-8), _P - 1.0) / beta
    return np.asarray(np.sign(errors) * np.maximum(size - threshold, 0.0))


def _measure(wide: Array, grid: Grid) -> Array:
    errors = np.abs(wide - grid.dequantize(grid.quantize(wide)))
    return np.asarray(np.power(errors, _P).sum(axis=1))
