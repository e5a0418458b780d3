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

    def at(self, total: int) -> Array:
        """Return the allocation with so many zeros: int64 (layers,)."""
        totals = self.zeros.sum(axis=1)
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

    def run(self) -> Trail:
        """Go up to the sum that is wanted."""
        self._points, self._losses = [self.room.low.copy()], [self._measured(self.room.low)]
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
