"""Numbers of zeros by evolution: what is bred is judged by what the model's outputs lose.

A bench works all layers out around an allocation; nearby allocations cost one run each then, and
evolve under that. What comes out is fitted for its own zeros, which takes longer and is near to
the result: only if it is better there, the search goes on around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.sparsity import simple
from passes.sparsity.bench import measured
from passes.sparsity.evolution import Evolution, Plan
from passes.sparsity.problem import Allocation
from passes.sparsity.room import Room
from passes.sparsity.verified import verified

if TYPE_CHECKING:
    from passes.sparsity.bench import Bench
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
_EPOCHS, _LEAST = 5, 3
"""Parts of the search at most, and generations of one at least; the bench is set up anew for
each."""
_REACH = 1.7
"""Densities move by this factor at most in an epoch, and by its root after one that failed."""
_CLOSE = 1.12
"""Factor below which it is not worth to go on."""
_SHORTER = (1.0, 0.5)
"""Parts of the way to what an epoch found that are fitted and judged."""
_FINALISTS = 6
_BRED = 1
"""Of what was bred so many are built and judged like the result, and all that it started from: few
samples misjudge these most, the farther they are from where layers were worked out."""
_CLEARLY = 1.15
"""Factor between damages on held-out samples from which on a difference is clear ..."""
_CLEARLY_BUILT = 1.05
"""... and between those of models that are built, on all samples that judge."""
STARTS = {"local": simple.local, "lamp": simple.lamp, "erk": simple.erk}


@dataclass(frozen=True, eq=False)
class Task:
    """What to search.

    Attributes:
        room: Bounds and the sum.
        starts: Allocations by name; among the finalists whatever happens.
        plan: Survivors and generations of all epochs together.
        rng: Where chance comes from.
        epochs: Most epochs.
    """

    room: Room
    starts: Mapping[str, Array]
    plan: Plan
    rng: np.random.Generator
    epochs: int = _EPOCHS


@dataclass(frozen=True, eq=False)
class Tried:
    """An allocation with all layers fitted for it.

    Attributes:
        name: Where it comes from.
        zeros: int64 (layers,).
        loss: Damage on the samples of the search.
        held: Damage on those that were held out.
    """

    name: str
    zeros: Array
    loss: float
    held: float


@dataclass(eq=False)
class Breeding:
    """A search on a bench.

    Attributes:
        task: What to search.
        bench: Tries allocations.
        tried: All allocations that were fitted.
        runs: Evaluations of allocations that were not.
        rejected: Those of them that few samples sufficed for.
        generations: That were bred.
    """

    task: Task
    bench: Bench
    tried: list[Tried] = field(default_factory=list)
    runs: int = 0
    rejected: int = 0
    generations: int = 0

    def run(self) -> Tried:
        """Search; returns the best of the finalists on samples that were held out."""
        for name, zeros in self.task.starts.items():
            self._own(name, zeros)
        best = min(self.tried, key=lambda each: each.loss)
        reach, crowd = _REACH, [each.zeros for each in self.tried]
        for epoch in range(self.task.epochs):
            if self.bench.expired() or reach < _CLOSE:
                break
            found = self._epoch(best, reach, crowd, epoch)
            better = min(found, key=lambda each: each.loss, default=best)
            if better.loss < best.loss:
                best = better
            else:
                reach **= 0.5
        return self._chosen()

    def _epoch(self, best: Tried, reach: float, crowd: list[Array], epoch: int) -> list[Tried]:
        """Breed around the best; fit what comes out for its own zeros."""
        self.bench.settle(best.zeros)
        room = self.task.room.near(best.zeros, reach)
        if room.fixed:
            return []
        evolution = Evolution(
            room,
            lambda zeros: self.bench.loss(zeros, "trial"),
            self.task.rng,
            quick=lambda zeros: self.bench.loss(zeros, "few"),
            expired=self.bench.expired,
        )
        survivors = evolution.run([best.zeros, *crowd], self._plan(epoch))
        self.runs += evolution.evaluations
        self.rejected += evolution.rejected
        self.generations += evolution.generation
        crowd[:] = [each.zeros for each in survivors[: max(2, self.task.plan.population // 2)]]
        found = []
        for part in _SHORTER:
            if not self.bench.expired():
                zeros = room.fitted(best.zeros + part * (survivors[0].zeros - best.zeros))
                name = f"generation {self.generations}" + (" halfway" if part < 1.0 else "")
                found += self._own(name, zeros)
        return found

    def _plan(self, epoch: int) -> Plan:
        plan, epochs = self.task.plan, self.task.epochs
        share = plan.generations * (epoch + 1) // epochs - plan.generations * epoch // epochs
        return Plan(plan.population, share)

    def _own(self, name: str, zeros: Array) -> list[Tried]:
        if any(np.array_equal(each.zeros, zeros) for each in self.tried):
            return []
        loss, held = self.bench.own(zeros, ("trial", "held"))
        if any(each.name == name for each in self.tried):
            name += f", {len(self.tried)}"
        made = Tried(name, zeros, _number(loss), _number(held))
        self.tried.append(made)
        return [made]

    def _chosen(self) -> Tried:
        """Choose among the best and all starts.

        What the samples that took no part in the search say is unbiased, but there are few of them,
        and few of these decide a mean divergence; so both parts count, and what is clearly worse
        than a start on them is not taken at all.
        """
        bound = _CLEARLY * min(each.held for each in self._starts())
        return min(
            (each for each in self._ranked() if each.held <= bound),
            key=lambda each: each.loss + each.held,
        )

    def _starts(self) -> list[Tried]:
        return [each for each in self.tried if each.name in self.task.starts]

    def _ranked(self) -> list[Tried]:
        """Return the best on the samples of the search and all starts."""
        return [*sorted(self.tried, key=lambda each: each.loss)[:_FINALISTS], *self._starts()]

    def finalists(self) -> list[Tried]:
        """Return what is worth to be built: the best that were bred, and the starts."""
        bred = [each for each in self._ranked() if each.name not in self.task.starts]
        bred.sort(key=lambda each: each.loss + each.held)
        starts = sorted(self._starts(), key=lambda each: each.loss + each.held)
        return [*bred[:_BRED], *starts]


def genetic(problem: Problem) -> Allocation:
    """Return the best allocation that an evolutionary search finds for the wanted total.

    Starts from uniform, LAMP and ERK allocations. The damage at the outputs, with layers
    compensated, decides; among the last few and the starts it decides together with samples that
    the search did not see, where the result is never clearly worse than a start. Evaluations run
    one after the other in one child process: they share what the bench has worked out.

    Args:
        problem: With samples, its own or made up, population and generations.
    """
    room = Room.of(problem)
    starts = {name: room.fitted(each(problem).zeros) for name, each in STARTS.items()}
    if room.fixed:
        return Allocation(starts["lamp"], ("genetic: there is nothing to decide",))
    plan = Plan(problem.population, problem.generations)
    epochs = min(_EPOCHS, max(1, problem.generations // _LEAST))
    task = Task(room, starts, plan, problem.context.rng("prune genetic"), epochs)
    found = measured(problem, partial(_searched, task))
    finalists = {name: np.asarray(zeros, np.int64) for name, zeros in found["finalists"]}
    real = verified(problem, finalists)
    found["real"], found["name"] = real, _best(real, found["name"])
    return Allocation(finalists[found["name"]], _notes(found), _counts(found))


def _best(real: Mapping[str, float], bred: str) -> str:
    """Return the name of the best; of a start only where it is clearly better."""
    if not real:
        return bred
    rated = {
        name: loss * (1.0 if name in STARTS else 1.0 / _CLEARLY_BUILT)
        for name, loss in real.items()
    }
    return min(rated, key=lambda name: rated[name])


def _searched(task: Task, bench: Bench) -> dict[str, Any]:
    """Search; called in the child process."""
    breeding = Breeding(task, bench)
    best = breeding.run()
    last = dict.fromkeys([best, *breeding.finalists()])
    return {
        "finalists": [[each.name, each.zeros] for each in last],
        "name": best.name,
        "held": best.held,
        "starts": {each.name: each.held for each in breeding.tried if each.name in task.starts},
        "history": [[each.name, each.loss, each.held] for each in breeding.tried],
        "runs": breeding.runs,
        "fitted": len(breeding.tried),
        "rejected": breeding.rejected,
        "generations": breeding.generations,
        "population": task.plan.population,
        "note": bench.note,
    }


def _notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    compared = ", ".join(f"{name} {held:.4g}" for name, held in found["starts"].items())
    said = (
        f"genetic: took {found['name']}; {found['population']} allocations over "
        f"{found['generations']} generations, {found['runs']} measured, {found['rejected']} given "
        f"up early, {found['fitted']} fitted; on samples that the search did not see the damage is "
        f"{found['held']:.4g}, of what it started from: {compared}"
    )
    if found["real"]:
        built = ", ".join(f"{name} {loss:.4g}" for name, loss in found["real"].items())
        said += f"; built and judged like the result: {built}"
    return tuple(each for each in (said, found["note"]) if each)


def _counts(found: Mapping[str, Any]) -> dict[str, float]:
    return {
        "evaluations": float(found["runs"] + found["fitted"]),
        "generations": float(found["generations"]),
        "damage": float(found["real"].get(found["name"], found["held"])),
    }


def _number(loss: float) -> float:
    """Return the loss; what is no number counts as broken."""
    return math.inf if math.isnan(loss) else loss
