"""Zeros that hardly change the outputs: below a bound, with a guard band, and measured.

What a layer loses with its least important weights follows from its inputs (with wanda scores
exactly, as far as the inputs do not correlate); what that means at the outputs is measured layer by
layer. The best balance of both gives a way, and how far it may go is measured on the pruned model:
half of what the bound allows stays unused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.guard.deepest import deepest
from passes.guard.figures import measurable
from passes.guard.judge import Ruling
from passes.sparsity import criteria
from passes.sparsity.bench import measured
from passes.sparsity.judged import Judges, judges_of
from passes.sparsity.problem import Allocation
from passes.sparsity.room import Room
from passes.sparsity.trail import Trail

if TYPE_CHECKING:
    from passes.sparsity.bench import Bench
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
_BAND = 0.5
"""Share of the bound that may be used; the rest is the guard band."""
_CHANGES = np.geomspace(1e-7, 0.5, 64)
"""Relative changes of a layer's output for which its zeros are counted."""
_ROUNDING = 2.0**-24
_TRIED = 0.1
"""Relative change of one layer whose effect at the outputs is measured."""
_STEPS = 6
_POINTS = 96
_LEAST = 1e-12
_SPAN = 1e8


@dataclass(frozen=True)
class _Strict:
    """The bound where the user gave none about results."""

    metric: str = "sqnr"
    relation: str = ">="
    value: float = 40.0
    ratio: bool = False
    text: str = "sqnr>=40dB"


@dataclass(frozen=True, eq=False)
class Curves:
    """How many weights of every layer may go for how much change of its output.

    Attributes:
        zeros: By layer and change: int64 (layers, changes), rising.
        free: By layer, weights that are no zeros and add nothing: their inputs are zero in all
            samples, or all together they are below rounding.
    """

    zeros: Array
    free: Array


def safe(problem: Problem) -> Allocation:
    """Return the zeros that keep a strict bound with a guard band, without recovery.

    Args:
        problem: With samples, of which some are held out. Without a budget about results the bound
            is a signal-to-noise ratio of 40 dB: outputs move by one percent.

    Raises:
        MissingDataError: There are no samples, or too few.
        ParameterError: No term of the budget can be measured.
    """
    context = problem.context
    given = any(measurable(bound) for bound in context.budget)
    if not given:
        context = replace(context, budget=(_Strict(),))
    judges = judges_of(problem, "safe", context)
    room = Room.of(problem)
    if not judges.before.holds:
        said = f"safe: nothing becomes zero, {judges.terms} is missed before: {judges.before.text}"
        return Allocation(room.low, (said,))
    curves = _curves(problem, room)
    found = measured(problem, partial(_effects, curves))
    way = _way(room, curves, np.asarray(found["effects"], np.float64))
    reached, words = _reached(problem, judges, way)
    usual = "" if given else " (no budget about results was given)"
    share = float(reached.sum()) / max(1.0, float(room.sizes.sum()))
    notes = [f"safe: {100 * share:.1f} % zeros, {judges.terms}{usual}: {words}"]
    if curves.free.any():
        notes.append(
            f"safe: {int(curves.free.sum()):,} weights add nothing: their inputs are zero in all "
            "samples, or they lie below the rounding of their layer"
        )
    return Allocation(reached, tuple(notes), {"weights_without_effect": float(curves.free.sum())})


def _reached(problem: Problem, judges: Judges, way: Trail) -> tuple[Array, str]:
    """Go along the way as far as the guard band allows; return the allocation, and say so."""
    totals = way.totals
    low, most = int(totals[0]), int(totals[-1])
    if most <= low:
        return way.zeros[0], "there is nothing that could become zero"

    def attempt(depth: float) -> tuple[Ruling, Array]:
        zeros = way.between(low, most, depth)
        ruling = judges.guard.judge(problem.build(zeros, judges.fit))
        used = replace(ruling, holds=ruling.excess <= _BAND, excess=ruling.excess / _BAND)
        return used, zeros

    search = deepest(attempt, 1.0, steps=_STEPS)
    if search.best is None:
        return way.zeros[0], f"even the smallest cut is too much: {search.tried[-1][1].text}"
    said = f"{search.best.ruling.text} on {judges.guard.samples} samples held out, "
    said += f"{100 * search.best.ruling.excess * _BAND:.0f} % of what is allowed are used"
    return search.best.result, said


