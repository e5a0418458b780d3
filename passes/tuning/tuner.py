"""Candidates side by side: write a student for each, fit them in the child process, compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.errors import MissingDataError
from passes.affine.grid import Array, Grid
from passes.affine.insert import Writer
from passes.affine.numbers import Numbers, QuantizedWeight, WeightKey, bias_key
from passes.affine.placement import Placement
from passes.affine.transfer import transferred
from passes.tuning import refine
from passes.tuning.fit import Recipe
from passes.tuning.layer import correctable
from passes.tuning.lockstep import Student, Task, group_layers, run, work_of
from passes.tuning.refine import Bias, Knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context, Limits


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
        loss: Damage on the samples it was not fitted on; see :mod:`converter.measure.damage`.
        measure: What the loss is.
        noise: By layer, the share of its output's power that rounding its weight makes up.
    """

    candidate: Candidate
    loss: float
    measure: str
    noise: Mapping[str, float]


_MOST_WORK = 8e6
"""Work per row (see :func:`work_of`) up to which samples are left out twice."""
MOST_SAMPLES = 128
"""More cost time and memory in proportion and hardly change what is chosen; ranges see them all."""


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
        every = math.ceil(context.dataset.samples / MOST_SAMPLES)
        self._batches: list[Batch] = list(islice(iter(context.dataset), None, None, every))

    @property
    def samples(self) -> int:
        """Number of calibration samples in use, spread over the data."""
        return sum(batch.samples for batch in self._batches)

    def plain(self, grids: Mapping[str, Grid]) -> Numbers:
        """Return numbers that need no fit: weights to nearest, biases as they are."""
        return Numbers(dict(grids), self._magnitudes)

    @property
    def folds(self) -> int:
        """Return in how many ways samples are left out: both halves in turn if that is cheap."""
        return 2 if self.work < _MOST_WORK else 1

    @property
    def work(self) -> float:
        """Return the work per row of one fit."""
        return work_of(self.groups)

    def fit(self, candidate: Candidate) -> Numbers:
        """Fit a candidate on all samples."""
        found = self._run([(candidate, (True,) * self.samples)])[0]
        return self._numbers(candidate, found)

    def try_all(self, candidates: Sequence[Candidate]) -> list[Trial]:
        """Fit every candidate on half of the samples and show the damage on the other half."""
        halves = [tuple(i % 2 == k for i in range(self.samples)) for k in range(self.folds)]
        found = self._run([(c, half) for c in candidates for half in halves])
        trials = []
        for i, candidate in enumerate(candidates):
            own = found[i * self.folds : (i + 1) * self.folds]
            loss = float(np.mean([each["loss"] for each in own]))
            trials.append(Trial(candidate, loss, own[0]["measure"], dict(own[0]["noise"])))
        return trials

    def refine(self, numbers: Numbers) -> tuple[Numbers, str]:
        """Move grids where the outputs gain by it; returns better numbers and a note."""
        from converter.execution import sandbox

        clone = self.model.clone()
        plan = transferred(self.plan, self.model, clone)
        writer = Writer(clone, numbers, per_channel=self._per_channel)
        writer.write(plan.units)
        knobs = list(_knobs(clone, writer))
        self.context.progress.start("moving grids", len(knobs))
        try:
            found = sandbox.call(
                refine.run,
                (self.model, clone),
                knobs,
                self._batches,
                settings=self.context.settings,
                limits=_limits(self.context),
                on_progress=self.context.progress.advance,
                task="moving grids",
            )
        finally:
            self.context.progress.stop()
        if not found["moved"]:
            return numbers, "no grid was moved: the outputs gained nothing by it"
        moved = {
            id(knobs[i].grid): replace(knobs[i].grid, scale=scale, zero_point=zero)
            for i, scale, zero in found["moved"]
        }
        grids = {name: moved.get(id(grid), grid) for name, grid in numbers.grids.items()}
        note = (
            f"{len(moved)} of {len(knobs)} grids were moved: distance from float "
            f"{found['before']:.4g} before, {found['after']:.4g} after, on samples left out"
        )
        return replace(numbers, grids=grids), note

    def _run(self, wanted: Sequence[tuple[Candidate, tuple[bool, ...]]]) -> list[dict[str, Any]]:
        import onnxruntime  # noqa: F401 - loaded once here, not again in every child process

        from converter.execution import sandbox

        students = tuple(self._student(candidate, fit_on) for candidate, fit_on in wanted)
        task = Task(self.model, self.groups, students)
        self.context.progress.start("choosing numbers", len(self.groups))
        try:
            return sandbox.call(
                run,
                task,
                self._batches,
                settings=self.context.settings,
                limits=_limits(self.context),
                on_progress=self.context.progress.advance,
                task="quantizing layer by layer",
            )
        finally:
            self.context.progress.stop()

    def _numbers(self, candidate: Candidate, found: Mapping[str, Any]) -> Numbers:
        numbers = Numbers(dict(candidate.grids), self._magnitudes)
        for name, axis, bits, integers, scales in found["weights"]:
            key = (name, None if axis < 0 else axis)
            numbers.weights[key] = QuantizedWeight(integers, scales, bits)
        plain = {bias_key(unit) for unit in self.plan.units if unit.bias is None}
        for name, bias in found["biases"]:
            if name not in plain or bias.any():
                numbers.biases[name] = bias
        return numbers

    def _student(self, candidate: Candidate, fit_on: tuple[bool, ...]) -> Student:
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
        return Student(clone, nodes, uses, candidate.recipe, fit_on, candidate.recipes)


def _knobs(model: ir.Model, written: Writer) -> Iterator[Knob]:
    """Yield the grids of a written model in the order of the graph."""
    biases: dict[ir.Value | None, list[Bias]] = {}
    for unit, bias, scales in written.biases:
        node, position = unit.bias_use or (unit.node, unit.row.bias or 0)
        follower, reader = _maker(node, position), _maker(unit.node, 0)
        biases.setdefault(reader.inputs[1], []).append(Bias(follower, bias, scales))
    seen: set[ir.Value] = set()
    for node in model.graph:
        scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
        if scale in written.scales and scale is not None and scale not in seen:
            seen.add(scale)
            yield Knob(written.scales[scale], node, tuple(biases.get(scale, ())))


def _maker(node: ir.Node, position: int) -> ir.Node:
    value = node.inputs[position]
    maker = None if value is None else value.producer()
    assert maker is not None
    return maker


def _limits(context: Context) -> Limits:
    """Return bounds for many runs in a row: the child tells only when a layer is done."""
    limits = context.settings.limits
    return replace(limits, patience=max(limits.patience, limits.seconds))
