"""Candidates side by side: write a student for each, fit them in the child process, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.errors import MissingDataError
from passes.affine.grid import Array, Grid
from passes.affine.insert import Writer
from passes.affine.numbers import Numbers, QuantizedWeight, WeightKey, bias_key
from passes.affine.placement import Placement
from passes.affine.transfer import transferred
from passes.tuning.fit import Recipe
from passes.tuning.layer import correctable
from passes.tuning.lockstep import Student, Task, group_layers, run

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to choose all numbers.

    Attributes:
        ranges: Name of the method that made the grids.
        grids: The grid of every value.
        recipe: How layers are fitted.
        recipes: Layers with a recipe of their own, by name.
    """

    ranges: str
    grids: Mapping[str, Grid]
    recipe: Recipe
    recipes: Mapping[str, Recipe] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trial:
    """What became of a candidate.

    Attributes:
        candidate: The candidate.
        numbers: What it would write.
        loss: Damage on the samples it was not fitted on; see :mod:`converter.measure.damage`.
        measure: What the loss is.
    """

    candidate: Candidate
    numbers: Numbers
    loss: float
    measure: str


class Tuner:
    """Fits candidates for one model and one placement.

    Args:
        model: The float model; left as it is.
        plan: Its placement.
        magnitudes: Largest magnitudes of the weights.
        context: With the calibration data.
        per_channel: One scale per output channel of a weight.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: Placement,
        magnitudes: Mapping[WeightKey, Array],
        context: Context,
        *,
        per_channel: bool,
    ) -> None:
        self.model = model
        self.plan = plan
        self.groups = group_layers(plan.units, per_channel=per_channel)
        self.context = context
        self._magnitudes = dict(magnitudes)
        self._per_channel = per_channel
        if context.dataset is None:
            raise MissingDataError("calibration data is needed and none was given")
        self._batches: list[Batch] = list(context.dataset)

    @property
    def samples(self) -> int:
        """Number of calibration samples."""
        return sum(batch.samples for batch in self._batches)

    def plain(self, grids: Mapping[str, Grid]) -> Numbers:
        """Return numbers that need no fit: weights to nearest, biases as they are."""
        return Numbers(dict(grids), self._magnitudes)

    def try_all(self, candidates: Sequence[Candidate], *, held_out: bool) -> list[Trial]:
        """Fit every candidate, on every other sample if the rest is to show the damage."""
        import onnxruntime  # noqa: F401 - loaded once here, not again in every child process

        from converter.execution import sandbox

        fit_on = tuple(not held_out or i % 2 == 0 for i in range(self.samples))
        students = tuple(self._student(candidate) for candidate in candidates)
        task = Task(self.model, self.groups, students, fit_on)
        self.context.progress.start("choosing numbers", len(self.groups))
        try:
            found = sandbox.call(
                run,
                task,
                self._batches,
                settings=self.context.settings,
                limits=self.context.settings.limits,
                on_progress=self.context.progress.advance,
                task="quantizing layer by layer",
            )
        finally:
            self.context.progress.stop()
        return [self._trial(c, f) for c, f in zip(candidates, found, strict=True)]

    def _trial(self, candidate: Candidate, found: Mapping[str, Any]) -> Trial:
        numbers = Numbers(dict(candidate.grids), self._magnitudes)
        for name, axis, integers, scales in found["weights"]:
            key = (name, None if axis < 0 else axis)
            numbers.weights[key] = QuantizedWeight(integers, scales)
        plain = {bias_key(unit) for unit in self.plan.units if unit.bias is None}
        for name, bias in found["biases"]:
            if name not in plain or bias.any():
                numbers.biases[name] = bias
        return Trial(candidate, numbers, found["loss"], found["measure"])

    def _student(self, candidate: Candidate) -> Student:
        """Write a clone whose layers all have a bias to correct."""
        clone = self.model.clone()
        plan = transferred(self.plan, self.model, clone)
        biases = {
            bias_key(unit): np.zeros(unit.channels, np.float32)
            for unit in plan.units
            if unit.row.weight is not None and unit.bias is None and correctable(unit)
        }
        nodes, uses = {}, {}
        for unit in plan.units:
            if unit.row.weight is None:
                continue
            nodes[bias_key(unit)] = unit.node
            if correctable(unit):
                default = (unit.node, unit.row.bias or 0)
                uses[bias_key(unit)] = unit.bias_use or default
        numbers = Numbers(dict(candidate.grids), self._magnitudes, biases=biases)
        Writer(clone, numbers, per_channel=self._per_channel).write(plan.units)
        return Student(clone, nodes, uses, candidate.recipe, candidate.recipes)
