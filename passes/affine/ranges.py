"""From what was seen of a tensor to the range of its grid, offline: every method, one run of data.

``minmax`` keeps everything; ``average`` takes the mean ends of single samples (moving average);
``percentile`` cuts off a share of the elements; ``mse`` minimises the mean squared error of
rounding and cutting off; ``entropy`` the Kullback-Leibler divergence of the distribution from what
the grid makes of it (Migacz, "8-bit inference with TensorRT", 2017), over both ends. The last two
compare the range of min-max as well and are never worse than it by their own measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.calibration.average import Average
from converter.calibration.histogram import Histogram
from converter.calibration.minmax import MinMax
from passes.affine.grid import UINT8, Array, IntegerRange

Range = tuple[float, float]
STATISTICS_OF: Mapping[str, tuple[str, ...]] = {
    "minmax": ("minmax",),
    "average": ("minmax", "average"),
    "percentile": ("minmax", "histogram"),
    "mse": ("minmax", "histogram"),
    "entropy": ("minmax", "histogram"),
}
"""Kinds of statistics that each method needs; ``minmax`` comes first everywhere."""

_COARSE = 48
"""Candidates per end of the first search."""
_FINE = 8
"""Candidates per end around the best of the first search."""
_SMALLEST_SHARE = 0.02
"""Narrowest range that is tried, as a share of what was seen."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen of one tensor, or of several that share a grid.

    Attributes:
        minmax: The ends.
        average: Mean ends of single samples, for ``average``.
        histogram: The distribution, for ``percentile``, ``mse`` and ``entropy``.
    """

    minmax: MinMax
    average: Average | None = None
    histogram: Histogram | None = None

    @classmethod
    def of(cls, statistics: Sequence[Any]) -> Seen:
        """Sort statistics by their kind."""
        by_kind = {type(s): s for s in statistics}
        return cls(by_kind[MinMax], by_kind.get(Average), by_kind.get(Histogram))

    def merged(self, other: Seen) -> Seen:
        """Return what was seen of both; neither changes."""
        return Seen(
            _joined(MinMax(), self.minmax, other.minmax),
            _joined(Average(), self.average, other.average),
            _joined(Histogram(), self.histogram, other.histogram),
        )


def _joined(total: Any, *parts: Any) -> Any:
    if any(part is None for part in parts):
        return None
    for part in parts:
        total.merge(part)
    return total


def choose(
    method: str,
    seen: Seen,
    *,
    integers: IntegerRange = UINT8,
    symmetric: bool = False,
    percentile: float = 99.99,
) -> Range:
    """Return the range of a tensor's grid, within what was seen and zero.

    Args:
        method: Key of :data:`STATISTICS_OF`.
        seen: With finite ends. Where the statistic of the method is missing or empty, min-max.
        integers: The integers of the grid.
        symmetric: The grid will lie around zero.
        percentile: Share of the elements, in percent, that ``percentile`` keeps.

    Returns:
        (low, high) with low <= 0 <= high.
    """
    low, high = min(seen.minmax.low, 0.0), max(seen.minmax.high, 0.0)
    if method == "average" and seen.average is not None and seen.average.count:
        return max(min(seen.average.low, 0.0), low), min(max(seen.average.high, 0.0), high)
    if method in {"minmax", "average"} or seen.histogram is None or not seen.histogram.total:
        return low, high
    mass = _Mass.of(seen.histogram, low, high)
    if method == "percentile":
        return mass.kept(percentile / 100, one_sided=symmetric)
    levels = integers.high - integers.low
    return _search(mass, _MEASURES[method], levels, symmetric=symmetric)


@dataclass(frozen=True, eq=False)
class _Mass:
    """The non-empty bins of a histogram.

    Attributes:
        low: Smallest element seen, or 0.
        high: Largest element seen, or 0.
        width: Width of a bin.
        middles: Middle of each bin, cut off at the ends: (bins,).
        share: Share of the elements in each bin, above 0: (bins,).
    """

    low: float
    high: float
    width: float
    middles: Array
    share: Array

    @classmethod
    def of(cls, histogram: Histogram, low: float, high: float) -> _Mass:
        counts, middles = histogram.counts.astype(np.float64), histogram.edges[:-1]
        filled = counts > 0
        counts, middles = counts[filled], middles[filled] + histogram.width / 2
        # Of a large tensor a part was counted; the ends were seen for certain.
        if low < middles[0] - histogram.width:
            counts, middles = np.append(1.0, counts), np.append(low, middles)
        if high > middles[-1] + histogram.width:
            counts, middles = np.append(counts, 1.0), np.append(middles, high)
        share = counts / counts.sum()
        return cls(low, high, histogram.width, np.clip(middles, low, high), share)

    def kept(self, share: float, *, one_sided: bool) -> Range:
        """Return the range that holds a share of all elements, evenly cut from both ends."""
        if one_sided:
            order = np.argsort(np.abs(self.middles), kind="stable")
            bound = self._quantile(np.abs(self.middles)[order], self.share[order], share)
            return max(-bound, self.low), min(bound, self.high)
        cut = (1 - share) / 2
        high = self._quantile(self.middles, self.share, 1 - cut)
        low = -self._quantile(-self.middles[::-1], self.share[::-1], 1 - cut)
        return min(max(low, self.low), 0.0), max(min(high, self.high), 0.0)

    def _quantile(self, middles: Array, shares: Array, share: float) -> float:
        """Return the point below which a share lies; elements lie evenly within a bin."""
        cumulated = np.cumsum(shares)
        i = min(int(np.searchsorted(cumulated, share)), len(shares) - 1)
        inside = (share - (cumulated[i] - shares[i])) / shares[i]
        return float(middles[i] + (min(max(inside, 0.0), 1.0) - 0.5) * self.width)


def _search(mass: _Mass, measure: _Measure, levels: int, *, symmetric: bool) -> Range:
    """Return the candidate with the smallest measure: min-max, if none is better.

    Candidates come from a coarse net over the whole range, then from a fine one around the best.
    """
    best = (mass.low, mass.high)
    if symmetric:
        bound = max(-best[0], best[1])
        best = (-bound if best[0] < 0 else 0.0), bound
    ends = best
    coarse = np.geomspace(1.0, _SMALLEST_SHARE, _COARSE)
    fine = np.geomspace(coarse[1], 1 / coarse[1], 2 * _FINE + 1)
    for net in (coarse, fine):
        rounds = 1 if measure.joint or symmetric or 0.0 in ends else 2
        for turn in range(rounds):
            lows, highs = np.maximum(best[0] * net, ends[0]), np.minimum(best[1] * net, ends[1])
            if rounds == 2:  # one end after the other: pairs would cost too much
                lows, highs = (lows, best[1] + 0 * lows) if turn else (best[0] + 0 * highs, highs)
            elif not symmetric:
                lows, highs = (a.reshape(-1) for a in np.meshgrid(np.unique(lows), highs))
            # What leads is replaced only by what is better.
            lows, highs = np.append(best[0], lows), np.append(best[1], highs)
            i = int(np.argmin(measure.cost(mass, lows, highs, levels)))
            best = float(lows[i]), float(highs[i])
    return max(best[0], mass.low), min(best[1], mass.high)


def _squared_error(mass: _Mass, lows: Array, highs: Array, levels: int) -> Array:
    """Return the mean squared error of rounding and cutting off for every candidate.

    What is nearest to an end of the grid or beyond it goes there, what is nearest to zero to zero.
    Everywhere else errors of rounding are taken as evenly spread over a step.
    """
    half = (highs - lows) / levels / 2
    x, share = mass.middles, mass.share
    cumulated = np.cumsum([share, share * x, share * x * x], axis=1)
    sums = np.concatenate([np.zeros((3, 1)), cumulated], axis=1)

    def between(first: Array, last: Array, about: Array | float) -> Array:
        """Sum share * (x - about)^2 over the bins from first to below last."""
        n, s, q = sums[:, last] - sums[:, first]
        return np.asarray(np.maximum(q - 2 * about * s + about * about * n, 0.0))

    bins = np.full(len(lows), len(x))
    low_end = np.searchsorted(x, lows + half)
    zero = np.maximum(np.searchsorted(x, -half), low_end)
    zero_end = np.maximum(np.searchsorted(x, half), zero)
    high = np.maximum(np.searchsorted(x, highs - half), zero_end)
    nearest = between(0 * bins, low_end, lows) + between(high, bins, highs)
    spread = sums[0, zero] - sums[0, low_end] + sums[0, high] - sums[0, zero_end]
    return np.asarray(nearest + between(zero, zero_end, 0.0) + spread * half**2 / 3)


def _divergence(mass: _Mass, lows: Array, highs: Array, levels: int) -> Array:
    """Return the Kullback-Leibler divergence for every candidate, infinity where it says nothing.

    The reference has what is cut off in the outermost bins inside; the distribution on the grid has
    not, and spreads what meets on a level evenly over the non-empty bins that met there.
    """
    x, share = mass.middles, mass.share
    inside = (x >= lows[:, None]) & (x <= highs[:, None])
    step = (highs - lows) / levels
    # With bins wider than levels nothing meets on a level, and any divergence is that of the ends.
    usable = (step >= mass.width) & inside.any(axis=1)
    cost = np.full(len(lows), np.inf)
    if not usable.any():
        return cost
    inside, lows, highs, step = inside[usable], lows[usable], highs[usable], step[usable]
    mine = np.where(inside, share, 0.0)
    held = mine.sum(axis=1, keepdims=True)
    level = np.rint((np.clip(x, lows[:, None], highs[:, None]) - lows[:, None]) / step[:, None])
    rows = np.arange(len(lows))[:, None]
    key = (rows * (levels + 2) + level.astype(np.int64)).reshape(-1)
    total = np.bincount(key, mine.reshape(-1))
    met = np.bincount(key, inside.reshape(-1))
    spread = (total / np.maximum(met, 1))[key].reshape(mine.shape) / held
    first = inside.argmax(axis=1)
    last = inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
    below = np.concatenate([[0.0], np.cumsum(share)])
    reference = mine
    reference[rows[:, 0], first] += below[first]
    reference[rows[:, 0], last] += below[-1] - below[last + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(inside, reference * np.log(reference / spread), 0.0)
    cost[usable] = terms.sum(axis=1)
    return cost


@dataclass(frozen=True)
class _Measure:
    """What a search minimises.

    Attributes:
        cost: From candidates (lows, highs) and the number of steps to costs, all (candidates,).
        joint: Cheap enough for all pairs of ends.
    """

    cost: Callable[[_Mass, Array, Array, int], Array]
    joint: bool


_MEASURES = {
    "mse": _Measure(_squared_error, joint=True),
    "entropy": _Measure(_divergence, joint=False),
}
