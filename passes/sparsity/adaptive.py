"""As many zeros as the budget allows: layer by layer, until what is measured says stop.

On a bench a way up is found that always takes the step that costs least; how far it may go is
measured on models that are masked and recovered like the result, with samples that they were not
fitted on. Where it has to stop, zeros are moved between layers until they cost least, the way is
continued from there, and in the end the layers that come next are raised in groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.guard.deepest import deepest
from passes.sparsity.bench import measured
from passes.sparsity.evolution import Plan
from passes.sparsity.genetic import STARTS, Breeding, Task
from passes.sparsity.judged import Judges, judges_of
from passes.sparsity.problem import Allocation
from passes.sparsity.room import Room
from passes.sparsity.trail import Climb, Trail, rungs
from passes.sparsity.verified import verified

if TYPE_CHECKING:
    from passes.guard.judge import Ruling
    from passes.sparsity.bench import Bench
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
_RUNS = 320
"""Runs over the samples of the bench that finding a way may take."""
_TRIED = (4, 2)
"""Models beyond the first that are built to find how far the first and the second way may go."""
_GROUPS = 2
"""Groups of layers that are tried once more in the end."""
_AHEAD = 0.08
"""Share of what is not zero yet that becomes zero if all groups of layers hold."""
_BRED, _EPOCHS, _EPOCH = (12, 8), 2, 3
"""Survivors, generations and epochs at most of the search for the allocation that the second way
starts from, and generations of an epoch at least."""
_BROKEN = 1.0
"""Damage (nats) of a model that hardly anybody has a budget for: a way is first tried up to it."""
_MEASURED = 4.0
"""Damage from which on a way is not measured any more: it goes on by what is known."""
_BACKS = (0.05, 0.1, 0.2, 0.4)
"""Shares of the zeros that are given back, one after the other, if the result misses with all
samples."""
_LATE = 0.6
"""Share of the user's time after which no further model is built."""
_NAMED = 6


@dataclass(eq=False)
class _Ascent:
    """What was tried so far.

    Attributes:
        problem: The question.
        judges: Who decides.
        room: Bounds; the sum is the most that may be reached.
        reached: The best allocation that holds.
        ruling: What was measured there.
        missed: The last ruling that says no.
        built: Models that were built.
        left: Layers that were raised in a group that did not hold.
    """

    problem: Problem
    judges: Judges
    room: Room
    reached: Array
    ruling: Ruling | None = None
    missed: Ruling | None = None
    built: int = 0
    left: list[int] = field(default_factory=list)

    def judge(self, zeros: Array, *, everything: bool = False) -> Ruling:
        """Build and judge a model."""
        self.built += 1
        samples = None if everything else self.judges.fit
        ruling = self.judges.guard.judge(self.problem.build(zeros, samples))
        if ruling.holds and int(zeros.sum()) > int(self.reached.sum()):
            self.reached, self.ruling = zeros, ruling
        if not ruling.holds:
            self.missed = ruling
        return ruling

    @property
    def late(self) -> bool:
        """True when the user's time limit leaves no time for another model."""
        return self.problem.context.settings.limits.late(_LATE)

    def along(self, trail: Trail, asked: int, steps: int) -> int:
        """Go as far along a way as the budget allows.

        Args:
            trail: The way.
            asked: Zeros at most, more than are reached.
            steps: Models beyond the first.

        Returns:
            The fewest zeros that did not hold; one more than asked for where all held.
        """
        low = int(self.reached.sum())
        missed = asked + 1

        def attempt(depth: float) -> tuple[Ruling, None]:
            nonlocal missed
            zeros = trail.between(low, asked, depth)
            ruling = self.judge(zeros)
            if not ruling.holds:
                missed = min(missed, int(zeros.sum()))
            return ruling, None

        deepest(attempt, 1.0, steps=0 if self.late else steps)
        return missed


def adaptive(problem: Problem) -> Allocation:
    """Return as many zeros as the budget allows, at most those that are wanted.

    Args:
        problem: With samples, of which some are held out, and a budget about results.

    Raises:
        MissingDataError: There are no samples, or too few.
        ParameterError: No term of the budget can be measured.
    """
    judges = judges_of(problem, "adaptive", problem.context)
    room = Room.of(problem)
    if not judges.before.holds:
        said = f"adaptive: nothing becomes zero, {judges.terms} is missed before: "
        return Allocation(room.low, (said + judges.before.text,))
    if room.wanted == int(room.low.sum()):
        return Allocation(room.low, ("adaptive: as many weights as asked for are zero already",))
    ascent = _Ascent(problem, judges, room, room.low.copy())
    way = _way(problem, room, None)
    missed = _up(ascent, way)
    if missed <= room.wanted and ascent.ruling is not None and not ascent.late:
        _rearrange(ascent)
        way = _way(problem, room, ascent.reached)
        _further(ascent, way, missed)
        _by_groups(ascent, way)
    _confirm(ascent)
    return Allocation(ascent.reached, _notes(ascent), _counts(ascent))


def _up(ascent: _Ascent, way: Trail) -> int:
    """Go up the first way; returns the fewest zeros that did not hold."""
    sane = way.until(_BROKEN)
    if int(ascent.reached.sum()) < sane < ascent.room.wanted:
        missed = ascent.along(way, sane, _TRIED[0])
        if missed <= sane or ascent.late:
            return missed
    return ascent.along(way, ascent.room.wanted, _TRIED[0])


