"""Times of whole models decide how deep a latency target cuts; those of layers are estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TRIES = 6
CLOSE = 0.03
"""Times within this share of the target are not told from it, because of noise."""


@dataclass(frozen=True)
class Timed:
    """What to ask of the plan, and the share of the time that the cut then takes."""

    asked: float
    taken: float


def search(time_at: Callable[[float], float], wanted: float) -> Timed:
    """Find what to ask of a plan so that a run takes the share of the time that is wanted.

    Estimates add up times of layers by themselves, so they can be far off either way. A cut that is
    deeper than needed gives away accuracy, so both sides are searched: by the line through the two
    nearest trials, between the best ones on both sides, as in the rule of false position.

    Args:
        time_at: Measures the share of the time that a cut takes, by the share asked of the plan.
        wanted: Share of the time, in (0, 1].

    Returns:
        The least deep of the trials that reach the target, else the fastest of all.
    """
    slow, fast = Timed(1.0, 1.0), Timed(0.0, 0.0)  # nothing cut, and nothing left
    trials: list[Timed] = []
    asked = wanted
    for _ in range(TRIES):
        found = Timed(asked, time_at(asked))
        trials.append(found)
        if abs(found.taken - wanted) <= CLOSE * wanted:
            break
        if found.taken > wanted:
            slow = found
        else:
            fast = found
        asked = _between(fast, slow, wanted)
        if slow.asked - fast.asked < CLOSE * wanted / 2:
            break
    good = [trial for trial in trials if trial.taken <= wanted * (1 + CLOSE)]
    return max(good, key=lambda t: t.asked) if good else min(trials, key=lambda t: t.taken)


def _between(fast: Timed, slow: Timed, wanted: float) -> float:
    """Return what to ask next; never next to an end, since noise would hold the search there."""
    span = slow.taken - fast.taken
    part = (wanted - fast.taken) / span if span > 0 else 0.5
    return fast.asked + min(max(part, 0.15), 0.85) * (slow.asked - fast.asked)
