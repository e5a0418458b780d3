"""The deepest cut that holds: a bracket that closes where the errors reach what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from passes.guard.judge import Ruling

T = TypeVar("T")
STEPS = 6
"""Cuts that are tried beyond the one that was asked for."""
CLOSE = 1 / 64
"""Width of the bracket, as a share of what was asked for, that is not worth another cut."""
_EDGE = 0.2
_SMALLEST = 1e-3


@dataclass(frozen=True, eq=False)
class Attempt(Generic[T]):
    """One cut that was tried.

    Attributes:
        depth: How deep, 0 for none.
        ruling: What the samples say.
        result: What came of it.
    """

    depth: float
    ruling: Ruling
    result: T


@dataclass(frozen=True, eq=False)
class Search(Generic[T]):
    """How the search went.

    Attributes:
        best: The deepest attempt that holds; None when not even the least does.
        asked: The depth that was asked for.
        tried: Depth and ruling of all attempts in order.
    """

    best: Attempt[T] | None
    asked: float
    tried: tuple[tuple[float, Ruling], ...]

    @property
    def stopped(self) -> bool:
        """True when the depth that was asked for does not hold."""
        return self.best is None or self.best.depth < self.asked

    def words(self, terms: str) -> str:
        """Say what was reached and why not more.

        Args:
            terms: The terms of the budget that decide.
        """
        failed = [(depth, ruling) for depth, ruling in self.tried if not ruling.holds]
        if self.best is None:
            return f"nothing was cut: even the smallest cut misses {terms}: {failed[-1][1].text}"
        if not failed:
            return f"the cut keeps {terms}: {self.best.ruling.text}"
        shallowest = min(failed, key=lambda item: item[0])[1]
        return (
            f"stopped at the deepest cut that keeps {terms}: {self.best.ruling.text}; "
            f"the next deeper one tried: {shallowest.text}"
        )


def deepest(
    attempt: Callable[[float], tuple[Ruling, T]], asked: float, *, steps: int = STEPS
) -> Search[T]:
    """Find the deepest cut that holds, at most as deep as asked.

    Tries what was asked for, then points inside the bracket of what holds and what does not. The
    errors grow about exponentially with depth, so the logarithm of the excess is interpolated; a
    point is never nearer to an end of the bracket than a fifth of it. Never looks at a clock: the
    same rulings lead to the same points.

    Args:
        attempt: Cuts at a depth between 0 and ``asked`` and judges; only the best result is kept.
        asked: The depth that is wanted.
        steps: Attempts beyond the first.
    """
    tried: list[tuple[float, Ruling]] = []
    best: Attempt[T] | None = None
    low, high = (0.0, _SMALLEST), (asked, 1.0)
    depth = asked
    for _ in range(steps + 1):
        ruling, result = attempt(depth)
        tried.append((depth, ruling))
        excess = max(_SMALLEST, min(ruling.excess, 1 / _SMALLEST))
        if ruling.holds:
            best = Attempt(depth, ruling, result)
            low = (depth, excess)
        else:
            high = (depth, excess)
        if low[0] >= asked or high[0] - low[0] <= CLOSE * asked:
            break
        depth = _between(low, high)
    return Search(best, asked, tuple(tried))


def _between(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Return the depth at which the excess should be just below 1."""
    span = math.log(high[1]) - math.log(low[1])
    share = -math.log(low[1]) / span if span > 0 else 0.5
    if low[0] == 0.0:
        share = 0.5  # no cut has no error: its logarithm says nothing
    return low[0] + (high[0] - low[0]) * min(1 - _EDGE, max(_EDGE, share))


def most(attempt: Callable[[int], Ruling], asked: int) -> Search[None]:
    """Find the largest count that holds, at most as many as asked: by halving the bracket.

    Args:
        attempt: Judges a count from 1 on.
        asked: The count that is wanted.
    """
    tried: list[tuple[float, Ruling]] = []
    low, high, count = 0, asked + 1, asked
    best: Attempt[None] | None = None
    while count > low:
        ruling = attempt(count)
        tried.append((float(count), ruling))
        if ruling.holds:
            low, best = count, Attempt(float(count), ruling, None)
        else:
            high = count
        count = (low + high) // 2
    return Search(best, float(asked), tuple(tried))
