"""Which ranges, rounding and bias correction: decided on samples that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.affine.grid import Grid
from passes.affine.numbers import Numbers
from passes.rounding.gptq import MOST_COLUMNS
from passes.tuning.fit import Correction, Recipe, Rounding
from passes.tuning.tuner import Candidate, Trial, Tuner

if TYPE_CHECKING:
    from collections.abc import Callable

    from converter.core.context import Dataset

FEWEST_SAMPLES = 8
"""Fewer samples say too little about the ones that were left out.

With 8 images MobileNetV1-0.25 is at KL 0.115, with plain numbers at 0.276; ResNet-20 at 0.0047 and
0.0053; super-resolution with 13 images loses 0.03 dB instead of 0.77.
"""
FEW_SAMPLES = 16
"""Fewer samples miss much of the ranges; the report says so."""

_PLAIN = Recipe("nearest", "none")
_RIDGES = {8: 8.0, 4: 0.3}
_LARGE = 6e7
"""Work (see :func:`passes.tuning.lockstep.work_of`) beyond which only ranges are compared."""
_HANDICAP = 1.15
"""Trials fit half of the samples; the final fit has all, which helps rounding by inputs most."""
_MOST_WIDE = 0.125
"""Share of the weights that may keep 8 bits where 4 are asked for."""

_ROUNDINGS: Mapping[Rounding, str] = {
    "nearest": "rounding to nearest",
    "gptq": "rounding with error feedback (gptq)",
}
_CORRECTIONS: Mapping[Correction, tuple[str, str]] = {
    "none": ("biases as they are", ""),
    "float": ("biases corrected for rounding", " + bias"),
    "student": (
        "biases corrected for rounding and for what layers before shift (shift)",
        " + bias + shift",
    ),
}
"""In full for what was chosen, in short for the others."""


@dataclass(frozen=True)
class Options:
    """What may be chosen among; the first of each is the plainest.

    Attributes:
        ranges: Methods for ranges.
        roundings: Ways to round weights.
        corrections: Bias corrections.
        bits: Of weights.
        refine: Move grids afterwards where the outputs gain by it.
    """

    ranges: tuple[str, ...]
    roundings: tuple[Rounding, ...]
    corrections: tuple[Correction, ...]
    bits: int = 8
    refine: bool = False

    @property
    def plain(self) -> bool:
        """True when nothing needs a run layer by layer."""
        return (
            not self.refine
            and self.bits == 8
            and self.roundings == ("nearest",)
            and self.corrections == ("none",)
        )

    @property
    def open(self) -> bool:
        """True when there is something to choose."""
        return max(len(self.ranges), len(self.roundings), len(self.corrections)) > 1


def unfit(dataset: Dataset | None, model: ir.Model) -> str:
    """Say why the samples, or the model, do not allow choices; "" when they do."""
    if dataset is None:
        return "there is no calibration data"
    if dataset.synthetic:
        return "the samples are made up"
    if dataset.samples < FEWEST_SAMPLES:
        shown = "1 sample" if dataset.samples == 1 else f"{dataset.samples} samples"
        return f"{shown} of the {FEWEST_SAMPLES} that are needed to decide"
    if constant(dataset):
        return "all calibration samples are equal"
    values = (v for node in model.graph for v in node.outputs)
    if any(v.type is not None and not isinstance(v.type, ir.TensorType) for v in values):
        return "the model hands on sequences or optional values"
    return ""


def decide(
    tuner: Tuner, grids: Callable[[str], Mapping[str, Grid]], options: Options
) -> tuple[Numbers, tuple[str, ...]]:
    """Choose all numbers.

    Args:
        tuner: Of the model.
        grids: Gives the grids of a method for ranges.
        options: What may be chosen.

    Returns:
        The numbers, fitted on all samples, and notes on what was chosen and why.
    """
    made = {name: grids(name) for name in options.ranges}
    notes: tuple[str, ...] = ()
    if not options.open:
        chosen = _candidates(made, options)[0]
    else:
        trials = _explore(tuner, made, options)
        chosen, notes = _best(trials).candidate, _notes(trials, tuner.samples * tuner.folds // 2)
    if options.bits < 8:
        chosen, narrow = _mixed(tuner, chosen)
        notes += (narrow,)
    notes += _long_rows(tuner, chosen)
    plain = chosen.recipe == _PLAIN
    numbers = tuner.plain(chosen.grids) if plain else tuner.fit(chosen)
    if options.refine:
        numbers, said = tuner.refine(numbers)
        notes += (said,)
    return numbers, notes


def _long_rows(tuner: Tuner, candidate: Candidate) -> tuple[str, ...]:
    """Say which layers are too large for error feedback."""
    layers = [layer for group in tuner.groups for layer in group if not layer.pairs]
    if candidate.recipe.rounding == "nearest" or not layers:
        return ()
    return (
        f"rounded to nearest, because more than {MOST_COLUMNS} inputs are too many for error "
        f"feedback: {', '.join(g.label(layer.unit.node) for layer in layers)}",
    )


def _candidates(made: Mapping[str, Mapping[str, Grid]], options: Options) -> list[Candidate]:
    """Return every combination, the plainest first."""
    recipes = [
        Recipe(rounding, correction, 1.0 if rounding == "nearest" else ridge, options.bits)
        for ridge in [_RIDGES[options.bits]]
        for rounding in options.roundings
        for correction in options.corrections
        if not (rounding == "gptq" and correction == "none" and len(options.corrections) > 1)
    ]
    return [Candidate(name, grids, recipe) for recipe in recipes for name, grids in made.items()]


def _explore(tuner: Tuner, made: Mapping[str, Mapping[str, Grid]], options: Options) -> list[Trial]:
    """Compare range methods with one rounding, then what else there is with the best ranges."""
    every = _candidates(made, options)
    rounding, correction = options.roundings[-1], options.corrections[-1]
    first = [c for c in every if (c.recipe.rounding, c.recipe.correction) == (rounding, correction)]
    found = tuner.try_all(first)
    if tuner.work > _LARGE:
        return found
    best = _best(found).candidate.ranges
    rest = [c for c in every if c.ranges == best and c not in first]
    return found + (tuner.try_all(rest) if rest else [])


def _mixed(tuner: Tuner, candidate: Candidate) -> tuple[Candidate, str]:
    """Give the layers 8 bits that suffer most per weight, as long as they hold few weights."""
    sizes = {layer.name: layer.weight.size for group in tuner.groups for layer in group}
    if not sum(sizes.values()):
        return candidate, "no layer has weights of its own that 4 bits could hold"
    recipe = replace(candidate.recipe, rounding="gptq")
    noise = tuner.try_all([replace(candidate, recipe=recipe)])[0].noise
    left = _MOST_WIDE * sum(sizes.values())
    wide: list[str] = []
    for name in sorted(noise, key=lambda n: (-noise[n] / sizes[n], n)):
        if sizes[name] <= left:
            left -= sizes[name]
            wide.append(name)
    recipes = {name: replace(candidate.recipe, bits=8) for name in wide}
    share = 1.0 - left / (_MOST_WIDE * sum(sizes.values()))
    note = (
        f"{len(sizes) - len(wide)} layers have weights of 4 bits, and {len(wide)} of 8 bits, which "
        f"suffer most and hold {100 * _MOST_WIDE * share:.1f} % of all weights"
    )
    return replace(candidate, recipes=recipes), note


def _best(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=_rank)


def _rank(trial: Trial) -> float:
    """Return the loss that counts: what gains nothing by more samples has to be clearly better."""
    return trial.loss * (1.0 if trial.candidate.recipe.rounding == "gptq" else _HANDICAP)


def _notes(trials: Sequence[Trial], samples: int) -> tuple[str, ...]:
    best = _best(trials)
    others = sorted((t for t in trials if t is not best), key=lambda t: t.loss)
    said = ", ".join(f"{_short(t.candidate)} {t.loss:.3g}" for t in others)
    return (
        f"chosen by {best.measure} from float on {samples} samples left out of the fit: "
        f"{_words(best.candidate)}, {best.loss:.3g}",
        f"the others: {said}",
    )


def _words(candidate: Candidate) -> str:
    recipe = candidate.recipe
    rounding, correction = _ROUNDINGS[recipe.rounding], _CORRECTIONS[recipe.correction][0]
    return f"{candidate.ranges} ranges, {rounding}, {correction}"


def _short(candidate: Candidate) -> str:
    recipe = candidate.recipe
    return f"{candidate.ranges} + {recipe.rounding}{_CORRECTIONS[recipe.correction][1]}"


def constant(dataset: Dataset) -> bool:
    """Tell whether all samples are the same; the first that differs ends the search."""
    first: bytes | None = None
    for batch in dataset:
        arrays = [np.asarray(array) for _, array in sorted(batch.inputs.items())]
        rows = 1
        if all(array.ndim and len(array) == batch.samples for array in arrays):
            rows = batch.samples
        for row in range(rows):
            parts = [array[row] if rows > 1 else array for array in arrays]
            content = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
            if first is None:
                first = content
            elif content != first:
                return False
    return True
