"""The proof of a cut, before any weight is changed: it equals the masked original.

Both run on made-up inputs, in two sizes where the sizes are free, and on real samples if there are
any. Components for which the two differ are found by bisection, put back, and reported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import is_op
from converter.coupling.couple import Units, couple
from converter.errors import ConverterError
from passes.coupling.agreement import difference_of, tolerance_of
from passes.coupling.cut import cut
from passes.coupling.feeds import feeds_for
from passes.coupling.kept import Kept
from passes.coupling.mask import mask
from passes.coupling.settle import settle

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Arrays, Context
    from converter.coupling.structure import Component, Coupling

Array = np.ndarray[Any, Any]

_FLAT = ("ArgMax", "ArgMin", "Clip", "Hardmax", "Sigmoid", "Softmax", "Tanh", "TopK")
"""Operators whose outputs may all be equal although their inputs are not."""


@dataclass(frozen=True)
class Refused:
    """A component that was put back.

    Attributes:
        component: Its name.
        size: Atoms that were meant to go.
        reason: Why they stay, as a short phrase.
    """

    component: str
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class Certified:
    """A cut that was proved.

    Attributes:
        alive: bool (atoms,): what really stayed.
        kept: Indices that are left, by value; see :func:`passes.coupling.cut.cut`.
        difference: The largest one between the cut model and the masked original, as a share of
            the largest number of an output.
        refused: What was put back.
        feeds: Inputs on which the two were compared.
    """

    alive: Array
    kept: Kept
    difference: float
    refused: tuple[Refused, ...]
    feeds: int


def certified_cut(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    alive: Array,
    context: Context,
    *,
    units: Units = "all",
    frozen_nodes: Collection[str] = (),
) -> Certified:
    """Cut a model in place, as far as the result provably equals the masked original.

    Args:
        model: Changed in place.
        shapes: Sizes of its values, as for ``couple``.
        alive: bool (atoms,): what is meant to stay. Axes that would be empty keep one index, and
            blocks keep equal numbers.
        context: Runs the models; its data, if any, is used, too.
        units: As for ``couple``.
        frozen_nodes: As for ``couple``.

    Returns:
        What was done and how well it agrees.
    """
    trials = _Trials(model, shapes, context, units, frozen_nodes)
    found = trials.bisect(settle(trials.coupling, alive))
    kept = cut(model, trials.coupling, found.alive)
    return Certified(found.alive, kept, found.difference, found.refused, len(trials.feeds))


@dataclass(frozen=True)
class _Trial:
    """How far a cut is from the masked original, and what is wrong with it if anything is."""

    difference: float
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Found:
    """The part of a cut that is right."""

    alive: Array
    difference: float
    refused: tuple[Refused, ...]


class _Trials:
    def __init__(
        self,
        model: ir.Model,
        shapes: Mapping[str, tuple[int, ...]],
        context: Context,
        units: Units,
        frozen_nodes: Collection[str],
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._context = context
        self._units = units
        self._frozen = frozen_nodes
        self.coupling = self._couple(model)
        self.feeds: Sequence[Arrays] = feeds_for(model, context)
        self._watched = _watched(model)
        self._tolerance = tolerance_of(model)

    def _couple(self, model: ir.Model) -> Coupling:
        return couple(model, self._shapes, units=self._units, frozen_nodes=self._frozen)

    def cut_in(self, alive: Array) -> list[Component]:
        """Return the components that lose atoms."""
        return [c for c in self.coupling.components if not alive[c.atoms].all()]

    def run(self, alive: Array) -> _Trial:
        """Cut a clone, mask another one, and compare their outputs."""
        if not self.feeds:
            return _Trial(np.inf, "the model runs on no input that could be made up")
        student, masked = self._model.clone(), self._model.clone()
        mask(masked, self._couple(masked), alive)
        step = "cut"
        try:
            cut(student, self._couple(student), alive)
            found = self._context.run(student, self.feeds, self._watched)
            step = "masked"
            expected = self._context.run(masked, self.feeds, self._watched)
        except (ConverterError, ValueError) as error:
            return _Trial(np.inf, f"the {step} model does not run: {_short(error)}")
        difference = max(map(difference_of, expected, found))
        if difference <= self._tolerance:
            return _Trial(difference)
        return _Trial(difference, f"the cut model differs by {difference:.1e} of its outputs")

    def bisect(self, alive: Array) -> _Found:
        """Return the largest part of a cut that is right, and the components that are not."""
        good, difference = self.coupling.all_alive(), 0.0
        refused: list[Refused] = []
        waiting = [self.cut_in(alive)] if not alive.all() else []
        while waiting:
            group = waiting.pop()
            wanted = good.copy()
            for component in group:
                wanted[component.atoms] = alive[component.atoms]
            trial = self.run(wanted)
            if not trial.reason:
                good, difference = wanted, trial.difference
            elif len(group) > 1:
                middle = len(group) // 2
                waiting += [group[middle:], group[:middle]]
            else:
                gone = int(np.count_nonzero(~alive[group[0].atoms]))
                refused.append(Refused(group[0].name, gone, trial.reason))
        return _Found(good, difference, tuple(refused))


def _watched(model: ir.Model) -> list[str]:
    """Return the outputs, and what lies before those that may show no difference any more."""
    names = []
    for value in model.graph.outputs:
        names.append(value.name or "")
        producer = value.producer()
        if is_op(producer, *_FLAT) and producer is not None and producer.inputs[0] is not None:
            before = producer.inputs[0]
            if before.producer() is not None:
                names.append(before.name or "")
    return list(dict.fromkeys(names))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
