"""Numbers of zeros by evolution: what is bred is judged by what the model's outputs lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.sparsity import simple
from passes.sparsity.bench import measured
from passes.sparsity.evolution import Evolution, Individual, Plan
from passes.sparsity.problem import Allocation
from passes.sparsity.room import Room
from passes.sparsity.trail import Climb, rungs

if TYPE_CHECKING:
    from passes.sparsity.bench import Bench
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
_FINALISTS = 4
"""Survivors that are held against the starts on samples that did not breed them."""
_CLIMB = 0.5
"""Share of the runs of the evolution that finding a good start may take."""
_STARTS = (("local", simple.local), ("lamp", simple.lamp), ("erk", simple.erk))


@dataclass(frozen=True, eq=False)
class _Task:
    room: Room
    starts: tuple[tuple[str, Array], ...]
    plan: Plan
    rng: np.random.Generator


def genetic(problem: Problem) -> Allocation:
    """Return the best allocation that an evolutionary search finds for the wanted total.

    Starts from uniform, LAMP and ERK allocations and from a way up that takes the cheapest steps.
    The damage at the outputs, with layers compensated, decides; among the last few and the starts
    it decides on samples that the search did not see, so the result is never worse than uniform
    there.

    Args:
        problem: With samples, its own or made up, population and generations.
    """
    room = Room.of(problem)
    lamp = simple.lamp(problem)
    if room.fixed:
        return Allocation(lamp.zeros, (*lamp.notes, "evolution: there is nothing to decide"))
    starts = tuple((name, strategy(problem).zeros) for name, strategy in _STARTS)
    plan = Plan(max(2, problem.population), problem.generations)
    task = _Task(room, starts, plan, problem.context.rng("prune genetic"))
    found = measured(problem, partial(_searched, task))
    zeros = np.asarray(found["zeros"], np.int64)
    return Allocation(zeros, _notes(found), _counts(found))


def _searched(task: _Task, bench: Bench) -> dict[str, Any]:
    """Search; called in the child process."""
    plan = task.plan
    bench.settle(task.room.fitted(task.starts[1][1]))
    evolution = Evolution(
        task.room,
        lambda zeros: bench.loss(zeros, "trial"),
        task.rng,
        quick=lambda zeros: bench.loss(zeros, "few"),
        expired=bench.expired,
    )
    runs = round(_CLIMB * plan.population * (plan.generations + 1))
    climb = Climb(
        task.room,
        lambda zeros: bench.loss(zeros, "trial"),
        steps=rungs(len(task.room.sizes), runs),
        expired=bench.expired,
    )
    way = ("steps", climb.run().zeros[-1])
    survivors = evolution.run([zeros for _, zeros in (*task.starts, way)], plan)
    starts = [(name, task.room.fitted(zeros)) for name, zeros in (*task.starts, way)]
    best, judged = _chosen(survivors, starts, bench)
    return {
        "zeros": best,
        "judged": judged,
        "loss": survivors[0].loss,
        "evaluations": evolution.evaluations + climb.runs,
        "rejected": evolution.rejected,
        "generation": evolution.generation,
        "population": plan.population,
    }


def _chosen(
    survivors: list[Individual], starts: list[tuple[str, Array]], bench: Bench
) -> tuple[Array, dict[str, float]]:
    """Return what is best on samples that were held out, and the damage there by name."""
    names = ["evolution", *(f"evolution {i}" for i in range(2, _FINALISTS + 1))]
    finalists = [(n, each.zeros) for n, each in zip(names, survivors, strict=False)] + starts
    judged = {name: bench.loss(zeros, "held") for name, zeros in finalists}
    # of equals the one that was better in the search
    best = min(range(len(finalists)), key=lambda i: (judged[finalists[i][0]], i))
    return finalists[best][1], {"chosen": judged[finalists[best][0]], **judged}


def _notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    judged = found["judged"]
    said = (
        f"evolution: {found['population']} allocations over {found['generation']} generations, "
        f"{found['evaluations']} measured and {found['rejected']} given up early; on samples "
        f"that it did not see the damage is {judged['chosen']:.4g}, with uniform sparsity "
        f"{judged['local']:.4g}, with LAMP {judged['lamp']:.4g}"
    )
    return (said,)


def _counts(found: Mapping[str, Any]) -> dict[str, float]:
    return {
        "evaluations": float(found["evaluations"]),
        "generations": float(found["generation"]),
        "damage": float(found["judged"]["chosen"]),
        "damage_uniform": float(found["judged"]["local"]),
    }
