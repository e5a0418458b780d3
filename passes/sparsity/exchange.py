"""The cheapest way to share out zeros when the damage of every layer adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_SMALLEST = 1e-9


@dataclass(frozen=True, eq=False)
class Curve:
    """What zeros in one layer cost.

    Attributes:
        zeros: Numbers of zeros, rising: int64 (points,).
        losses: Damage at the outputs: float64 (points,).
    """

    zeros: Array
    losses: Array

    def within(self, low: int, high: int) -> Curve:
        """Return the part between two numbers of zeros; both become points of it."""
        low, high = max(low, int(self.zeros[0])), min(high, int(self.zeros[-1]))
        inner = self.zeros[(self.zeros > low) & (self.zeros < high)]
        zeros = np.unique([low, *inner, max(low, high)])
        return Curve(zeros, np.interp(zeros, self.zeros, self.losses))

    def hull(self) -> Curve:
        """Return the lower convex hull: what two layers can reach by exchanging zeros."""
        kept: list[int] = []
        for i in range(len(self.zeros)):
            while len(kept) > 1 and not self._below(kept[-2], kept[-1], i):
                kept.pop()
            kept.append(i)
        return Curve(self.zeros[kept], self.losses[kept])

    def _below(self, first: int, middle: int, last: int) -> bool:
        """Tell whether a point lies below the line between its neighbours."""
        run = float(self.zeros[middle] - self.zeros[first])
        whole = float(self.zeros[last] - self.zeros[first])
        rise = self.losses[middle] - self.losses[first]
        return bool(rise * whole < (self.losses[last] - self.losses[first]) * run)


def fine(size: int, zeros: Array, losses: Array, count: int = 60) -> Curve:
    """Return a curve at many more points: between those given, powers of the density.

    Args:
        size: Weights of the layer.
        zeros: Numbers of zeros, rising: int64 (points,).
        losses: Not negative, of any order.
        count: About how many points.
    """
    kept = np.maximum(size - zeros, 0.5)
    steps = np.geomspace(kept[0], kept[-1], count)
    wanted = np.unique(np.append(np.round(size - steps), zeros).astype(np.int64))
    wanted = wanted[(wanted >= zeros[0]) & (wanted <= zeros[-1])]
    known = np.log(np.maximum(isotonic(losses), _SMALLEST))
    places = -np.log(np.maximum(size - wanted, 0.5))
    found = np.exp(np.interp(places, -np.log(kept), known))
    found[found <= 2 * _SMALLEST] = 0.0
    return Curve(wanted, isotonic(found))


def isotonic(losses: Array) -> Array:
    """Return the never falling numbers nearest to given ones (pool adjacent violators)."""
    means: list[float] = []
    counts: list[int] = []
    for loss in losses:
        means.append(float(loss))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, count = means.pop(), counts.pop()
            total = counts[-1] + count
            means[-1] = (means[-1] * counts[-1] + mean * count) / total
            counts[-1] = total
    return np.repeat(means, counts)


def cheapest(curves: Sequence[Curve], wanted: int) -> Array:
    """Return the numbers of zeros with the least damage in all.

    The exact optimum of the sum of the convex hulls: the pieces of all of them are taken in the
    order of their slopes; the last one is taken in part.

    Args:
        curves: One per layer.
        wanted: Zeros in all, between the sums of the first and of the last points.

    Returns:
        int64 (layers,).
    """
    hulls = [curve.hull() for curve in curves]
    zeros = np.asarray([hull.zeros[0] for hull in hulls], np.int64)
    pieces = []
    for i, hull in enumerate(hulls):
        lengths, rises = np.diff(hull.zeros), np.diff(hull.losses)
        for k, (length, rise) in enumerate(zip(lengths, rises, strict=True)):
            pieces.append((float(rise) / int(length), i, k, int(length)))
    missing = wanted - int(zeros.sum())
    for _, i, _, length in sorted(pieces):
        taken = min(length, missing)
        if taken <= 0:
            break
        zeros[i] += taken
        missing -= taken
    return zeros
