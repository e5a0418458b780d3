"""Exchange channels between components until time and damage are in the best balance.

Work of convolutions falls by whole blocks of channels, damage rises evenly: a few channels given
back here and taken there save much time for little. Steps are judged by log(damage) + log(work).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.allocation.choose import Options
from passes.allocation.cost import Cost

Array = np.ndarray[Any, Any]
_WORTH = 1e-6
_SWEEPS = 8
_MOST_TRIED = 20_000
_STEPS = (-2, -1, 1, 2)


def balance(damage: float, work: float) -> float:
    """Return what is to become least: one percent of damage is worth one percent of the work.

    Args:
        damage: Predicted, > 0.
        work: What the runtime does, of any unit, >= 0.
    """
    return math.log(damage) + math.log(max(work, 1e-9))


@dataclass(frozen=True, eq=False)
class Terms:
    """What an exchange has to keep to.

    Attributes:
        cost: What the target counts.
        goal: Bound on the cost.
        work: What the runtime really does.
        slack: Damage below which differences do not matter, > 0.
        most: Bound on the damage.
    """

    cost: Cost
    goal: float
    work: Cost
    slack: float
    most: float


def settle(options: Sequence[Options], terms: Terms, at: Sequence[int]) -> list[int]:
    """Return indices of stops that are better balanced, and meet the goal if these do.

    Args:
        options: By component.
        terms: Bounds.
        at: Indices of stops to begin with.
    """
    return _Exchange(options, terms, at).run()


class _Exchange:
    def __init__(self, options: Sequence[Options], terms: Terms, at: Sequence[int]) -> None:
        self._left = _MOST_TRIED
        self._options = options
        self._terms = terms
        self._at = list(at)
        rounds = [int(o.stops[k]) for o, k in zip(options, at, strict=True)]
        self._both = (terms.cost, terms.work)
        self._all = [np.arange(len(cost.factors)) for cost in self._both]
        self._sizes = [cost.sizes(rounds) for cost in self._both]
        self._damage = float(sum(o.losses[k] for o, k in zip(options, at, strict=True)))
        self._best = self._balance(self._sizes, self._damage)

    def run(self) -> list[int]:
        """Try every component and every pair, as long as something gets better."""
        for _ in range(_SWEEPS):
            before = self._best
            for i in range(len(self._options)):
                for step in _STEPS:
                    self._try(i, step)
            if self._best >= before - _WORTH or self._left <= 0:
                break
        return self._at

    def _try(self, i: int, step: int) -> None:
        """Move one component, and the other that makes up for it best."""
        one = self._moved(self._sizes, self._damage, i, step)
        if one is None or self._left <= 0:
            return
        moves: tuple[tuple[int, int], ...] = ((i, step),)
        found = (self._balance(*one), one, moves)
        for j in range(len(self._options)):
            for back in _STEPS:
                if j == i or back * step > 0:
                    continue
                two = self._moved(*one, j, back)
                if two is not None:
                    other = (self._balance(*two), two, (*moves[:1], (j, back)))
                    found = other if other[0] < found[0] else found
        if found[0] < self._best - _WORTH:
            self._best, (self._sizes, self._damage) = found[0], found[1]
            for k, by in found[2]:
                self._at[k] += by

    def _moved(
        self, sizes: list[Array], damage: float, index: int, step: int
    ) -> tuple[list[Array], float] | None:
        """Return sizes and damage when a component goes to another stop."""
        o, k = self._options[index], self._at[index]
        if not 0 <= k + step < len(o.stops):
            return None
        before, after = int(o.stops[k]), int(o.stops[k + step])
        moved = [c.moved(s, index, before, after) for c, s in zip(self._both, sizes, strict=True)]
        return moved, damage + float(o.losses[k + step] - o.losses[k])

    def _balance(self, sizes: list[Array], damage: float) -> float:
        """Return what is to become least; infinity outside the bounds."""
        self._left -= 1
        if damage > self._terms.most:
            return math.inf
        total, work = (
            float(c.values(t, s).sum())
            for c, t, s in zip(self._both, self._all, sizes, strict=True)
        )
        if total > self._terms.goal * (1 + 1e-9):
            return math.inf
        return balance(damage + self._terms.slack, work)
