"""How many rounds of every component: the cheapest damage for a cost that must not be exceeded."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.allocation.cost import Cost

Array = np.ndarray[Any, Any]
_AHEAD = (16, 8, 4, 2)
_STEPS = 128
_BINS = 4096
_TRIES = 14
_DP_LEVELS = 32
_SWEEPS = 2
_WORTH = 1e-4
_MOST_EXCHANGED = 640  # stops in all: exchanges take time with their square
_MOST_STOPS = 64


@dataclass(frozen=True, eq=False)
class Options:
    """What can be chosen for one component.

    Attributes:
        stops: Rounds that are allowed: int64, ascending from 0.
        losses: Damage at these: float64, rising.
        marginals: What the last round before each costs, for thresholds: float64, rising.
    """

    stops: Array
    losses: Array
    marginals: Array


def greedy(options: Sequence[Options], cost: Cost, goal: float) -> list[int]:
    """Take the step with the least damage per cost saved until the goal is met.

    Every step looks ahead by a sixteenth to half of the component, so that a
    costly atom does not hide cheap ones behind it. What was saved too much is given back.

    Returns:
        Indices of stops; the deepest where the goal cannot be met.
    """
    at = [0] * len(options)
    sizes = cost.sizes([0] * len(options))
    left = cost.total([0] * len(options)) - goal
    heap = [(_rate(o, cost, sizes, i, 0), i) for i, o in enumerate(options) if len(o.stops) > 1]
    heapq.heapify(heap)
    while left > 0 and heap:
        _, i = heapq.heappop(heap)
        # what other components lost makes this step save less than it did: look again
        rate = _rate(options[i], cost, sizes, i, at[i])
        if heap and (rate, i) > heap[0]:
            heapq.heappush(heap, (rate, i))
            continue
        stops = options[i].stops
        step = min(len(stops) - 1, at[i] + max(1, len(stops) // _STEPS))
        before, after = int(stops[at[i]]), int(stops[step])
        left -= cost.saving(sizes, i, before, after)
        sizes = cost.moved(sizes, i, before, after)
        at[i] = step
        if step + 1 < len(stops):
            heapq.heappush(heap, (_rate(options[i], cost, sizes, i, step), i))
    return give_back(options, cost, goal, at)


def give_back(
    options: Sequence[Options], cost: Cost, goal: float, at: Sequence[int], fixed: int = -1
) -> list[int]:
    """Undo the steps that the goal does not need, those that spare most damage per cost first.

    Args:
        options: By component.
        cost: By rounds.
        goal: Bound on the cost.
        at: Indices of stops.
        fixed: A component that stays as it is.
    """
    found = list(at)
    rounds = [int(o.stops[k]) for o, k in zip(options, found, strict=True)]
    sizes, total = cost.sizes(rounds), cost.total(rounds)
    while total <= goal:
        best = None
        for i, o in enumerate(options):
            if not found[i] or i == fixed:
                continue
            before, after = int(o.stops[found[i]]), int(o.stops[found[i] - 1])
            more = -cost.saving(sizes, i, before, after)
            gain = float(o.losses[found[i]] - o.losses[found[i] - 1]) / max(more, 1e-9 * goal)
            if total + more <= goal and (best is None or gain > best[0]):
                best = gain, i, before, after, more
        if best is None:
            break
        _, i, before, after, more = best
        found[i] -= 1
        sizes, total = cost.moved(sizes, i, before, after), total + more
    return found


def best(options: Sequence[Options], cost: Cost, goal: float) -> list[int]:
    """Return the better of greedy steps and dynamic programming, mended by exchanges."""
    found = [greedy(options, cost, goal), knapsack(options, cost, goal)]
    if sum(len(o.stops) for o in options) <= _MOST_EXCHANGED:
        found = [exchange(options, cost, goal, at) for at in found]
    return min(found, key=lambda at: (not _meets(options, cost, goal, at), _loss(options, at)))


def exchange(options: Sequence[Options], cost: Cost, goal: float, at: Sequence[int]) -> list[int]:
    """Take more of one component and give back elsewhere, as long as the damage becomes less.

    Greedy steps see one component at a time; this mends what they chose early.
    """
    found, least = list(at), _loss(options, at)
    for _ in range(_SWEEPS):
        before = least
        for i, o in enumerate(options):
            for ahead in _steps(len(o.stops)):
                if found[i] + ahead >= len(o.stops):
                    continue
                tried = [k + ahead if j == i else k for j, k in enumerate(found)]
                tried = give_back(options, cost, goal, tried, fixed=i)
                loss = _loss(options, tried)
                if loss < least * (1 - _WORTH):
                    found, least = tried, loss
        if least >= before:
            break
    return found


def uniform(
    options: Sequence[Options], cost: Cost, goal: float, rounds: Sequence[int]
) -> list[int]:
    """Take the same share of every component, the smallest that meets the goal.

    Args:
        options: By component.
        cost: By rounds.
        goal: Bound on the cost.
        rounds: All rounds of every component.
    """

    def at(share: float) -> list[int]:
        wanted = [share * all_rounds for all_rounds in rounds]
        return [_nearest(o.stops, w) for o, w in zip(options, wanted, strict=True)]

    return _bisect(at, options, cost, goal, np.linspace(0.0, 1.0, 1 + _BINS))


def by_threshold(options: Sequence[Options], cost: Cost, goal: float) -> list[int]:
    """Take everything that matters less than a threshold, the smallest that meets the goal."""
    every = np.unique(np.concatenate([o.marginals[1:] for o in options] + [np.zeros(1)]))

    def at(threshold: float) -> list[int]:
        return [int(np.searchsorted(o.marginals[1:], threshold, side="right")) for o in options]

    none = np.concatenate([[-math.inf], every])
    return _bisect(at, options, cost, goal, none)


def knapsack(options: Sequence[Options], cost: Cost, goal: float) -> list[int]:
    """Find the least total damage by dynamic programming over the cost saved.

    What a component saves is taken as if the others were whole, scaled so that the exact cost of
    the result meets the goal.
    """
    thin = [_thinned(o) for o in options]
    whole = [0] * len(options)
    sizes, total = cost.sizes(whole), cost.total(whole)
    if total <= goal:
        return whole
    savings = [
        np.array([cost.saving(sizes, i, 0, int(o.stops[k])) for k in picks])
        for i, (o, picks) in enumerate(zip(options, thin, strict=True))
    ]
    most = sum(float(s[-1]) for s in savings)
    if most <= 0:
        return whole
    low, high, best = 0.0, most, None
    for _ in range(_TRIES):
        middle = (low + high) / 2
        picks = _solve(options, thin, savings, middle)
        rounds = [int(o.stops[k]) for o, k in zip(options, picks, strict=True)]
        if cost.total(rounds) <= goal:
            best, high = picks, middle
        else:
            low = middle
    if best is None:
        return [len(o.stops) - 1 for o in options]
    return give_back(options, cost, goal, best)


def _solve(
    options: Sequence[Options], thin: Sequence[Array], savings: Sequence[Array], wanted: float
) -> list[int]:
    """Return stops that save at least ``wanted`` (in bins) with the least damage."""
    step = wanted / (_BINS // 4)
    bins = _BINS // 4
    best = np.full(bins + 1, np.inf)
    best[0] = 0.0
    taken = []
    for o, picks, saved in zip(options, thin, savings, strict=True):
        gains = np.clip(np.floor(saved / step).astype(np.int64), 0, bins)
        found = np.full(bins + 1, np.inf)
        chosen = np.zeros(bins + 1, np.int64)
        origin = np.zeros(bins + 1, np.int64)
        for k, gain in zip(picks, gains, strict=True):
            _extend(best + float(o.losses[k]), int(gain), (found, chosen, origin), int(k))
        best = found
        taken.append((chosen, origin))
    at = bins if np.isfinite(best[bins]) else int(np.flatnonzero(np.isfinite(best))[-1])
    result = []
    for chosen, origin in reversed(taken):
        result.append(int(chosen[at]))
        at = int(origin[at])
    return result[::-1]


def _extend(losses: Array, gain: int, into: tuple[Array, Array, Array], pick: int) -> None:
    """Offer one choice to every state; what saves more than wanted counts as just enough."""
    found, chosen, origin = into
    bins = len(losses) - 1
    reached = losses[: bins + 1 - gain]
    better = reached < found[gain:]
    found[gain:][better] = reached[better]
    chosen[gain:][better] = pick
    origin[gain:][better] = np.flatnonzero(better)
    tail = losses[bins + 1 - gain :]
    if len(tail):
        k = int(np.argmin(tail))
        if tail[k] < found[bins]:
            found[bins], chosen[bins], origin[bins] = tail[k], pick, bins + 1 - gain + k


def thinned(options: Options) -> Options:
    """Return fewer stops, evenly spread, where a component has very many."""
    count = len(options.stops)
    if count <= _MOST_STOPS:
        return options
    picks = np.unique(np.linspace(0, count - 1, _MOST_STOPS).round().astype(np.int64))
    return Options(options.stops[picks], options.losses[picks], options.marginals[picks])


def including(options: Options, stop: int, loss: float) -> Options:
    """Return the same with one more stop, if it is not there yet; for losses only."""
    at = int(np.searchsorted(options.stops, stop))
    if at < len(options.stops) and options.stops[at] == stop:
        return options
    marginal = options.marginals[min(at, len(options.marginals) - 1)]
    return Options(
        np.insert(options.stops, at, stop),
        np.insert(options.losses, at, loss),
        np.insert(options.marginals, at, marginal),
    )


def _thinned(options: Options) -> Array:
    """Return at most so many stops, spread evenly: indices."""
    count = len(options.stops)
    return np.unique(np.linspace(0, count - 1, min(count, _DP_LEVELS)).round().astype(np.int64))


def _bisect(
    at: Callable[[float], list[int]],
    options: Sequence[Options],
    cost: Cost,
    goal: float,
    values: Array,
) -> list[int]:
    """Return the choice of the first of rising values that meets the goal, or of the last."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        picks = at(float(values[middle]))
        rounds = [int(o.stops[k]) for o, k in zip(options, picks, strict=True)]
        if cost.total(rounds) <= goal:
            high = middle
        else:
            low = middle + 1
    return at(float(values[low]))


def _nearest(stops: Array, wanted: float) -> int:
    return int(np.argmin(np.abs(stops - wanted)))


def _rate(options: Options, cost: Cost, sizes: Array, index: int, at: int) -> float:
    """Return the least damage per cost saved of the next steps."""
    count = len(options.stops)
    best = math.inf
    for ahead in _steps(count):
        to = min(count - 1, at + ahead)
        saved = cost.saving(sizes, index, int(options.stops[at]), int(options.stops[to]))
        damage = float(options.losses[to] - options.losses[at])
        if saved > 0:
            best = min(best, damage / saved)
    return best


def _steps(count: int) -> list[int]:
    """Return by how many stops to look ahead, ascending."""
    return sorted({1, *(max(1, count // part) for part in _AHEAD)})


def _meets(options: Sequence[Options], cost: Cost, goal: float, at: Sequence[int]) -> bool:
    rounds = [int(o.stops[k]) for o, k in zip(options, at, strict=True)]
    return cost.total(rounds) <= goal * (1 + 1e-9)


def _loss(options: Sequence[Options], at: Sequence[int]) -> float:
    return float(sum(o.losses[k] for o, k in zip(options, at, strict=True)))
