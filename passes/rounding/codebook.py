"""Weights as entries of small tables: k-means in one dimension, and rounding onto the tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.rounding.gptq import sequential

Array = np.ndarray[Any, Any]

_ROUNDS = 60
_ROWS_AT_ONCE = 16
_STARTS = (1.0, 1.0 / 3.0)
"""Powers of the density by which the first entries lie; 1/3 is best for many entries (Panter and
Dite, 1951), 1 keeps more of them where the weights are."""


class Table:
    """The entries that a weight may become, a :class:`passes.rounding.gptq.Lattice`.

    Args:
        codebook: float, rising along the last axis: (entries,) for all rows, or (rows, entries).
        scales: Factor of every row, (rows,), above zero; None: 1 throughout.
    """

    def __init__(self, codebook: Array, scales: Array | None = None) -> None:
        self.codebook = np.atleast_2d(np.asarray(codebook, np.float64))
        self._scales = None if scales is None else np.asarray(scales, np.float64)
        self._borders = (self.codebook[:, 1:] + self.codebook[:, :-1]) / 2

    def nearest(self, column: int, values: Array) -> tuple[Array, Array]:
        """Return indices as float64 and their entries, for values (layers, channels)."""
        del column  # every column has the same entries
        flat = values.reshape(-1)
        if self._scales is not None:
            flat = flat / self._scales
        if len(self.codebook) == 1:
            codes = np.searchsorted(self._borders[0], flat, side="left")
            entries = self.codebook[0][codes]
        else:
            codes = (flat[:, None] > self._borders).sum(axis=1)
            entries = self.codebook[np.arange(len(codes)), codes]
        if self._scales is not None:
            entries = entries * self._scales
        return codes.astype(np.float64).reshape(values.shape), entries.reshape(values.shape)


def gptq_codebook(
    target: Array,
    gram: Array,
    codebook: Array,
    mask: Array | None = None,
    *,
    sweeps: int = 0,
) -> Array:
    """Round weights onto tables with error feedback; see :func:`passes.rounding.gptq.sequential`.

    Args:
        target: float (channels, K).
        gram: (K, K).
        codebook: Rising; (entries,) or (channels, entries).
        mask: True where the result has to be 0; the tables then hold a 0. Or None.
        sweeps: Rounds of coordinate descent afterwards.

    Returns:
        Indices of target's shape, int32.
    """
    codes, _ = sequential(target, gram, Table(codebook), mask, sweeps=sweeps)
    return codes.astype(np.int32)


def kmeans(
    rows: Array,
    entries: int,
    importance: Array | None = None,
    *,
    keep_zero: bool = False,
) -> Array:
    """Return the table of every row that makes its (weighted) squared error small.

    Lloyd's algorithm on sorted values: a cluster is an interval, so a round needs prefix sums at
    its borders and no distances. The better of two starting points is kept.

    Args:
        rows: float (rows, K).
        entries: Most entries per row.
        importance: Weight of every element, (K,) or (rows, K), not negative; None: all equal.
        keep_zero: The entry nearest to zero becomes exactly 0.

    Returns:
        float64 (rows, entries), rising; a row with fewer different values repeats some.
    """
    values = rows.astype(np.float64)
    shares = np.ones_like(values) if importance is None else np.broadcast_to(importance, rows.shape)
    # An element without any importance still wants to be near.
    shares = shares + 1e-6 * shares.mean(axis=1, keepdims=True) + np.finfo(np.float64).tiny
    order = np.argsort(values, axis=1, kind="stable")
    ranked = _Ranked(np.take_along_axis(values, order, 1), np.take_along_axis(shares, order, 1))
    best, least = None, np.full(len(rows), np.inf)
    for power in _STARTS:
        table = _lloyd(ranked, ranked.spread(entries, power), keep_zero=keep_zero)
        error = ranked.error(table)
        if best is None:
            best, least = table, error
        better = error < least
        best, least = np.where(better[:, None], table, best), np.where(better, error, least)
    assert best is not None
    return best


def refit(codes: Array, target: Array, gram: Array, scales: Array, codebook: Array) -> Array:
    """Return the table shared by all rows that is best for indices already chosen.

    Args:
        codes: int (layers, channels, K).
        target: float (layers, channels, K).
        gram: (layers, K, K).
        scales: Factor of every row, (layers, channels).
        codebook: (entries,): entries that nobody uses stay where they are.

    Returns:
        float64 (entries,), rising.
    """
    entries = len(codebook)
    square, against = np.zeros((entries, entries)), np.zeros(entries)
    for layer, chosen in enumerate(codes):
        for start in range(0, len(chosen), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            # Which entry each column took, times the row's scale: (rows, K, entries).
            member = (chosen[some, :, None] == np.arange(entries)) * scales[layer, some, None, None]
            pushed = gram[layer] @ member
            square += (np.swapaxes(member, 1, 2) @ pushed).sum(axis=0)
            against += (target[layer, some, None] @ pushed).sum(axis=(0, 1))
    ridge = 1e-3 * np.trace(square) / entries + np.finfo(np.float64).tiny
    square += ridge * np.eye(entries)
    return np.sort(np.linalg.solve(square, against + ridge * codebook))


class _Ranked:
    """Rows of sorted values with prefix sums."""

    def __init__(self, values: Array, shares: Array) -> None:
        self.values = values
        self.shares = shares
        rows, count = values.shape
        zero = np.zeros((rows, 1))
        self.weight = np.concatenate([zero, np.cumsum(shares, axis=1)], axis=1)
        self.moment = np.concatenate([zero, np.cumsum(shares * values, axis=1)], axis=1)
        self.square = np.concatenate([zero, np.cumsum(shares * values**2, axis=1)], axis=1)
        # One sorted vector of all rows: a row is shifted past the one before it.
        low, high = values[:, :1], values[:, -1:]
        self._low, self._span = low, np.where(high > low, high - low, 1.0)
        spot = (values - low) / self._span + 2.0 * np.arange(rows)[:, None]
        self._flat = spot.reshape(-1)
        self._count = count

    def places(self, borders: Array) -> Array:
        """Return how many values of its row lie at or below each border: int (rows, borders)."""
        rows = np.arange(len(borders))[:, None]
        spots = np.clip((borders - self._low) / self._span, -0.5, 1.5) + 2.0 * rows
        found = np.searchsorted(self._flat, spots.reshape(-1), side="right").reshape(borders.shape)
        return np.asarray(found - rows * self._count)

    def edges(self, table: Array) -> Array:
        """Return where the clusters of rising entries begin and end: int (rows, entries + 1)."""
        inner = self.places((table[:, 1:] + table[:, :-1]) / 2)
        first = np.zeros((len(table), 1), inner.dtype)
        return np.concatenate([first, inner, first + self._count], axis=1)

    def spread(self, entries: int, power: float) -> Array:
        """Return entries at equal shares of the density to a power."""
        rows, count = self.values.shape
        if power == 1.0:
            growth = self.shares
        else:
            gaps = np.diff(self.values, axis=1, prepend=self.values[:, :1])
            smooth = np.maximum(gaps, 0.0) + self._span / (4.0 * count)
            growth = np.power(self.shares / self.shares.mean(axis=1, keepdims=True), power)
            growth = growth * np.power(smooth, 1.0 - power)
        total = np.cumsum(growth, axis=1)
        wanted = (np.arange(entries) + 0.5) / entries
        at = np.empty((rows, entries), np.int64)
        for row in range(rows):
            at[row] = np.searchsorted(total[row], wanted * total[row, -1])
        return np.take_along_axis(self.values, np.minimum(at, count - 1), axis=1)

    def error(self, table: Array) -> Array:
        """Return the weighted squared error of every row."""
        edges = self.edges(table)
        weight, moment, square = (
            np.diff(np.take_along_axis(sums, edges, axis=1), axis=1)
            for sums in (self.weight, self.moment, self.square)
        )
        return np.asarray((square - 2 * table * moment + table**2 * weight).sum(axis=1))


def _lloyd(ranked: _Ranked, table: Array, *, keep_zero: bool) -> Array:
    for _ in range(_ROUNDS):
        edges = ranked.edges(table)
        weight, moment = (
            np.diff(np.take_along_axis(sums, edges, axis=1), axis=1)
            for sums in (ranked.weight, ranked.moment)
        )
        moved = np.where(weight > 0, moment / np.where(weight > 0, weight, 1.0), table)
        moved = np.sort(moved, axis=1)
        if keep_zero:
            moved = with_zero(moved)
        if np.array_equal(moved, table):
            break
        table = moved
    return table


def with_zero(table: Array) -> Array:
    """Return the tables (rows, entries) with the entry nearest to zero made exactly 0."""
    found = table.copy()
    rows = np.arange(len(table))
    found[rows, np.abs(table).argmin(axis=1)] = 0.0
    return found