def _further(ascent: _Ascent, way: Trail, missed: int) -> None:
    """Go on along the second way, somewhat beyond where the first one missed."""
    stopped = int(ascent.reached.sum())
    most = min(ascent.room.wanted, missed + (missed - stopped) // 2)
    if most > stopped:
        ascent.along(way, most, _TRIED[1])


def _by_groups(ascent: _Ascent, way: Trail) -> None:
    """Raise the layers that come next in groups, and leave those groups that do not hold."""
    total = int(ascent.reached.sum())
    left = int(ascent.room.sizes.sum()) - total
    goal = way.at(min(ascent.room.wanted, total + round(_AHEAD * left)))
    rising = [int(i) for i in way.order(total) if goal[i] > ascent.reached[i]]
    for part in np.array_split(np.asarray(rising, np.intp), min(_GROUPS, len(rising)) or 1):
        if not part.size or ascent.late:
            continue
        zeros = ascent.reached.copy()
        zeros[part] = goal[part]
        if not ascent.judge(zeros).holds:
            ascent.left.extend(part.tolist())


def _confirm(ascent: _Ascent) -> None:
    """Build the result with all samples, and give zeros back where it misses then."""
    low = ascent.room.low
    for back in _BACKS:
        zeros = ascent.reached
        if ascent.ruling is None or ascent.judge(zeros, everything=True).holds:
            return
        fewer = np.maximum(low, np.floor((1.0 - back) * zeros))
        ascent.reached = ascent.room.to(int(fewer.sum())).fitted(fewer)
    ascent.reached, ascent.ruling = low.copy(), None


def _rearrange(ascent: _Ascent) -> None:
    """Share the zeros that are reached out better, if the model that is built is better then."""
    problem = ascent.problem
    room = ascent.room.to(int(ascent.reached.sum()))
    if room.fixed:
        return
    same = replace(problem, share=room.wanted / max(1, int(room.sizes.sum())))
    starts = {name: room.fitted(each(same).zeros) for name, each in STARTS.items()}
    starts["way"] = ascent.reached
    rng = problem.context.rng("prune adaptive")
    generations = min(_BRED[1], problem.generations)
    plan = Plan(min(_BRED[0], problem.population), generations)
    epochs = min(_EPOCHS, max(1, generations // _EPOCH))
    task = Task(room, starts, plan, rng, epochs)
    finalists = measured(problem, partial(_finalists, task))["finalists"]
    known = {name: np.asarray(zeros, np.int64) for name, zeros in finalists}
    real = verified(problem, known | {"way": ascent.reached})
    best = min(real, key=lambda name: real[name], default="way")
    if best == "way":
        return
    ruling = ascent.judge(known[best])
    if ruling.holds:
        ascent.reached, ascent.ruling = known[best], ruling


def _finalists(task: Task, bench: Bench) -> dict[str, Any]:
    """Breed allocations; called in the child process."""
    breeding = Breeding(task, bench)
    last = dict.fromkeys([breeding.run(), *breeding.finalists()])
    return {"finalists": [[each.name, each.zeros] for each in last]}


def _way(problem: Problem, room: Room, start: Array | None) -> Trail:
    """Find a way on the bench, from the zeros that are there or from an allocation."""
    found = measured(problem, partial(_climbed, room, start))
    return Trail(
        room,
        np.asarray(found["zeros"], np.int64),
        np.asarray(found["losses"], np.float64),
        np.asarray(found["rates"], np.float64),
        complete=bool(found["complete"]),
    )


def _climbed(room: Room, start: Array | None, bench: Bench) -> dict[str, Any]:
    """Climb; called in the child process."""
    bench.settle(start)
    climb = Climb(
        room,
        partial(bench.loss, part="trial"),
        steps=rungs(len(room.sizes), _RUNS),
        expired=bench.expired,
        enough=_MEASURED,
    )
    trail = climb.run(start)
    return {
        "zeros": trail.zeros,
        "losses": trail.losses,
        "rates": trail.rates,
        "complete": trail.complete,
    }


def _notes(ascent: _Ascent) -> tuple[str, ...]:
    """Say what was reached, what stopped it, and which layers stopped where."""
    samples = f"{ascent.judges.guard.samples} samples held out"
    share = float(ascent.reached.sum()) / float(ascent.room.sizes.sum())
    missed = ascent.missed.text if ascent.missed is not None else ""
    terms = ascent.judges.terms
    if ascent.ruling is None:
        return (
            f"adaptive: nothing became zero, the least cut that was tried misses {terms}: {missed}",
        )
    said = f"adaptive: {100 * share:.1f} % zeros keep {terms} on {samples}: {ascent.ruling.text}"
    if int(ascent.reached.sum()) >= ascent.room.wanted:
        return (f"{said}; that is as much as was asked for",)
    return (f"{said}; the next cut tried: {missed}", _stops(ascent))


def _stops(ascent: _Ascent) -> str:
    """Say, for every layer, whether its next step was too much or it cannot be cut further."""
    shares = ascent.reached / np.maximum(1, ascent.room.sizes)
    full = [i for i in range(len(shares)) if ascent.reached[i] >= ascent.room.high[i]]
    order = [int(i) for i in np.argsort(shares, kind="stable") if int(i) not in full]
    names = [layer.name for layer in ascent.problem.layers]
    parts = [f"{names[i]} at {100 * shares[i]:.0f} %" for i in order]
    if len(parts) > 2 * _NAMED:
        parts = [*parts[:_NAMED], f"{len(parts) - 2 * _NAMED} more", *parts[-_NAMED:]]
    said = f"stopped by the budget: {', '.join(parts)}" if parts else ""
    if full:
        said += f"{'; ' if said else ''}as sparse as a layer may become: "
        said += ", ".join(names[i] for i in full[: 2 * _NAMED])
    return said


def _counts(ascent: _Ascent) -> dict[str, float]:
    return {"models_built": float(ascent.built)}
