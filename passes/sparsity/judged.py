"""Samples to fit on, samples to judge by, and who judges: for shares that a bound decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.errors import MissingDataError, ParameterError
from passes.guard.judge import Guard, Ruling, finer, hold_out
from passes.removal.samples import samples_for

if TYPE_CHECKING:
    from converter.core.context import Batch, Context
    from passes.sparsity.problem import Problem

_LEAST = 8
"""Batches, after cutting large ones up, from which on some are held out."""


@dataclass(frozen=True)
class Judges:
    """What decides how many zeros are too many.

    Attributes:
        guard: Judges models on samples that were held out, and on all.
        fit: The other samples.
        before: What holds before anything is pruned.
    """

    guard: Guard
    fit: Sequence[Batch]
    before: Ruling

    @property
    def terms(self) -> str:
        """What is kept, in words."""
        return " and ".join(bound.text for bound in self.guard.bounds)


def judges_of(problem: Problem, name: str, context: Context) -> Judges:
    """Divide the samples and make a guard.

    Args:
        problem: Its model is what is judged.
        name: Of the strategy, for messages.
        context: Holds the samples and the bounds to keep.

    Raises:
        MissingDataError: There are no samples, or too few to hold some out.
        ParameterError: No term of the budget can be measured on samples.
    """
    where = f"prune:allocation={name}"
    if context.dataset is None:
        raise MissingDataError(
            f"allocation={name} measures what zeros cost, and no samples were given",
            where=where,
            hint="give some with --data FILE.npz; allocation=lamp needs none",
        )
    batches, _ = samples_for(problem.model, context, 0.0)
    batches = finer(problem.model, batches)
    if len(batches) < _LEAST:
        raise MissingDataError(
            f"allocation={name} holds samples out to judge by, and there are too few: "
            f"{len(batches)} of {_LEAST} batches",
            where=where,
            allowed=f"{_LEAST} batches or more; 64 to 512 samples judge well",
            hint="give more samples with --data FILE.npz",
        )
    fit, held = hold_out(batches)
    guard = Guard.of(context, problem.model, held)
    before = None if guard is None else guard.judge(problem.model)
    if guard is None or before is None or not before.measured:
        given = " and ".join(bound.text for bound in context.budget)
        raise ParameterError(
            f"allocation={name} needs a bound on results to stop at"
            + (f", and {given} cannot be measured on these samples" if given else ""),
            where=where,
            allowed="a budget about results: 'agreement>=0.98', 'sqnr>=30dB', 'accuracy>=0.99x' "
            "with labels",
            hint="give --budget; sparsity=0.7,allocation=lamp makes a share zero without one",
        )
    return Judges(guard, fit, before)
