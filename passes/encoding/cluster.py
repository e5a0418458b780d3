"""From a weight to its palette: k-means, then rounding onto the tables when inputs are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.encoding.choose import RIDGE, SWEEPS, damping, scarcity
from passes.encoding.codes import storable
from passes.encoding.inputs import Inputs
from passes.encoding.palette import Palette
from passes.rounding.codebook import Table, kmeans, refit, with_zero
from passes.rounding.gptq import damage, sequential
from passes.rounding.target import least_squares

Array = np.ndarray[Any, Any]

_ROUNDS = 2
"""How often the table is fitted to the indices and the indices to the table."""
_MOST_WORK = 2_000_000_000
"""Rows times columns squared up to which the table is fitted: that takes a second or two."""


def cluster(rows: Array, bits: int, tables: int, inputs: Inputs | None) -> Palette:
    """Choose tables and indices.

    Args:
        rows: float (rows, columns).
        bits: Width of an index.
        tables: 1 (shared by all rows, each of which has a scale) or a divisor of the rows.
        inputs: Of one or several groups that divide the rows evenly, or None: the error of the
            weights themselves is made small.
    """
    wide = rows.astype(np.float64)
    zero = bool((wide == 0.0).any())
    if inputs is None:
        return _plain(wide, bits, tables, keep_zero=zero)
    groups = len(inputs.gram)
    layers = wide.reshape(groups, -1, wide.shape[1])
    mask = layers == 0.0
    target = least_squares(layers, inputs.gram, inputs.cross, RIDGE * scarcity(inputs))
    target = np.where(mask, 0.0, target)
    importance = np.einsum("gkk->gk", inputs.gram)
    importance = importance + 0.01 * importance.mean(axis=1, keepdims=True)
    shares = np.broadcast_to(importance[:, None], layers.shape).reshape(wide.shape)
    scales, book = _tables(target.reshape(wide.shape), bits, tables, shares, keep_zero=zero)
    held = mask if zero else None
    work = len(wide) * wide.shape[1] ** 2
    rounds = _ROUNDS if tables == 1 and work <= _MOST_WORK else 0

    def onto(book: Array) -> tuple[Array, float]:
        spread = np.repeat(book, len(wide) // tables, axis=0) if tables > 1 else book
        codes, numbers = sequential(
            target,
            inputs.gram,
            Table(spread, scales),
            held,
            damping=damping(inputs),
            sweeps=SWEEPS,
        )
        return codes.astype(np.int64), float(damage(target - numbers, inputs.gram).sum())

    codes, least = onto(book)
    best = book
    for _ in range(rounds):
        fitted = refit(codes, target, inputs.gram, scales.reshape(groups, -1), best[0])[None]
        tried = _stored(with_zero(fitted) if zero else fitted)
        moved, error = onto(tried)
        if error >= least:
            break
        best, codes, least = tried, moved, error
    indices = codes.reshape(wide.shape).astype(np.int32)
    return _palette(indices, best, scales, bits, scaled=tables < len(wide))


def _plain(wide: Array, bits: int, tables: int, *, keep_zero: bool) -> Palette:
    scales, book = _tables(wide, bits, tables, None, keep_zero=keep_zero)
    split = (wide / scales[:, None]).reshape(tables, -1)
    borders = (book[:, 1:] + book[:, :-1]) / 2
    indices = np.empty(split.shape, np.int32)
    for at, row in enumerate(split):
        indices[at] = np.searchsorted(borders[at], row, side="left")
    return _palette(indices.reshape(wide.shape), book, scales, bits, scaled=tables < len(wide))


def _tables(
    wide: Array, bits: int, tables: int, importance: Array | None, *, keep_zero: bool
) -> tuple[Array, Array]:
    """Return the scale of every row (1 where rows have tables of their own) and the tables."""
    scales = np.ones(len(wide))
    if tables < len(wide):
        size = np.sqrt(np.square(wide).mean(axis=1))
        scales = storable(np.where(size > 0, size, 1.0)).astype(np.float64)
    split = (wide / scales[:, None]).reshape(tables, -1)
    shares = None
    if importance is not None:
        shares = (importance * np.square(scales)[:, None]).reshape(split.shape)
    elif tables < len(wide):
        shares = np.broadcast_to(np.square(scales)[:, None], wide.shape).reshape(split.shape)
    return scales, _stored(kmeans(split, 2**bits, shares, keep_zero=keep_zero))


def _stored(book: Array) -> Array:
    """Round entries to what the file holds, and keep them rising."""
    half = book.astype(np.float16).astype(np.float64)
    fine = np.abs(book).max(initial=0.0) < 60000 and np.abs(half - book).max(
        initial=0.0
    ) <= 1e-3 * (np.abs(book).max(initial=0.0))
    return np.sort(half if fine else book.astype(np.float32).astype(np.float64), axis=1)


def _palette(indices: Array, book: Array, scales: Array, bits: int, *, scaled: bool) -> Palette:
    figures = scales.astype(np.float32) if scaled else None
    return Palette(indices, book.astype(np.float32), figures, bits)
