"""Does a changed model keep the budget? Asked on samples that nothing was fitted on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.guard.figures import Evidence, figure, measurable

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Bound, Context

MARGIN = 1.0
"""Standard errors that a figure must be better than its bound: the samples are not all there are,
and the deepest of several cuts that seemed to hold is one that was lucky."""
_MOST_BYTES = 256 << 20
_UNITS = {"sqnr": " dB"}


@dataclass(frozen=True)
class Ruling:
    """What the samples say about one model.

    Attributes:
        holds: Every term of the budget holds, with the margin.
        excess: Error over what is allowed, of the worst term: at most 1 when it holds, infinite
            for broken outputs.
        text: The worst term in words.
    """

    holds: bool
    excess: float
    text: str


@dataclass(frozen=True, eq=False)
class Guard:
    """Judges models by the terms of a budget that are about results.

    Attributes:
        context: Runs models.
        bounds: The terms; never empty.
        batches: What models are run on.
        expected: Outputs of the original on them.
        margin: In standard errors.
    """

    context: Context
    bounds: tuple[Bound, ...]
    batches: tuple[Batch, ...]
    expected: tuple[dict[str, Any], ...]
    margin: float = MARGIN

    @classmethod
    def of(
        cls, context: Context, teacher: ir.Model, batches: Sequence[Batch], margin: float = MARGIN
    ) -> Guard | None:
        """Make a guard from the budget of a conversion.

        Args:
            context: Holds the budget.
            teacher: The model before the pass; the reference of the context goes before it, because
                a budget is about all passes together.
            batches: Held out from every fit. Those beyond 256 MB of outputs are left out.
            margin: In standard errors; 0: just what these samples show.

        Returns:
            None when no term of the budget is about results, or there are no samples.

        Raises:
            ConverterError: The original cannot be run on the samples.
        """
        bounds = tuple(bound for bound in context.budget if measurable(bound))
        if not bounds or not batches:
            return None
        original = context.reference or teacher
        first = _run(context, original, batches[:1])
        nbytes = sum(np.asarray(array).nbytes for array in first[0].values())
        most = max(1, _MOST_BYTES // max(1, nbytes))
        chosen = tuple(batches[:most])
        rest = _run(context, original, chosen[1:])
        return cls(context, bounds, chosen, (*first, *rest), margin)

    @property
    def samples(self) -> int:
        """Number of samples that rulings are about."""
        return sum(batch.samples for batch in self.batches)

    def judge(self, model: ir.Model) -> Ruling:
        """Run a model and hold its outputs against the budget.

        Raises:
            ConverterError: The model cannot be run.
        """
        evidence = Evidence()
        actual = _run(self.context, model, self.batches)
        for batch, old, new in zip(self.batches, self.expected, actual, strict=True):
            evidence.update(old, new, batch)
        if evidence.broken:
            return Ruling(holds=False, excess=math.inf, text=evidence.broken)
        found = [(bound, figure(evidence, bound, self.margin)) for bound in self.bounds]
        known = [(bound, item) for bound, item in found if item is not None]
        if not known:
            return Ruling(holds=True, excess=0.0, text="no term can be measured on these samples")
        bound, worst = max(known, key=lambda pair: pair[1].excess)
        unit = _UNITS.get(bound.metric, "")
        text = f"{bound.metric} {worst.measured:.4g}{unit}"
        if worst.cautious != worst.measured:
            text += f" (with the margin {worst.cautious:.4g})"
        return Ruling(worst.excess <= 1.0, worst.excess, text)


def hold_out(
    batches: Sequence[Batch], part: int = 4
) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Split samples into those to fit on and those to judge by: every ``part``-th.

    Args:
        batches: All samples, at least two.
        part: One of so many is held out.
    """
    step = min(part, max(2, len(batches)))
    fit = tuple(batch for i, batch in enumerate(batches) if i % step != step - 1)
    return fit, tuple(batch for i, batch in enumerate(batches) if i % step == step - 1)


def _run(context: Context, model: ir.Model, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    if not batches:
        return []
    names = [value.name or "" for value in model.graph.outputs]
    return context.run(model, [batch.inputs for batch in batches], names)
