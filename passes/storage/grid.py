"""Rows of floats that are small integers times a number of the row: found exactly, or rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.encoding.codes import storable

Array = np.ndarray[Any, Any]

_LEAST, _MOST = -128, 127
_SAMPLE = 24
_CHUNK = 1 << 20
_FIRST = 4
_FACTORS = np.linspace(0.5, 1.0, 21, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Grid:
    """Integers and what they are multiplied with.

    Attributes:
        integers: int8 (rows, columns).
        scales: (rows,), of the type of the floats; 1 for rows of zeros.
    """

    integers: Array
    scales: Array

    def numbers(self) -> Array:
        """Return the products as the runtime computes them, in the type of the scales."""
        return np.asarray(self.integers.astype(self.scales.dtype) * self.scales[:, None])


def exact(rows: Array) -> Grid | None:
    """Find the integers from -128 to 127 and scales whose products are the rows, bit for bit.

    Args:
        rows: float32 or float16 (rows, columns).

    Returns:
        None when there are none for some row.
    """
    integers = np.zeros(rows.shape, np.int8)
    scales = np.ones(len(rows), rows.dtype)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    start, end = 0, min(step, _FIRST)  # most tensors have no grid, and a few rows show it
    while start < len(rows):
        part = slice(start, end)
        if not _find(np.ascontiguousarray(rows[part]), integers[part], scales[part]):
            return None
        start, end = end, end + step
    return Grid(integers, scales)


def _find(rows: Array, integers: Array, scales: Array) -> bool:
    """Fill in integers and scales of some rows; tell whether all have some."""
    tops = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    if not np.isfinite(tops).all():
        return False
    open_rows = np.flatnonzero(tops > 0)
    large = np.abs(rows[open_rows]).astype(np.float64)
    if large.shape[1] > _SAMPLE:
        large = np.partition(large, -_SAMPLE, axis=1)[:, -_SAMPLE:]
    slack = 4 * float(np.finfo(rows.dtype).eps)
    for top in range(1, -_LEAST + 1):
        if not open_rows.size:
            break
        guess = large * (top / tops[open_rows])[:, None]
        fits = (np.abs(guess - np.rint(guess)) <= slack * top + 1e-9).all(axis=1)
        for row in open_rows[fits]:
            _fit(rows[row], tops[row] / top, integers[row], scales[row : row + 1])
        solved = fits & (integers[open_rows] != 0).any(axis=1)
        open_rows, large = open_rows[~solved], large[~solved]
    return not open_rows.size


def _fit(row: Array, scale: float, integers: Array, found: Array) -> None:
    """Fill in integers and scale of one row if a scale close to this one makes it exactly."""
    kind = row.dtype.type
    near = kind(scale)
    trials = [
        kind(np.float16(scale)),
        near,
        np.nextafter(near, kind(0)),
        np.nextafter(near, kind(2)),
    ]
    for trial in trials:
        if not np.isfinite(trial) or trial <= 0:
            continue
        codes = np.rint(row.astype(np.float64) / float(trial))
        fits = codes.min() >= _LEAST and codes.max() <= _MOST
        if fits and np.array_equal(codes.astype(kind) * trial, row):
            integers[:] = codes
            found[0] = trial
            return


def rounded(rows: Array, bits: int) -> Grid:
    """Round to the nearest products; zeros stay zero.

    The scale of a row maps its largest element to the largest integer; for fewer than 8 bits it is
    the one of 21 smaller ones that makes the squared error of the row smallest.

    Args:
        rows: float32 or float16 (rows, columns), finite.
        bits: 4 or 8.
    """
    most = 2 ** (bits - 1) - 1
    tops = np.abs(rows).max(axis=1, initial=0).astype(np.float32)
    full = np.where(tops > 0, tops / np.float32(most), np.float32(1))
    best = _scales(full, rows)
    if bits < 8:
        least = np.full(len(rows), np.inf)
        for factor in _FACTORS:
            scales = _scales(full * factor, rows)
            error = np.square(_codes(rows, scales, most) * scales[:, None] - rows, dtype=np.float64)
            total = error.sum(axis=1)
            best = np.where(total < least, scales, best)
            least = np.minimum(total, least)
    return Grid(_codes(rows, best, most).astype(np.int8), best.astype(rows.dtype))


def _scales(scales: Array, rows: Array) -> Array:
    if rows.dtype == np.float16:
        return np.maximum(scales, np.float32(2.0**-24)).astype(np.float16).astype(np.float32)
    return np.maximum(storable(scales), np.finfo(np.float32).tiny)


def _codes(rows: Array, scales: Array, most: int) -> Array:
    return np.clip(np.rint(rows.astype(np.float32) / scales[:, None]), -most, most)
