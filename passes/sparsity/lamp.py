"""LAMP over tensors that are too large to hold: exact counts, in two passes over them.

LAMP (Lee et al. 2021, arXiv 2010.07611) gives a weight the score w^2 / (sum of the squares that are
not smaller, in its tensor); the lowest scores of all tensors go. Within a tensor the score rises
with the magnitude, so all that is looked for is one threshold of scores, and with it one magnitude
per tensor.

A sample tells between which two magnitudes that of each tensor should lie. A pass counts and sums
up squares below, above and, by bins, inside of these brackets, which encloses the threshold for
sure and the magnitudes in few bins; the next pass looks into those, until every bin is a single
magnitude. Brackets that miss are widened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.tensors import chunks
from passes.allocation.order import Cut, edge_of
from passes.importance.magnitude import Magnitude, drop_below
from passes.sparsity.guess import LARGEST, guessed, squares_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 20  # bytes
_WHOLE = 4 << 20  # weights of all tensors together that are sorted instead
_WAITING = 1 << 18  # keys that are sorted into bins at once
_BINS = 1 << 17  # of all tensors together
_FEWEST = 1 << 8  # bins of one tensor
_ROW = 1 << 10  # squares added up in float32
_SLACK = 1e-9  # of scores at borders, for the order of additions


@dataclass(frozen=True, eq=False)
class Inside:
    """What is known of a tensor: keys in a bracket, by bins, and sums on both sides of it.

    Attributes:
        space: Type of the keys.
        low: First key of the bracket.
        shift: A bin holds 2**shift keys.
        zeros: Weights that are zero.
        below: Weights below the bracket.
        beyond: Weights above it.
        over: Sum of the squares of those above it.
        counts: Weights by bin: int64.
        sums: Sums of their squares: float64.
        sure: The cut is in the bracket.
    """

    space: Magnitude
    low: int
    shift: int
    zeros: int
    below: int
    beyond: int
    over: float
    counts: Array
    sums: Array
    sure: bool

    def parts(self) -> tuple[Array, Array]:
        """Return weights below, in every bin, and above, and the scores at the borders between.

        Returns:
            int64 (bins + 2,), and float64 (bins + 3,) rising from 0 to infinity.
        """
        counts = np.concatenate([[self.below], self.counts, [self.beyond]])
        bins = np.arange(len(self.counts) + 1, dtype=np.uint64) << np.uint64(self.shift)
        keys = np.minimum(bins + np.uint64(self.low), np.uint64(self.space.infinity))
        squares = squares_of(self.space, keys.astype(self.space.key_type))
        tail = np.cumsum(np.concatenate([[self.over], self.sums[::-1]]))[::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            borders = np.where(squares > 0, squares / tail * (1.0 - _SLACK), 0.0)
        borders = np.where(tail > 0, borders, np.inf)
        return counts, np.concatenate([[0.0], borders, [np.inf]])

    def narrowed(self, least: float, most: float) -> Bracket:
        """Return the keys whose scores may be between two; all on a side that was missed."""
        counts, borders = self.parts()
        bins = len(self.counts)
        touched = np.flatnonzero(
            (borders[:-1] <= most) & (borders[1:] * (1.0 + 3 * _SLACK) >= least) & (counts > 0)
        )
        if self.sure:  # bounds of what is outside are loose
            touched = touched[(touched > 0) & (touched <= bins)]
        if not len(touched):  # its cut falls between two of its weights
            gone = int(np.count_nonzero(borders[1:] < least))
            touched = np.clip([gone], 1, bins)
        first, last = int(touched[0]) - 1, int(touched[-1]) - 1
        if first < 0 or last >= bins:
            low = 0 if first < 0 else self.low + (first << self.shift)
            high = self.low + ((last + 1) << self.shift) - 1
            return Bracket(low, self.space.infinity if last >= bins else high)
        low, high = (self.low + (b << self.shift) for b in (first, last + 1))
        return Bracket(low, min(high - 1, self.space.infinity), self)


@dataclass(frozen=True, eq=False)
class Bracket:
    """Two keys of a tensor, both included, between which its cut lies.

    Attributes:
        low: First key.
        high: Last key.
        known: What is known of a wider bracket, whose borders between bins these are.
    """

    low: int
    high: int
    known: Inside | None = None

    @property
    def stuck(self) -> bool:
        """True when bins did not make it much narrower: few magnitudes, far from each other."""
        known = self.known
        return (
            known is not None
            and known.shift > 0
            and (self.high - self.low > (len(known.counts) << known.shift) // 4)
        )

    def outside(self) -> tuple[int, int, int, float]:
        """Return what is known: zeros, weights below and above, sum of the squares above."""
        known = self.known
        assert known is not None
        first = (self.low - known.low) >> known.shift
        last = ((self.high - known.low) >> known.shift) + 1
        below = known.below + int(known.counts[:first].sum())
        beyond = known.beyond + int(known.counts[last:].sum())
        return known.zeros, below, beyond, known.over + float(known.sums[last:].sum())


@dataclass(frozen=True, eq=False)
class Ranked:
    """The weights near the cut of a tensor, by magnitude.

    Attributes:
        zeros: Weights of the tensor that are zero.
        below: Weights that are smaller than all keys.
        low: The key from which on they are counted.
        keys: Rising, each once.
        counts: How often: int64.
        squares: Of the weights with these keys: float64.
        above: By key: sum of the squares of all weights with larger keys: float64.
        worth: By key: score of the last of equal weights, rising.
    """

    zeros: int
    below: int
    low: int
    keys: Array
    counts: Array
    squares: Array
    above: Array
    worth: Array

    @staticmethod
    def of(inside: Inside, keys: Array, counts: Array) -> Ranked:
        """Rank keys with the counts of each."""
        squares = squares_of(inside.space, keys)
        together = squares * counts
        above = np.cumsum(np.concatenate([[inside.over], together[:0:-1]]))[::-1][: len(keys)]
        with np.errstate(invalid="ignore", divide="ignore"):
            worth = np.where(squares > 0, squares / (above + squares), 0.0)
        zeros, below, low = inside.zeros, inside.below, inside.low
        return Ranked(zeros, below, low, keys, counts, squares, above, worth)

    def up_to(self, score: float) -> int:
        """Return how many weights have at most this score; those below the keys all do."""
        place = int(np.searchsorted(self.worth, score, side="right"))
        number = self.below + (int(self.counts[:place].sum()) if place else 0)
        if place < len(self.keys) and self.counts[place] > 1 and score > 0:
            # of c equal weights the j-th from the end has the score q / (above + j q)
            ahead = 1.0 / score - self.above[place] / self.squares[place]
            number += int(np.clip(self.counts[place] - np.ceil(ahead) + 1, 0, self.counts[place]))
        return number

    def cut(self, tensor: ir.TensorProtocol, count: int) -> Cut | None:
        """Return what makes so many weights of the tensor zero; None: nothing does."""
        if count <= self.zeros:
            return None
        rest = count - self.below
        reached = np.cumsum(self.counts)
        place = int(np.searchsorted(reached, rest))
        if rest <= 0 or place >= len(reached):
            return Cut(self.low)
        key = int(self.keys[place])
        take = rest - (int(reached[place - 1]) if place else 0)
        whole = take == int(self.counts[place])
        return Cut(key, tensor.size if whole else edge_of(tensor, key, take))


def lamp_cuts(tensors: Sequence[ir.TensorProtocol], wanted: int) -> list[tuple[int, Cut | None]]:
    """Return by tensor how many weights are zero afterwards, and the cut that makes them zero.

    Of equal scores those of the first tensor go first, of equal weights the lower flat index. Zeros
    that are there already count and go first.

    Args:
        tensors: Floats without NaN, at least one weight in each.
        wanted: Zeros of all together, from 0 to the number of weights.
    """
    if sum(tensor.size for tensor in tensors) <= _WHOLE:
        found = [_sorted(tensor) for tensor in tensors]
    else:
        found = _enclosed(tensors, wanted)
    counts = _shared_out(found, _threshold(found, wanted), wanted)
    return [
        (max(count, ranked.zeros), ranked.cut(tensor, count))
        for tensor, ranked, count in zip(tensors, found, counts, strict=True)
    ]


def _sorted(tensor: ir.TensorProtocol) -> Ranked:
    """Rank all weights of a tensor."""
    space = Magnitude.of([tensor])
    keys, counts = np.unique(space.keys(tensor.numpy().reshape(-1)), return_counts=True)
    zeros = int(counts[0]) if len(keys) and keys[0] == 0 else 0
    nothing = Inside(space, 0, 0, zeros, 0, 0, 0.0, counts, np.zeros(0), sure=True)
    return Ranked.of(nothing, keys, counts.astype(np.int64))


def _final(inside: Inside) -> Ranked:
    there = np.flatnonzero(inside.counts)
    keys = (there + inside.low).astype(inside.space.key_type)
    return Ranked.of(inside, keys, inside.counts[there])


def _gathered(tensor: ir.TensorProtocol, space: Magnitude, bracket: Bracket) -> Ranked:
    """Rank the weights in a bracket that holds few different ones."""
    keys, counts = np.empty(0, space.key_type), np.empty(0, np.int64)
    low, reach = space.key_type(bracket.low), space.key_type(bracket.high - bracket.low)
    for _, chunk in chunks(tensor, _CHUNK):
        here = space.keys(chunk)
        new, number = np.unique(here[here - low <= reach], return_counts=True)
        together = np.concatenate([keys, new])
        keys, place = np.unique(together, return_inverse=True)
        counts = np.bincount(place, weights=np.concatenate([counts, number])).astype(np.int64)
    zeros, below, beyond, over = bracket.outside()
    inside = Inside(
        space, bracket.low, 0, zeros, below, beyond, over, counts, np.zeros(0), sure=True
    )
    return Ranked.of(inside, keys, counts)


def _enclosed(tensors: Sequence[ir.TensorProtocol], wanted: int) -> list[Ranked]:
    """Rank the weights around the threshold, after as many passes as it takes to enclose it."""
    spaces = [Magnitude.of([tensor]) for tensor in tensors]
    brackets = [Bracket(*ends) for ends in guessed(tensors, spaces, wanted)]
    least, most = 0.0, np.inf
    while True:
        bins = max(_FEWEST, _BINS // len(tensors))
        found = [_read(t, s, b, bins) for t, s, b in zip(tensors, spaces, brackets, strict=True)]
        ends = _between(found, wanted)
        least, most = max(least, ends[0]), min(most, ends[1])
        brackets = [inside.narrowed(least, most) for inside in found]
        if any(bracket.known is None for bracket in brackets):
            continue
        if all(inside.shift == 0 for inside in found):
            return [_final(inside) for inside in found]
        if any(bracket.stuck for bracket in brackets):
            return [_gathered(*each) for each in zip(tensors, spaces, brackets, strict=True)]


def _between(found: Sequence[Inside], wanted: int) -> tuple[float, float]:
    """Return two scores between which the threshold lies for sure."""
    parts = [inside.parts() for inside in found]
    counts = np.concatenate([number for number, _ in parts])
    ends = []
    for first in (0, 1):
        bound = np.concatenate([each[first : len(each) - 1 + first] for _, each in parts])
        order = np.argsort(bound, kind="stable")
        reached = np.cumsum(counts[order])
        place = min(int(np.searchsorted(reached, wanted)), len(order) - 1)
        ends.append(float(bound[order[place]]))
    return ends[0], ends[1] * (1.0 + 3 * _SLACK)


def _read(tensor: ir.TensorProtocol, space: Magnitude, bracket: Bracket, bins: int) -> Inside:
    """Look into a bracket; what is outside of it is only counted where it is not known."""
    width = bracket.high - bracket.low
    shift = max(0, (width // bins).bit_length())
    number = (width >> shift) + 1
    counts, sums = np.zeros(number, np.int64), np.zeros(number)
    known = bracket.known is not None
    zeros, below, beyond, over = bracket.outside() if known else (0, 0, 0, 0.0)
    low, reach = space.key_type(bracket.low), space.key_type(width)
    waiting: list[Array] = []
    for _, chunk in chunks(tensor, _CHUNK):
        keys = space.keys(chunk)
        if not known:
            zeros += keys.size - int(np.count_nonzero(keys))
            below += int(np.count_nonzero(keys < low))
            if bracket.high < space.infinity:
                over += sum_of_squares(drop_below(chunk, bracket.high + 1))
        # unsigned: what is below the bracket wraps around to a huge number
        np.subtract(keys, low, out=keys)
        waiting.append(keys[keys <= reach])
        if sum(map(len, waiting)) >= _WAITING:
            _count(space, bracket.low, shift, waiting, counts, sums)
    _count(space, bracket.low, shift, waiting, counts, sums)
    if not known:
        beyond = tensor.size - below - int(counts.sum())
    return Inside(space, bracket.low, shift, zeros, below, beyond, over, counts, sums, known)


def _count(
    space: Magnitude, low: int, shift: int, waiting: list[Array], counts: Array, sums: Array
) -> None:
    """Add keys, given from ``low`` on, to the bins."""
    if not waiting:
        return
    keys = np.concatenate(waiting)
    waiting.clear()
    bins = (keys >> space.key_type(shift)).astype(np.intp)
    keys += space.key_type(low)
    counts += np.bincount(bins, minlength=len(counts))
    sums += np.bincount(bins, weights=squares_of(space, keys), minlength=len(sums))


def _threshold(found: Sequence[Ranked], wanted: int) -> float:
    """Return the lowest score that at least so many weights do not exceed, by halving its bits."""
    low, high = 0, int(np.float64(2.0).view(np.int64))
    while low < high:
        middle = (low + high) // 2
        if sum(ranked.up_to(_from_bits(middle)) for ranked in found) >= wanted:
            high = middle
        else:
            low = middle + 1
    return _from_bits(low)


def _shared_out(found: Sequence[Ranked], score: float, wanted: int) -> list[int]:
    """Return counts that add up: of weights with exactly the score, the first tensors' go."""
    before = float(np.nextafter(score, 0.0)) if score > 0 else -1.0
    counts = [ranked.up_to(before) for ranked in found]
    rest = wanted - sum(counts)
    for i, ranked in enumerate(found):
        take = min(max(rest, 0), ranked.up_to(score) - counts[i])
        counts[i] += take
        rest -= take
    return counts


def sum_of_squares(chunk: Array) -> float:
    """Add up squares of floats: short rows in float32, the rows in float64."""
    if chunk.dtype.itemsize > 4:
        return _plainly(chunk)
    flat = chunk.astype(np.float32, copy=False)
    whole = flat.size // _ROW * _ROW
    rows = flat[:whole].reshape(-1, _ROW)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.einsum("ij,ij->i", rows, rows)
    # beyond the numbers that float32 can square, either way
    odd = ~np.isfinite(sums) | (sums < 1e-25)
    total = float(sums[~odd].sum(dtype=np.float64))
    return total + _plainly(rows[odd]) + _plainly(flat[whole:])


def _plainly(values: Array) -> float:
    return float(np.square(np.minimum(np.abs(values.astype(np.float64)), LARGEST)).sum())


def _from_bits(bits: int) -> float:
    number: float = np.array([bits], np.int64).view(np.float64)[0].item()
    return number
