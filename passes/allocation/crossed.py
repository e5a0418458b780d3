"""Damage of components whose readers have few rows: fitted on one half, measured on the other.

A layer with about as many inputs as rows is fitted to its samples almost exactly, whatever is
removed, so the samples of the fit say nothing about others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.context import Batch
from passes.allocation.trial import Change, Trials, divisible, rows_count_samples, spread
from passes.importance.obs import Task, refit
from passes.importance.observe import Observed, Part, observe, parts

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import RunSettings
    from converter.coupling.structure import Component, Coupling

Array = np.ndarray[Any, Any]
Changes = Callable[[Sequence[Part], Sequence[Array]], list[Change]]


class Crossed:
    """Two halves of the samples, each judging what was fitted on the other.

    Args:
        model: The original.
        coupling: Its atoms.
        components: Those with few rows.
        stops: First readers of all components, in the order of the graph.
        batches: All samples.
        samples: How many to judge by.
        settings: How models are run.
        folder: For files.
    """

    def __init__(  # noqa: PLR0913 - what a measurement is made of
        self,
        model: ir.Model,
        coupling: Coupling,
        components: Sequence[Component],
        stops: Sequence[ir.Node],
        batches: Sequence[Batch],
        *,
        samples: int,
        settings: RunSettings,
        folder: Path,
    ) -> None:
        self._coupling = coupling
        self._observed: list[Observed] = []
        self._trials: list[Trials] = []
        found = [halved(batches, k) for k in (0, 1)]
        for k, (judged, fitted) in enumerate((found, found[::-1])):
            own = folder / f"half{k}"
            own.mkdir()
            seen = observe(model, components, fitted, settings=settings, folder=own)
            self._observed.append(seen)
            few = spread(judged, max(1, samples // 2), divisible=divisible(model))
            self._trials.append(Trials(model, stops, few, settings, own))

    def advance(self) -> None:
        """Go on to the next component."""
        for trials in self._trials:
            trials.advance()

    def losses(self, component: Component, task: Task, changes: Changes) -> dict[int, float]:
        """Return the damage at every level of a removal with a given order.

        Args:
            component: One of the components.
            task: Its removal; the order follows from its ranks.
            changes: Makes of readers and their weights what the model is to be run with.
        """
        assert task.rank is not None
        found: dict[int, float] = dict.fromkeys(task.snapshots, 0.0)
        for observed, trials in zip(self._observed, self._trials, strict=True):
            readers, _ = parts(
                component, self._coupling, observed.grams, compensate=True, inverted=False
            )
            weights = refit(replace(task, readers=[part.reader for part in readers]))
            for rounds, each in weights.items():
                found[rounds] += trials.loss(changes(readers, each)) / 2
        return found


def halved(batches: Sequence[Batch], which: int) -> list[Batch]:
    """Return every other sample, or every other batch where samples cannot be told apart."""
    if all(batch.samples == 1 for batch in batches) or not all(map(rows_count_samples, batches)):
        return list(batches[which::2])
    made = []
    for batch in batches:
        inputs = {name: np.asarray(array)[which::2] for name, array in batch.inputs.items()}
        count = len(range(which, batch.samples, 2))
        if count:
            made.append(Batch(inputs, None, count))
    return made
