"""Evolutionary search over numbers of zeros: their sum is the same in every generation.

An individual is a vector of counts. A mutation moves zeros from one layer to another, recombination
takes every layer from either parent and scales the densities to the sum; the best of parents and
children survive ((mu + lambda) selection), and every individual inherits how far its mutations
reach (self-adaptation, Baeck and Schwefel 1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from passes.sparsity.room import Room

Array = np.ndarray[Any, Any]
_STEP = 0.25
"""Reach of the first mutations: share of what a layer keeps, or could get back, that moves."""
_REACH = (0.01, 0.8)
_SPREAD = 0.4
"""Standard deviation of the logarithm by which the reach changes."""
_PAIRS = 3
_CROSSED = 0.5
_TRIES = 20
_REJECTED = 1.0
"""Loss on few samples, in multiples of the worst survivor's, beyond which a child is given up."""


@dataclass(frozen=True, eq=False)
class Individual:
    """One allocation that was tried.

    Attributes:
        zeros: int64 (layers,).
        loss: Damage on the samples of the search.
        quick: The same on few of them.
        reach: How far its children's mutations go.
    """

    zeros: Array
    loss: float
    quick: float
    reach: float


@dataclass(frozen=True)
class Plan:
    """How long and wide to search.

    Attributes:
        population: Survivors, from 2 on.
        generations: From 0 on: the starts alone.
        evaluations: Most runs over all samples of the search.
    """

    population: int = 16
    generations: int = 20
    evaluations: int = 1_000_000


@dataclass(eq=False)
class Evolution:
    """A search.

    Attributes:
        room: What allocations may look like.
        loss: Damage on the samples of the search.
        quick: Damage on few of them; None: nothing is rejected early.
        rng: Where chance comes from.
        expired: Tells that time is over.
        survivors: The best so far, the best first; also usable when the search ends early.
        evaluations: Runs over all samples of the search.
        rejected: Children given up after a run over few samples.
        generation: Generations that are complete.
    """

    room: Room
    loss: Callable[[Array], float]
    rng: np.random.Generator
    quick: Callable[[Array], float] | None = None
    expired: Callable[[], bool] = lambda: False
    survivors: list[Individual] = field(default_factory=list)
    evaluations: int = 0
    rejected: int = 0
    generation: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def run(self, starts: Sequence[Array], plan: Plan) -> list[Individual]:
        """Search from some allocations; returns the survivors, the best first."""
        for zeros in starts:
            self._admit(self.room.fitted(zeros), _STEP)
        firsts = list(self.survivors)
        while self._going(plan) and len(self.survivors) < plan.population:
            parent = firsts[len(self.survivors) % len(firsts)]
            child = self._fresh(partial(self._mutated, parent.zeros, parent.reach))
            if child is None:
                return self.survivors
            self._admit(child, parent.reach)
        self._select(plan.population)
        for _ in range(plan.generations):
            if not self._going(plan):
                break
            self._breed(plan)
            self.generation += 1
        return self.survivors

    def _going(self, plan: Plan) -> bool:
        return self.evaluations < plan.evaluations and not self.expired()

    def _select(self, population: int) -> None:
        self.survivors.sort(key=lambda each: each.loss)  # stable: of equals the older one first
        del self.survivors[population:]

    def _breed(self, plan: Plan) -> None:
        """Make as many children as there are survivors, less the elite that needs no proof."""
        parents = list(self.survivors)
        worst = max(parent.quick for parent in parents)
        for _ in range(max(1, plan.population - plan.population // 8)):
            if not self._going(plan):
                break
            first, second = self._chosen(parents), self._chosen(parents)
            reach = first.reach * math.exp(_SPREAD * self.rng.standard_normal())
            reach = min(max(reach, _REACH[0]), _REACH[1])
            child = self._fresh(partial(self._child, first, second, reach))
            if child is not None:
                self._admit(child, reach, limit=_REJECTED * worst)
        self._select(plan.population)

    def _child(self, first: Individual, second: Individual, reach: float) -> Array:
        crossed = self.rng.random() < _CROSSED
        return self._mutated(self._crossed(first, second) if crossed else first.zeros, reach)

    def _fresh(self, make: Callable[[], Array]) -> Array | None:
        """Return a child that was not tried before."""
        for _ in range(_TRIES):
            child = make()
            if child.tobytes() not in self._seen:
                return child
        return None

    def _admit(self, zeros: Array, reach: float, limit: float = math.inf) -> None:
        """Try an allocation and let it live, unless few samples already speak against it."""
        key = zeros.tobytes()
        if key in self._seen:
            return
        self._seen.add(key)
        quick = math.inf if self.quick is None else _number(self.quick(zeros))
        if self.quick is not None and quick > limit:
            self.rejected += 1
            return
        self.evaluations += 1
        loss = _number(self.loss(zeros))
        self.survivors.append(Individual(zeros, loss, quick, reach))

    def _chosen(self, parents: Sequence[Individual]) -> Individual:
        """Return the better of two (parents come sorted)."""
        return parents[int(self.rng.integers(0, len(parents), 2).min())]

    def _crossed(self, first: Individual, second: Individual) -> Array:
        """Take every layer from either parent."""
        mask = self.rng.random(len(first.zeros)) < 0.5
        return self.room.fitted(np.where(mask, first.zeros, second.zeros))

    def _mutated(self, zeros: Array, reach: float) -> Array:
        """Move zeros between pairs of layers."""
        room, made = self.room, zeros.copy()
        for _ in range(int(self.rng.integers(1, _PAIRS + 1))):
            gives = np.flatnonzero(made > room.low)
            takes = np.flatnonzero(made < room.high)
            if not gives.size or not takes.size:
                break
            i = int(self.rng.choice(gives))
            j = int(self.rng.choice(takes))
            most = min(int(made[i] - room.low[i]), int(room.high[j] - made[j]))
            # relative to what the layers keep: a tenth of a sparse layer is few weights
            scale = min(int(room.sizes[j] - made[j]), 4 * int(room.sizes[i] - made[i]) + 1)
            move = min(most, max(1, round(reach * float(self.rng.random()) * scale)))
            if i != j:
                made[i] -= move
                made[j] += move
        return made


def _number(loss: float) -> float:
    """Return the loss; what is no number counts as broken."""
    return loss if not math.isnan(loss) else math.inf
