"""LAMP over tensors that are too large to hold: exact counts, in one pass over them.

LAMP (Lee et al. 2021, arXiv 2010.07611) gives a weight the score w^2 / (sum of the squares that are
not smaller, in its tensor); the lowest scores of all tensors go. Within a tensor the score rises
with the magnitude, so all that is looked for is one threshold of scores, and with it one magnitude
per tensor.

A sample tells between which two magnitudes that of each tensor must lie. One pass counts what is
below the bracket, sums up squares above it and collects what is inside; among those the threshold
is found exactly. Where a bracket misses, another pass makes histograms that enclose it for sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.tensors import chunks
from passes.allocation.order import Cut, edge_of, runs_of
from passes.importance.magnitude import Magnitude, drop_below

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 20  # bytes
_WHOLE = 4 << 20  # weights of all tensors together that are collected without a sample
_WAITING = 1 << 20  # keys that are collected before equal ones are put together
_RUNS = 1 << 14  # places sampled of all tensors together
_LEAST = 64  # places sampled of every tensor
_SIGMAS = 5.0  # half width of a bracket in standard errors
_ROW = 1 << 10  # squares added up in float32
_LARGEST = 1e150  # larger magnitudes, and infinity, count as this
_DIGITS = 16  # leading bits of a key that a histogram tells apart


@dataclass(frozen=True)
class Bracket:
    """Two keys of a tensor, both included, between which its cut lies."""

    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Inside:
    """What one pass over a tensor found.

    Attributes:
        bracket: Its bracket.
        zeros: Weights that are zero.
        below: Weights below the bracket.
        over: Sum of the squares of the weights above it.
        keys: Inside of the bracket, rising, each once.
        counts: How often: int64.
        squares: Of the weights with these keys: float64.
        above: By key: sum of the squares of all weights with larger keys: float64.
        worth: By key: score of the last of equal weights, rising.
    """

    bracket: Bracket
    zeros: int
    below: int
    over: float
    keys: Array
    counts: Array
    squares: Array
    above: Array
    worth: Array

    def up_to(self, score: float) -> int:
        """Return how many weights have at most this score; those below the bracket all do."""
        place = int(np.searchsorted(self.worth, score, side="right"))
        number = self.below + (int(self.counts[:place].sum()) if place else 0)
        if place < len(self.keys) and self.counts[place] > 1 and score > 0:
            # of c equal weights the j-th from the end has the score q / (above + j q)
            ahead = 1.0 / score - self.above[place] / self.squares[place]
            number += int(np.clip(self.counts[place] - np.ceil(ahead) + 1, 0, self.counts[place]))
        return number

    def encloses(self, space: Magnitude, score: float) -> bool:
        """Tell whether all weights below the bracket have lower scores, and above it higher."""
        tail = self.over
        if len(self.keys):
            tail = float(self.above[0] + self.counts[0] * self.squares[0])
        low, high = (_square(space, key) for key in (self.bracket.low, self.bracket.high))
        fits_below = self.bracket.low == 0 or (tail > 0 and low / tail <= score)
        return fits_below and (
            self.bracket.high >= space.infinity or self.over == 0 or high / self.over >= score
        )


def lamp_cuts(tensors: Sequence[ir.TensorProtocol], wanted: int) -> list[tuple[int, Cut | None]]:
    """Return by tensor how many weights are zero afterwards, and the cut that makes them zero.

    Of equal scores those of the first tensor go first, of equal weights the lower flat index. Zeros
    that are there already count and go first.

    Args:
        tensors: Floats without NaN, at least one weight in each.
        wanted: Zeros of all together, from 0 to the number of weights.
    """
    spaces = [Magnitude.of([tensor]) for tensor in tensors]
    found = _looked_into(tensors, spaces, _sampled(tensors, spaces, wanted))
    score = _threshold(found, wanted)
    if not _enclosed(found, spaces, wanted, score):
        found = _looked_into(tensors, spaces, _certain(tensors, spaces, wanted))
        score = _threshold(found, wanted)
    counts = _shared_out(found, score, wanted)
    return [
        (max(count, inside.zeros), _cut(tensor, inside, count))
        for tensor, inside, count in zip(tensors, found, counts, strict=True)
    ]


def _enclosed(
    found: Sequence[Inside], spaces: Sequence[Magnitude], wanted: int, score: float
) -> bool:
    if wanted < sum(inside.below for inside in found):
        return False
    return all(i.encloses(s, score) for i, s in zip(found, spaces, strict=True))


def _threshold(found: Sequence[Inside], wanted: int) -> float:
    """Return the lowest score that at least so many weights do not exceed, by halving its bits."""
    low, high = 0, int(np.float64(2.0).view(np.int64))
    while low < high:
        middle = (low + high) // 2
        if sum(inside.up_to(_from_bits(middle)) for inside in found) >= wanted:
            high = middle
        else:
            low = middle + 1
    return _from_bits(low)


def _shared_out(found: Sequence[Inside], score: float, wanted: int) -> list[int]:
    """Return counts that add up: of weights with exactly the score, the first tensors' go."""
    before = float(np.nextafter(score, 0.0)) if score > 0 else -1.0
    counts = [inside.up_to(before) for inside in found]
    rest = wanted - sum(counts)
    for i, inside in enumerate(found):
        take = min(max(rest, 0), inside.up_to(score) - counts[i])
        counts[i] += take
        rest -= take
    return counts


