"""Corrections from means and variances: what is certain enough, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter.core import graph as g
from converter.measure.damage import DamageMeter
from passes.bias.measure import Means, Samples, measure
from passes.bias.stations import Station
from passes.equalization.layers import scale_weight

if TYPE_CHECKING:
    import onnx_ir as ir

Array = g.Array
Find = Callable[["ir.Model"], list[Station]]
_LARGEST_RATIO = 16.0  # between two variances: beyond it a channel is dead or new
_NOISE = 1e-6  # of a value's root mean square: below are rounding errors of the sums


@dataclass(frozen=True)
class Plan:
    """How far a correction goes.

    Attributes:
        label: For people.
        inputs: Correct what each layer itself adds to the error, at its present input.
        groups: Afterwards correct what is left, in so many groups of layers in order; 0: do not.
    """

    label: str
    inputs: bool = False
    groups: int = 0


@dataclass(frozen=True, eq=False)
class Move:
    """One correction, to be done on any clone of the model it was found on.

    Attributes:
        station: Name of the station.
        amount: Added to the mean of each channel.
        factors: Every channel is multiplied by these first; None: none is.
    """

    station: str
    amount: Array
    factors: Array | None = None


def shrunk(difference: Array) -> Array:
    """Return the mean over rows, shrunk by its uncertainty (positive-part James-Stein).

    Args:
        difference: float64 (runs, channels).

    Returns:
        float64 (channels,): ``d * max(0, 1 - e^2 / d^2)`` with the standard error ``e`` of ``d``.
    """
    mean = np.asarray(difference.mean(axis=0))
    if len(difference) < 2:
        return mean
    error = difference.var(axis=0, ddof=1) / len(difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        keep = np.maximum(0.0, 1.0 - error / mean**2)
    return np.where(mean == 0.0, 0.0, mean * keep)


def correct(
    model: ir.Model, find: Find, original: Means, samples: Samples, plan: Plan
) -> list[Move]:
    """Correct a model in place.

    Args:
        model: Edited.
        find: Finds the stations of a model.
        original: Means of the original over the same runs.
        samples: The runs to learn from.
        plan: What to do.

    Returns:
        What was done, in order.
    """
    done: list[Move] = []
    everything = find(model)  # edits keep nodes and values, so they stay valid
    if plan.inputs:
        means = measure(model, everything, samples, twins=True, outputs=False)
        for station in everything:
            if station.name in means.twins:
                difference = means.twins[station.name] - means.values[station.name]
                difference = difference + station.added()
                done += _apply(model, station, _mean_move(station, difference, means))
    for group in _split(everything, plan.groups):
        means = measure(model, group, samples, outputs=False)
        for station in group:
            difference = original.values[station.name] - means.values[station.name]
            difference = difference + station.added()
            move = _mean_move(station, difference, means, _factors(station, original, means))
            done += _apply(model, station, move)
    return done


def replay(model: ir.Model, find: Find, moves: Sequence[Move]) -> int:
    """Do on a model what was done on a clone of it; return how many values were corrected."""
    changed: set[str] = set()
    by_name = {station.name: station for station in find(model)}
    for move in moves:
        if _apply(model, by_name[move.station], move):
            changed.add(move.station)
    return len(changed)


@dataclass(frozen=True)
class Distance:
    """How far the outputs of two models are apart.

    Attributes:
        figure: Zero for equal outputs, infinite for broken ones.
        measure: What it is.
    """

    figure: float
    measure: str

    def __str__(self) -> str:
        """Write it as people do: errors in decibels below the signal."""
        if self.measure == "KL":
            return f"{self.figure:.4g}"
        within = 0.0 < self.figure < np.inf
        return f"{-10 * np.log10(self.figure):.1f} dB" if within else "not finite"


def distance(original: Means, now: Means) -> Distance:
    """Compare outputs: class scores by their divergence, others by their squared error."""
    meter = DamageMeter()
    for before, after in zip(original.outputs, now.outputs, strict=True):
        meter.update(before, after)
    damage = meter.result()
    if damage.measure == "KL":
        return Distance(damage.loss if np.isfinite(damage.loss) else np.inf, "KL")
    return Distance(_squared_error(original, now), "signal to error")


def _squared_error(original: Means, now: Means) -> float:
    """Return the squared error of all outputs, each relative to its squares, summed."""
    total = 0.0
    for name in original.outputs[0]:
        signal = noise = 0.0
        for before, after in zip(original.outputs, now.outputs, strict=True):
            expected, actual = before[name].astype(np.float64), after.get(name)
            if actual is None or actual.shape != expected.shape:
                return np.inf
            signal += float(np.square(expected).sum())
            noise += float(np.square(expected - actual).sum())
        total += noise / signal if signal else 0.0
    return total if np.isfinite(total) else np.inf


def _split(found: Sequence[Station], groups: int) -> list[list[Station]]:
    if not groups or not found:
        return []
    parts = np.array_split(np.arange(len(found)), min(groups, len(found)))
    return [[found[i] for i in part] for part in parts]


def _mean_move(
    station: Station, difference: Array, now: Means, factors: Array | None = None
) -> Move:
    amount = shrunk(difference)
    size = float(np.sqrt(np.mean(np.square(now.values[station.name]))))
    amount[~np.isfinite(amount) | (np.abs(amount) <= _NOISE * size)] = 0.0
    if factors is not None and station.rows is not None:
        # Only what the weight makes is scaled, not the bias: the mean is to stay where it is.
        made = now.values[station.name].mean(axis=0)
        if station.base is None:
            made = made - station.place.current()
        amount = amount + made - factors * made
    return Move(station.name, amount, factors)


def _apply(model: ir.Model, station: Station, move: Move) -> list[Move]:
    changed = False
    if move.factors is not None:
        changed = True
        if station.rows is not None:
            scale_weight(station.rows, np.ones(station.rows.inputs), 1.0 / move.factors)
        else:
            station.place.rescale_variance(model, 1.0 / move.factors**2)
    if move.amount.any():
        changed |= station.place.add(model, move.amount)
    return [move] if changed else []


def _factors(station: Station, original: Means, now: Means) -> Array | None:
    """Return what gives each channel the variance that it had; None where nothing can.

    BatchNormalization divides by the deviation that its input had in training. Where it is folded
    into the weights, scaling these does the same.
    """
    name = station.name
    if name not in original.squares or name not in now.squares:
        return None
    before, after = (
        _variance(means.values[name], means.squares[name]) for means in (original, now)
    )
    usable = (before > 0.0) & (after > 0.0)
    ratio = np.ones_like(before)
    ratio[usable] = np.clip(before[usable] / after[usable], 1 / _LARGEST_RATIO, _LARGEST_RATIO)
    ratio[np.abs(np.log(ratio)) < _NOISE] = 1.0
    return None if (ratio == 1.0).all() else np.sqrt(ratio)


def _variance(means: Array, squares: Array) -> Array:
    return np.asarray(squares.mean(axis=0) - np.square(means.mean(axis=0)))


def best(candidates: Sequence[tuple[Plan, Distance]], *, worth: float) -> Plan:
    """Return the plan with the least error; a later one must gain at least a share."""
    chosen = candidates[0]
    for plan, far in candidates[1:]:
        if far.figure < chosen[1].figure * (1.0 - worth):
            chosen = (plan, far)
    return chosen[0]