def _curves(problem: Problem, room: Room) -> Curves:
    """Count, layer by layer, what goes for how much change."""
    energies = problem.scores
    if problem.criterion != "wanda":
        energies = criteria.scores("wanda", problem.layers, problem.model, problem.context)
    zeros = np.zeros((len(problem.layers), len(_CHANGES)), np.int64)
    free = np.zeros(len(problem.layers), np.int64)
    for i in range(len(problem.layers)):
        energy = np.asarray(energies(i), np.float64)
        if not np.isfinite(energy.sum()):
            continue  # a weight that is infinite or no number: nothing is small beside it
        scores = energy if problem.criterion == "wanda" else np.asarray(problem.scores(i))
        present = problem.layers[i].tensor.numpy().reshape(-1) == 0
        order = np.lexsort((scores, ~present))
        lost = np.sqrt(np.cumsum(energy[order]) / max(float(energy.sum()), np.finfo(float).tiny))
        zeros[i] = np.searchsorted(lost, _CHANGES, side="right")
        free[i] = max(0, int(np.searchsorted(lost, _ROUNDING, side="right")) - int(room.low[i]))
    return Curves(np.clip(zeros, room.low[:, None], room.high[:, None]), free)


def _effects(curves: Curves, bench: Bench) -> dict[str, Any]:
    """Measure what a change of one layer does at the outputs; called in the child process."""
    low = curves.zeros[:, 0]
    at = int(np.searchsorted(_CHANGES, _TRIED))
    counts = zip(curves.zeros[:, at], low, strict=True)
    tried = [[int(count)] if count > least else [] for count, least in counts]
    found = bench.around(low, tried)
    losses = [each[0] if each else np.nan for each in found]
    return {"effects": np.asarray(losses, np.float64)}


def _way(room: Room, curves: Curves, effects: Array) -> Trail:
    """Balance zeros and damage, from few to many.

    The damage of a layer grows with the square of its change, and that of several layers adds up.
    """
    known = effects[np.isfinite(effects)]
    usual = float(np.median(known)) if known.size else 1.0
    effects = np.maximum(np.where(np.isfinite(effects), effects, usual), _LEAST)
    damage = effects[:, None] * np.square(_CHANGES / _TRIED)[None, :]
    points, losses = [room.low], [0.0]
    middle = float(np.median(effects)) / max(1.0, float(room.sizes.mean()))
    for price in middle * np.geomspace(1.0 / _SPAN, _SPAN, _POINTS):
        worth = price * curves.zeros - damage
        best = worth.argmax(axis=1)
        zeros = np.take_along_axis(curves.zeros, best[:, None], axis=1)[:, 0]
        if zeros.sum() > points[-1].sum():
            points.append(zeros)
            losses.append(float(np.take_along_axis(damage, best[:, None], axis=1).sum()))
    return _cut_off(Trail(room, np.stack(points), np.asarray(losses), np.zeros(len(room.sizes))))


def _cut_off(way: Trail) -> Trail:
    """End the way where as many zeros are made as are wanted."""
    if int(way.totals[-1]) <= way.room.wanted:
        return way
    inside = way.totals < way.room.wanted
    points = np.concatenate([way.zeros[inside], way.at(way.room.wanted)[None]])
    last = np.interp(way.room.wanted, way.totals, way.losses)
    return replace(way, zeros=points, losses=np.append(way.losses[inside], last))
