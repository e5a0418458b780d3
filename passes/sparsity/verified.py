"""The last word on allocations: models that are masked and recovered like the result, judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.context import Batch
from passes.allocation.trial import damage, divisible
from passes.removal.samples import samples_for
from passes.sparsity.samples import chosen

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
_JUDGED, _FIT = 192, 512
_LEAST = 32
"""Samples from which on some are held out from the fit."""
_LATE = 0.6
"""Share of the user's time after which no further model is built."""


def verified(problem: Problem, finalists: Mapping[str, Array]) -> dict[str, float]:
    """Return the damage of real models at samples that they were not fitted on, by name.

    Args:
        problem: Builds models.
        finalists: Allocations by name.

    Returns:
        Nothing for those that time did not suffice for, and nothing at all where there are no or
        too few samples, or no recovery: what a bench says is exact then, or as good.
    """
    context = problem.context
    if context.dataset is None or problem.recover == "none" or context.dataset.samples < _LEAST:
        return {}
    batches, _ = samples_for(problem.model, context, 0.0)
    samples = chosen(batches, (_JUDGED, _FIT), free=divisible(problem.model))
    judges = [*samples.trial, *samples.held]
    expected = _outputs(problem, problem.model, judges)
    found = {}
    for name, zeros in finalists.items():
        if context.settings.limits.late(_LATE):
            break
        made = _outputs(problem, problem.build(zeros, samples.fit), judges)
        loss = damage(expected, made, judges)
        found[name] = math.inf if math.isnan(loss) else loss
    return found


def _outputs(problem: Problem, model: ir.Model, batches: Sequence[Batch]) -> dict[str, list[Array]]:
    names = [value.name or "" for value in problem.model.graph.outputs]
    made = problem.context.run(model, [batch.inputs for batch in batches], names)
    return {name: [each[name] for each in made] for name in names}
