"""A way from no zeros to many: always the step next that costs least per zero.

Every layer has a ladder of densities. What its next step costs is measured at the outputs, together
with all the steps that were taken before; since costs rise along the way, a step that was measured
earlier is measured again only when it comes first (lazy evaluation, Minoux 1978).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from passes.sparsity.room import Room

Array = np.ndarray[Any, Any]
_RUNGS = (4, 16)
"""Steps from all weights of a layer to the least that it keeps."""
_LEAST = 0.01
_REPEATED = 1.6
"""Runs per step: about so many steps are measured again."""
_NOISE = 1e-6
"""Loss below which steps are told apart by how many zeros they bring."""
_BROKEN = 1e6
_DECADES = 1e5
"""Part of the damage at the end of a way from which on it is worth to look."""


@dataclass(frozen=True, eq=False)
class Trail:
    """The way.

    Attributes:
        room: Bounds; its sum is that of the last point.
        zeros: By point and layer, never falling along the way: int64 (points, layers).
        losses: By point: float64 (points,).
        rates: What the last step that was looked at costs per zero, by layer; infinite for layers
            that cannot be cut further: float64 (layers,).
        complete: False when time was over before the last point.
    """

    room: Room
    zeros: Array
    losses: Array
    rates: Array
    complete: bool = True

    @property
    def totals(self) -> Array:
        """Zeros of all layers by point: int64 (points,)."""
        return np.asarray(self.zeros.sum(axis=1))

    def until(self, loss: float) -> int:
        """Return the most zeros with a loss of at most this; those of the first point at least."""
        return int(self.totals[max(0, int(np.searchsorted(self.losses, loss, side="right")) - 1)])

    def between(self, low: int, high: int, depth: float) -> Array:
        """Return an allocation between two totals, by the damage that is to be expected.

        Args:
            low: Zeros at depth 0.
            high: Zeros at depth 1, more than ``low``.
            depth: 0 to 1, on the scale of the logarithm of the damage: figures that budgets are
                about grow evenly then.
        """
        totals, losses = self.totals.astype(np.float64), np.maximum.accumulate(self.losses)
        losses = losses + _NOISE * (np.arange(len(losses)) + 1.0) / len(losses)
        first, last = np.interp([low, high], totals, losses)
        first = max(first, last / _DECADES)
        wished = np.interp(first * (last / first) ** depth, losses, totals)
        return self.at(min(high, max(low + 1, round(float(wished)))) if depth < 1.0 else high)

    def order(self, total: int) -> Array:
        """Return the layers in the order in which they get more zeros beyond a total."""
        later = self.zeros[self.totals > total]
        if not len(later):
            return np.arange(0)
        rises = later > self.at(total)
        first = np.where(rises.any(axis=0), rises.argmax(axis=0), len(later))
        order = np.argsort(first, kind="stable")
        return np.asarray(order[first[order] < len(later)])

    def at(self, total: int) -> Array:
        """Return the allocation with so many zeros: int64 (layers,)."""
        totals = self.totals
        i = int(np.clip(np.searchsorted(totals, total), 1, max(1, len(totals) - 1)))
        if len(totals) < 2:
            return self.room.to(total).fitted(self.zeros[0])
        first, second = self.zeros[i - 1], self.zeros[i]
        span = float(totals[i] - totals[i - 1])
        part = min(1.0, max(0.0, (total - float(totals[i - 1])) / span)) if span else 0.0
        return self.room.to(total).fitted(first + part * (second - first))


def rungs(layers: int, runs: int) -> int:
    """Return how many steps a layer has, so that about so many runs suffice for all."""
    return min(_RUNGS[1], max(_RUNGS[0], round(runs / (_REPEATED * max(1, layers)))))


@dataclass(eq=False)
class Climb:
    """Finds the way.

    Attributes:
        room: Bounds; its sum is where the way ends.
        loss: Damage of an allocation.
        steps: Of every layer, from dense to the least.
        expired: Tells that time is over.
        enough: Loss beyond which nobody wants to go: the way goes on by what is known already.
        runs: How often the loss was asked for.
    """

    room: Room
    loss: Callable[[Array], float]
    steps: int = _RUNGS[1]
    expired: Callable[[], bool] = lambda: False
    enough: float = math.inf
    runs: int = 0
    _points: list[Array] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _known: dict[int, tuple[int, float]] = field(default_factory=dict)
    _blind: bool = False

    def run(self, start: Array | None = None) -> Trail:
        """Go up to the sum that is wanted, from the zeros that are there or from a later point."""
        first = self.room.low.copy() if start is None else start
        self._points, self._losses = [first], [self._measured(first)]
        rates = np.zeros(len(self.room.sizes))
        queue = [(0.0, i) for i in range(len(rates))]
        while queue and int(self._points[-1].sum()) < self.room.wanted:
            self._blind = self._blind or self.expired() or self._losses[-1] > self.enough
            _, i = heapq.heappop(queue)
            step = self._step(i)
            if not step:
                rates[i] = math.inf
                continue
            next_point = self._points[-1].copy()
            next_point[i] += step
            loss = self._loss(i, next_point, float(rates[i]) * step)
            rates[i] = (max(loss - self._losses[-1], 0.0) + _NOISE) / step
            if not queue or self._blind or rates[i] <= queue[0][0]:
                self._points.append(next_point)
                self._losses.append(max(loss, self._losses[-1]))
            # also after a step: the next one costs more, which is found out when it comes first
            heapq.heappush(queue, (float(rates[i]), i))
        return self._trail(rates)

    def _loss(self, i: int, zeros: Array, guess: float) -> float:
        """Return the loss after a layer's next step, measured where it is not known yet."""
        version, loss = self._known.get(i, (-1, 0.0))
        if version == len(self._points):
            return loss
        if self._blind:
            return self._losses[-1] + guess
        loss = self._measured(zeros)
        self._known[i] = len(self._points), loss
        return loss

    def _trail(self, rates: Array) -> Trail:
        points, losses = np.stack(self._points), np.asarray(self._losses)
        trail = Trail(self.room, points, losses, rates, complete=not self._blind)
        if int(points[-1].sum()) > self.room.wanted:
            points[-1] = trail.at(self.room.wanted)
        return trail

    def _step(self, i: int) -> int:
        """Return how many zeros the next step of a layer brings."""
        room, now = self.room, int(self._points[-1][i])
        kept = int(room.sizes[i]) - now
        step = max(1, round((1.0 - _LEAST ** (1.0 / self.steps)) * kept))
        return int(min(step, room.high[i] - now))

    def _measured(self, zeros: Array) -> float:
        self.runs += 1
        loss = self.loss(zeros)
        return loss if loss < _BROKEN else _BROKEN
