"""Zeros of a tensor, and the pattern in which they lie, found in one pass over the data.

Patterns are named as ``prune`` names them: ``2:4`` (of four neighbours at least two are zero),
``1x4`` or ``4x4`` (blocks of zeros), ``rows`` and ``columns`` (whole ones). Rows are outputs of
the layer and columns lie along the axis that its products are summed over, however the tensor is
stored.

A pattern is told only where chance would not explain it: zeros of the same number, strewn evenly,
would have to break it :data:`_EVIDENCE` times or more. A candidate is dropped at the first part of
the tensor that speaks against it, so a tensor without pattern costs one comparison per element.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.tensors import chunks
from converter.ops.summed import View

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_GROUPS = (4, 8, 16, 32)
_SIDES = (1, 2, 4, 8, 16, 32)
_BAND = 1 << 20  # elements looked at together, a byte each
_LONGEST_BAND = 1 << 26
_FIRST = 1 << 16
_FEWEST = 64  # elements below which nothing is called a pattern
_TOLERATED = 0.01  # share of the zeros that may lie outside of whole blocks
_EVIDENCE = 20.0


@dataclass(frozen=True)
class Sparsity:
    """Zeros of a tensor.

    Attributes:
        elements: Number of its elements.
        zeros: How many of them are zero (of integers with a zero point: equal to it).
        pattern: ``2:4``, ``1x4``, ``rows``, ``columns``, ``all``, ``unstructured``; "" without
            zeros.
    """

    elements: int
    zeros: int
    pattern: str = ""

    @property
    def share(self) -> float:
        """Zeros / elements; 0 of an empty tensor."""
        return self.zeros / self.elements if self.elements else 0.0


def count_zeros(tensor: ir.TensorProtocol, zero: float = 0) -> int:
    """Count the elements that equal ``zero``, chunk by chunk."""
    return sum(int(np.count_nonzero(part == zero)) for _, part in chunks(tensor))


def measure_sparsity(
    tensor: ir.TensorProtocol, views: Sequence[View] = (), zero: float = 0
) -> Sparsity:
    """Count zeros and find their pattern; the tensor is read once, or twice where it has many.

    Args:
        tensor: Of numbers.
        views: How its elements form rows, the preferred one first; none: no pattern is looked for.
        zero: What counts as zero.
    """
    size = tensor.size
    zeros = count_zeros(tensor, zero)
    if not zeros:
        return Sparsity(size, 0)
    pattern = "unstructured" if zeros < size else "all"
    if size >= _FEWEST and zeros < size:
        for view in views:
            if view.size == size and (found := _find(tensor, view, zero, zeros)):
                pattern = found
                break
    return Sparsity(size, zeros, pattern)


def _find(tensor: ir.TensorProtocol, view: View, zero: float, zeros: int) -> str:
    """Return the pattern in one view; "" when there is none."""
    share = zeros / tensor.size
    candidates: list[_Candidate] = [_Lines(view, share)]
    across = view.outer if view.inner == 1 else view.inner
    for high in _SIDES:
        for wide in _SIDES:
            fits = across % high == 0 and view.summed % wide == 0
            if fits and (high > 1 or wide > 1):
                candidates.append(_Block(high, wide, share))
    candidates += [_Groups(m, share) for m in _GROUPS if view.summed % m == 0]
    for band in _bands(tensor, view, zero):
        for candidate in list(candidates):
            if not candidate.look(band):
                candidates.remove(candidate)
        if not candidates:
            return ""
    found = [(rank, name) for one in candidates for rank, name in [one.verdict()] if name]
    return max(found)[1] if found else ""


def _bands(tensor: ir.TensorProtocol, view: View, zero: float) -> Iterator[Array]:
    """Yield parts of the tensor as (outer, summed, inner), True where it is zero.

    Parts are cut along the first axis that is longer than 1, at multiples of the largest group.
    """
    row = view.summed * view.inner if view.outer > 1 else view.inner
    count = view.outer if view.outer > 1 else view.summed
    unit = max(_GROUPS[-1], _SIDES[-1])
    if row * unit > _LONGEST_BAND:
        return
    held: list[Array] = []
    done, wanted = 0, max(1, _FIRST // (row * unit)) * unit
    for _, part in chunks(tensor):
        held.append(part == zero)
        while sum(x.size for x in held) >= min(wanted, count - done) * row and done < count:
            take = min(wanted, count - done)
            flat = np.concatenate(held)
            yield _shaped(flat[: take * row], view, take)
            held = [flat[take * row :]]
            done += take
            wanted = max(1, _BAND // (row * unit)) * unit


def _shaped(flat: Array, view: View, count: int) -> Array:
    if view.outer > 1:
        return flat.reshape(count, view.summed, view.inner)
    return flat.reshape(1, count, view.inner)


Rank = tuple[int, float, float]


class _Candidate:
    """Something that the zeros may turn out to be."""

    def look(self, band: Array) -> bool:
        """Take a part of the tensor into account; False: it is not this."""
        raise NotImplementedError

    def verdict(self) -> tuple[Rank, str]:
        """Return how well it describes the zeros, and its name; "" when it does not."""
        raise NotImplementedError


class _Groups(_Candidate):
    """N:M: the fewest zeros in any group of M neighbours along the summed axis."""

    def __init__(self, length: int, share: float) -> None:
        self.length = length
        self.share = share
        self.fewest = length
        self.groups = 0

    def look(self, band: Array) -> bool:
        outer, summed, inner = band.shape
        if summed % self.length:
            return False
        found = band.reshape(outer, -1, self.length, inner).sum(axis=2, dtype=np.uint8)
        self.groups += found.size
        self.fewest = min(self.fewest, int(found.min(initial=self.length)))
        return self.fewest > 0

    def verdict(self) -> tuple[Rank, str]:
        chance = sum(_binomial(self.length, k, self.share) for k in range(self.fewest))
        name = f"{self.fewest}:{self.length}" if self.groups * chance >= _EVIDENCE else ""
        return (0, self.fewest / self.length, -self.length), name


class _Block(_Candidate):
    """Blocks of ``high`` rows and ``wide`` columns: the zeros in blocks of nothing else."""

    def __init__(self, high: int, wide: int, share: float) -> None:
        self.high, self.wide = high, wide
        self.share = share
        self.zeros = 0
        self.inside = 0

    def look(self, band: Array) -> bool:
        outer, summed, inner = band.shape
        if inner == 1:
            split = band.reshape(outer // self.high, self.high, summed // self.wide, self.wide)
        else:
            if outer > 1:
                band = band.reshape(outer * summed, inner)
            split = band.reshape(-1, self.wide, inner // self.high, self.high)
        whole = np.all(split, axis=(1, 3))
        self.zeros += int(np.count_nonzero(band))
        self.inside += int(np.count_nonzero(whole)) * self.high * self.wide
        return self.zeros < _FEWEST or self.inside >= 0.9 * self.zeros

    def verdict(self) -> tuple[Rank, str]:
        area = self.high * self.wide
        outside = self.zeros - self.inside
        expected = self.zeros * (1 - self.share ** (area - 1))
        holds = outside <= _TOLERATED * self.zeros and expected >= max(_EVIDENCE, 10 * outside)
        holds = holds and self.inside >= 2 * area
        # of equal areas the wide one is the usual one
        return (1, area, -self.high), f"{self.high}x{self.wide}" if holds else ""


class _Lines(_Candidate):
    """Whole rows or columns, told when nearly all zeros lie in them."""

    def __init__(self, view: View, share: float) -> None:
        self.view = view
        self.share = share
        by_row = view.outer if view.inner == 1 else view.outer * view.inner
        self.rows = np.zeros(by_row, np.int64)
        self.columns = np.zeros(view.summed, np.int64)
        self.done = 0

    def look(self, band: Array) -> bool:
        outer, summed, inner = band.shape
        rows = band.sum(axis=1, dtype=np.int64).reshape(-1)
        columns = band.sum(axis=(0, 2), dtype=np.int64)
        if self.view.outer > 1:
            start = self.done * inner
            self.rows[start : start + rows.size] += rows
            self.columns += columns
            self.done += outer
            seen = ((self.rows[: self.done * inner], summed), (self.columns, self.done * inner))
        else:
            self.rows += rows
            self.columns[self.done : self.done + summed] += columns
            self.done += summed
            seen = ((self.rows, self.done), (self.columns[: self.done], inner))
        zeros = int(self.columns.sum())
        inside = max(int(np.count_nonzero(lines == length)) * length for lines, length in seen)
        return zeros < _FEWEST or inside >= 0.9 * zeros

    def verdict(self) -> tuple[Rank, str]:
        total = int(self.rows.sum())
        for name, counts in (("rows", self.rows), ("columns", self.columns)):
            length = self.view.size // max(1, counts.size)
            inside = int(np.count_nonzero(counts == length)) * length
            expected = total * (1 - self.share ** (length - 1))
            if length > 1 and total - inside <= _TOLERATED * total and expected >= _EVIDENCE:
                return (2, 0.0, 0.0), name
        return (2, 0.0, 0.0), ""


def _binomial(n: int, k: int, share: float) -> float:
    return math.comb(n, k) * share**k * (1 - share) ** (n - k)
