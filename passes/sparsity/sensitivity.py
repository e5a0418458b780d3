"""Zeros where they do the least damage at the outputs, found without labels.

For every layer two things are measured: how its own error grows with its zeros, fitted as the
recovery will fit it, and how much damage at the outputs (:mod:`converter.measure.damage`) an error
there does, in the original and in a moderately pruned model. The first is a smooth curve from
thousands of rows; the second is one number, so that few samples suffice for it. The optimum of the
sum under the total (as in SPDY, Frantar and Alistarh 2022, arXiv 2201.13096, here exactly, by
convex hulls) is then compared with LAMP, each with all layers fitted for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.sparsity import simple
from passes.sparsity.bench import measured
from passes.sparsity.exchange import Curve, cheapest, fine
from passes.sparsity.problem import Allocation
from passes.sparsity.room import Room

if TYPE_CHECKING:
    from passes.sparsity.bench import Bench
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
_MILD = 0.7
"""Share, of the wanted one, of zeros in the moderately pruned model: damages still add up there."""
_SOFT = 0.02
"""Error below which all points count alike when damage per error is fitted."""
_SATURATED = 1.0
"""Damage from which on it no longer grows with the error."""
_MOST_BYTES = 1_500_000_000
"""Weights beyond which nothing is tried: models are handed to the runtime in one message."""
_LEAST = 0.02
"""Damage per error of a layer at least, relative to the median of all."""


def sensitivity(problem: Problem) -> Allocation:
    """Share zeros out by the damage that they do at the outputs.

    On the samples that are compared, with all layers fitted, the result is never worse than LAMP.

    Args:
        problem: With samples, its own or made up.
    """
    room = Room.of(problem)
    lamp = room.fitted(simple.lamp(problem).zeros)
    if room.fixed:
        return Allocation(lamp, ("sensitivity: there is nothing to decide",))
    if sum(layer.tensor.nbytes for layer in problem.layers) > _MOST_BYTES:
        note = "sensitivity: LAMP decides, the model is too large to be tried out again and again"
        return Allocation(lamp, (note,))
    mild = replace(problem, share=_MILD * problem.share)
    given = {"lamp": lamp, "mild": simple.lamp(mild).zeros}
    found = measured(problem, partial(_searched, given=given))
    zeros = np.asarray(found["zeros"], np.int64)
    return Allocation(zeros, _notes(problem, found, zeros), _counts(found))


def _searched(bench: Bench, *, given: Mapping[str, Array]) -> dict[str, Any]:
    """Search; called in the child process."""
    bench.settle()
    slopes = [_slopes(bench, zeros) for zeros in (bench.room.low, given["mild"])]
    candidates = {"lamp": given["lamp"]}
    both = np.sqrt(slopes[0] * slopes[1])
    for name, slope in (("original", slopes[0]), ("both", both)):
        zeros = _optimum(bench, slope)
        candidates[name] = zeros
        candidates[f"{name}, lamp"] = _between(bench.room, zeros, given["lamp"])
    judged: dict[str, float] = {}
    for name, zeros in candidates.items():
        if name == "lamp" or not bench.expired():
            judged[name] = bench.own(zeros, ("wide",))[0]
    # of equals the first: LAMP
    best = min(judged, key=lambda name: judged[name])
    return {
        "zeros": candidates[best],
        "name": best,
        "judged": judged,
        "candidates": candidates,
        "slopes": both,
        "runs": bench.runs,
        "note": bench.note,
    }


def _slopes(bench: Bench, zeros: Array) -> Array:
    """Return the damage at the outputs per error of each layer, with others at given zeros.

    Layers that time did not suffice for get the median.
    """
    tried = [bench.points(i).tolist() for i in range(len(zeros))]
    losses = bench.around(zeros, tried)
    found = np.full(len(zeros), np.nan)
    for i, each in enumerate(losses):
        if len(each) == len(tried[i]):
            found[i] = _slope(bench.errors(i), np.asarray(each))
    middle = np.nanmedian(found) if np.isfinite(found).any() else 1.0
    middle = middle if middle > 0 else 1.0
    found = np.where(np.isfinite(found), found, middle)
    slopes: Array = np.maximum(found, _LEAST * middle)
    return slopes


def _slope(errors: Array, losses: Array) -> float:
    """Fit losses by a multiple of the errors, relative errors counting; NaN where none can be."""
    with np.errstate(invalid="ignore"):  # of outputs that are not finite
        rise = losses - losses[0]
    usable = np.isfinite(rise) & (errors > 0.0) & (rise < _SATURATED)
    if not usable.any():
        return float("nan")
    weight = 1.0 / (errors[usable] + _SOFT)
    x, y = errors[usable] * weight, rise[usable] * weight
    return float(np.sum(x * y) / np.sum(x * x))


def _optimum(bench: Bench, slopes: Array) -> Array:
    """Return the allocation with the least sum of errors times slopes: int64 (layers,)."""
    room, curves = bench.room, []
    for i, slope in enumerate(slopes):
        curve = fine(int(room.sizes[i]), bench.points(i), bench.errors(i))
        scaled = Curve(curve.zeros, curve.losses * slope)
        curves.append(scaled.within(int(room.low[i]), int(room.high[i])))
    return room.fitted(cheapest(curves, room.wanted))


def _between(room: Room, first: Array, second: Array) -> Array:
    """Return the allocation with the geometric means of two allocations' densities."""
    kept = np.sqrt((room.sizes - first).astype(np.float64) * (room.sizes - second))
    return room.fitted(room.sizes - kept)


def _notes(problem: Problem, found: Mapping[str, Any], zeros: Array) -> tuple[str, ...]:
    shares = zeros / np.maximum(1, problem.sizes)
    least, most = int(np.argmin(shares)), int(np.argmax(shares))
    judged = found["judged"]
    said = (
        f"sensitivity: {found['runs']} runs; with layers fitted the damage is "
        f"{judged[found['name']]:.4g}, with LAMP {judged['lamp']:.4g}; fewest zeros in "
        f"{problem.layers[least].name} ({shares[least]:.0%}), most in "
        f"{problem.layers[most].name} ({shares[most]:.0%})"
    )
    return said, found["note"]


def _counts(found: Mapping[str, Any]) -> dict[str, float]:
    return {
        "evaluations": float(found["runs"]),
        "damage": float(found["judged"][found["name"]]),
        "damage_lamp": float(found["judged"]["lamp"]),
    }