def _cut(tensor: ir.TensorProtocol, inside: Inside, count: int) -> Cut | None:
    if count <= inside.zeros:
        return None
    rest = count - inside.below
    reached = np.cumsum(inside.counts)
    place = int(np.searchsorted(reached, rest))
    if rest <= 0 or place >= len(reached):
        return Cut(inside.bracket.low)
    key = int(inside.keys[place])
    take = rest - (int(reached[place - 1]) if place else 0)
    whole = take == int(inside.counts[place])
    return Cut(key, tensor.size if whole else edge_of(tensor, key, take))


def _looked_into(
    tensors: Sequence[ir.TensorProtocol],
    spaces: Sequence[Magnitude],
    brackets: Sequence[Bracket],
) -> list[Inside]:
    return [_inside(t, s, b) for t, s, b in zip(tensors, spaces, brackets, strict=True)]


def _inside(tensor: ir.TensorProtocol, space: Magnitude, bracket: Bracket) -> Inside:
    """Read a tensor once."""
    zeros = below = 0
    over = 0.0
    kept = _Keys(space.key_type)
    low, width = space.key_type(bracket.low), space.key_type(bracket.high - bracket.low)
    for _, chunk in chunks(tensor, _CHUNK):
        keys = space.keys(chunk)
        zeros += keys.size - int(np.count_nonzero(keys))
        if bracket.low:
            below += int(np.count_nonzero(keys < low))
        if bracket.high < space.infinity:
            over += sum_of_squares(drop_below(chunk, bracket.high + 1))
        # unsigned: what is below the bracket wraps around to a huge number
        np.subtract(keys, low, out=keys)
        kept.add(keys[keys <= width])
    keys, counts = kept.result()
    keys += low
    squares = np.square(np.minimum(_values(space, keys), _LARGEST))
    together = squares * counts
    above = np.cumsum(np.concatenate([[over], together[:0:-1]]))[::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        worth = np.where(squares > 0, squares / (above + squares), 0.0)
    if not len(keys):
        above = np.zeros(0)
    return Inside(bracket, zeros, below, over, keys, counts, squares, above, worth)


class _Keys:
    """Collects keys; equal ones are put together where there are many."""

    def __init__(self, key_type: Any) -> None:
        self._keys = np.empty(0, key_type)
        self._counts = np.empty(0, np.int64)
        self._waiting: list[Array] = []
        self._number = 0

    def add(self, keys: Array) -> None:
        """Take in keys in any order."""
        if keys.size:
            self._waiting.append(keys)
            self._number += keys.size
        if self._number >= max(_WAITING, len(self._keys) // 2):
            self._merge()

    def result(self) -> tuple[Array, Array]:
        """Return the keys, rising, and how often each was seen."""
        self._merge()
        return self._keys, self._counts

    def _merge(self) -> None:
        if not self._number:
            return
        new = np.concatenate(self._waiting)
        self._waiting, self._number = [], 0
        keys, counts = np.unique(new, return_counts=True)
        if not len(self._keys):
            self._keys, self._counts = keys, counts.astype(np.int64)
            return
        together = np.concatenate([self._keys, keys])
        order = np.argsort(together, kind="stable")
        together, number = together[order], np.concatenate([self._counts, counts])[order]
        first = np.flatnonzero(np.concatenate([[True], together[1:] != together[:-1]]))
        self._keys, self._counts = together[first], np.add.reduceat(number, first)


def sum_of_squares(chunk: Array) -> float:
    """Add up squares of floats: short rows in float32, the rows in float64."""
    if chunk.dtype.itemsize > 4:
        return float(np.square(np.minimum(np.abs(chunk), _LARGEST)).sum())
    flat = chunk.astype(np.float32, copy=False)
    whole = flat.size // _ROW * _ROW
    rows, rest = flat[:whole].reshape(-1, _ROW), flat[whole:].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.einsum("ij,ij->i", rows, rows)
    # beyond the numbers that float32 can square, either way
    odd = ~np.isfinite(sums) | (sums < 1e-25)
    total = float(sums[~odd].sum(dtype=np.float64))
    wide = np.minimum(np.abs(rows[odd].astype(np.float64)), _LARGEST)
    return (
        total
        + float(np.square(wide).sum())
        + float(np.square(np.minimum(np.abs(rest), _LARGEST)).sum())
    )


def _sampled(
    tensors: Sequence[ir.TensorProtocol], spaces: Sequence[Magnitude], wanted: int
) -> list[Bracket]:
    """Return brackets that almost surely enclose the cuts."""
    total = sum(tensor.size for tensor in tensors)
    if total <= _WHOLE:
        return [Bracket(0, space.infinity) for space in spaces]
    samples = [_Sample.of(t, s, total) for t, s in zip(tensors, spaces, strict=True)]
    worth = np.concatenate([sample.worth for sample in samples])
    weight = np.concatenate([np.full(len(s.worth), s.each) for s in samples])
    order = np.argsort(worth, kind="stable")
    reached = np.cumsum(weight[order])
    middle = float(worth[order[min(int(np.searchsorted(reached, wanted)), len(order) - 1)]])
    spread = _SIGMAS * sum(sample.error(middle) ** 2 for sample in samples) ** 0.5
    ends = []
    for rank in (wanted - spread, wanted + spread):
        place = int(np.searchsorted(reached, rank))
        ends.append(float(worth[order[place]]) if rank >= 0 and place < len(order) else np.nan)
    low = 0.0 if np.isnan(ends[0]) else ends[0]
    high = np.inf if np.isnan(ends[1]) else ends[1]
    return [sample.bracket(low, middle, high) for sample in samples]


@dataclass(frozen=True, eq=False)
class _Sample:
    """Weights of one tensor from places spread evenly over it.

    Attributes:
        space: Type of the keys.
        runs: Keys, by place.
        keys: All of them, rising.
        worth: Their scores, estimated.
        each: Weights that each of them stands for.
        tail_error: Standard error of the sum of squares, relative.
    """

    space: Magnitude
    runs: list[Array]
    keys: Array
    worth: Array
    each: float
    tail_error: float

    @staticmethod
    def of(tensor: ir.TensorProtocol, space: Magnitude, total: int) -> _Sample:
        places = max(_LEAST, int(_RUNS * tensor.size / total))
        runs = [space.keys(run) for run in runs_of(tensor, places)]
        keys = np.sort(np.concatenate(runs))
        each = tensor.size / len(keys)
        squares = np.square(np.minimum(_values(space, keys), _LARGEST))
        tail = np.cumsum(squares[::-1])[::-1] * each
        with np.errstate(invalid="ignore", divide="ignore"):
            worth = np.where(squares > 0, squares / tail, 0.0)
        sums = np.asarray(
            [np.square(np.minimum(_values(space, run), _LARGEST)).sum() for run in runs]
        )
        mean = float(sums.mean())
        deviation = (float(np.square(np.diff(sums)).mean()) / 2) ** 0.5 if len(sums) > 1 else mean
        error = deviation / mean / len(runs) ** 0.5 if mean > 0 else 0.0
        return _Sample(space, runs, keys, worth, each, error)

    def error(self, score: float) -> float:
        """Return the standard error of the number of weights below a score, in weights."""
        return self.each * self._deviation(score) + 2.0 * self.each

    def _deviation(self, score: float) -> float:
        """Neighbouring places differ by chance alone, so their differences tell the error."""
        place = min(int(np.searchsorted(self.worth, score)), len(self.keys) - 1)
        shares = np.array([np.count_nonzero(run <= self.keys[place]) for run in self.runs], float)
        return float(np.square(np.diff(shares)).sum() / 2) ** 0.5

    def bracket(self, low: float, middle: float, high: float) -> Bracket:
        """Return the keys between which the cut lies when the threshold is between two scores."""
        margin = _SIGMAS * self._deviation(middle) + 2.0
        slack = min(0.9, _SIGMAS * self.tail_error)
        first = np.searchsorted(self.worth, low * (1.0 - slack)) - margin
        last = np.searchsorted(self.worth, high * (1.0 + slack)) + margin
        start = int(self.keys[int(first)]) if first >= 1 else 0
        end = int(self.keys[int(last)]) if last < len(self.keys) - 1 else self.space.infinity
        return Bracket(start, end)


def _certain(
    tensors: Sequence[ir.TensorProtocol], spaces: Sequence[Magnitude], wanted: int
) -> list[Bracket]:
    """Return brackets that enclose the cuts for sure, from histograms of all tensors."""
    parts = [_bounds(tensor, space) for tensor, space in zip(tensors, spaces, strict=True)]
    counts = np.concatenate([part[0] for part in parts])
    least = np.concatenate([part[1][:-1] for part in parts])
    most = np.concatenate([part[1][1:] for part in parts])
    ends = []
    for bound in (least, most):
        order = np.argsort(bound, kind="stable")
        reached = np.cumsum(counts[order])
        ends.append(float(bound[order[min(int(np.searchsorted(reached, wanted)), len(order) - 1)]]))
    brackets = []
    for (_, bounds), space in zip(parts, spaces, strict=True):
        shift = 8 * space.float_type.itemsize - _DIGITS
        touched = np.flatnonzero((bounds[:-1] <= ends[1]) & (bounds[1:] >= ends[0]))
        first, last = (int(touched[0]), int(touched[-1])) if len(touched) else (0, 1 << _DIGITS)
        high = min(((last + 1) << shift) - 1, space.infinity)
        brackets.append(Bracket(min(first << shift, high), high))
    return brackets


def _bounds(tensor: ir.TensorProtocol, space: Magnitude) -> tuple[Array, Array]:
    """Return a histogram over the leading bits of keys, and the scores at the bins' borders."""
    shift = 8 * space.float_type.itemsize - _DIGITS
    number = (space.infinity >> shift) + 1
    counts, sums = np.zeros(number, np.int64), np.zeros(number)
    for _, chunk in chunks(tensor, _CHUNK):
        keys = space.keys(chunk)
        bins = (keys >> space.key_type(shift)).astype(np.intp)
        squares = np.square(np.minimum(_values(space, keys), _LARGEST))
        counts += np.bincount(bins, minlength=number)
        sums += np.bincount(bins, weights=squares, minlength=number)
    starts = np.arange(number, dtype=space.key_type) << space.key_type(shift)
    borders = np.square(np.minimum(_values(space, starts), _LARGEST))
    tail = np.cumsum(sums[::-1])[::-1]
    # one part in 1e9 for the order of additions
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.where(borders > 0, borders / tail * (1 - 1e-9), 0.0)
    return counts, np.append(np.nan_to_num(scores, nan=np.inf, posinf=np.inf), np.inf)


def _values(space: Magnitude, keys: Array) -> Array:
    found: Array = keys.view(space.float_type).astype(np.float64)
    return found


def _square(space: Magnitude, key: int) -> float:
    size: float = min(space.value(min(key, space.infinity)), _LARGEST)
    return size * size


def _from_bits(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
