"""Does a changed model keep the budget? Asked on samples that nothing was fitted on, then on all.

What was held out tells how good the model is on samples to come, with a margin; all samples
together are what the verification of the conversion looks at, so there the bare figures count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.guard.figures import Evidence, figure, measurable

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Bound, Context

MARGIN = 1.0
"""Standard errors that a figure must be better than its bound: the samples are not all there are,
and the deepest of several cuts that seemed to hold is one that was lucky."""
_MOST_BYTES = 256 << 20  # of outputs of the original that are kept
_AT_ONCE = 64  # batches that one child runs
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
        original: What models are held against.
        batches: Held out from every fit.
        margin: In standard errors.
    """

    context: Context
    bounds: tuple[Bound, ...]
    original: ir.Model
    batches: tuple[Batch, ...]
    margin: float = MARGIN
    _kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, context: Context, teacher: ir.Model, batches: Sequence[Batch], margin: float = MARGIN
    ) -> Guard | None:
        """Make a guard from the budget of a conversion.

        Args:
            context: Holds the budget.
            teacher: The model before the pass; the reference of the context goes before it, because
                a budget is about all passes together.
            batches: Held out from every fit.
            margin: In standard errors; 0: just what these samples show.

        Returns:
            None when no term of the budget is about results, or there are no samples.
        """
        bounds = tuple(bound for bound in context.budget if measurable(bound))
        if not bounds or not batches:
            return None
        return cls(context, bounds, context.reference or teacher, tuple(batches), margin)

    @property
    def samples(self) -> int:
        """Number of samples that rulings are about."""
        return sum(batch.samples for batch in self.batches)

    def judge(self, model: ir.Model) -> Ruling:
        """Run a model and hold its outputs against the budget.

        Raises:
            ConverterError: A model cannot be run.
        """
        ruling = self._rule(model, "held out", self.batches, self.margin)
        dataset = self.context.dataset
        if not ruling.holds or dataset is None:
            return ruling
        whole = self._rule(model, "all", dataset, 0.0)
        return ruling if whole.holds else whole

    def _rule(self, model: ir.Model, name: str, batches: Iterable[Batch], margin: float) -> Ruling:
        evidence = Evidence()
        known = self._kept.get(name)
        kept: list[dict[str, Any]] = []
        nbytes = 0
        for index, part in enumerate(_parts(batches)):
            start = index * _AT_ONCE
            old = known[start : start + len(part)] if known else []
            old = old if len(old) == len(part) else _run(self.context, self.original, part)
            new = _run(self.context, model, part)
            for batch, first, second in zip(part, old, new, strict=True):
                evidence.update(first, second, batch)
            nbytes += sum(np.asarray(array).nbytes for made in old for array in made.values())
            if nbytes <= _MOST_BYTES:
                kept += old
        self._kept.setdefault(name, kept)
        return self._ruling(evidence, margin, name)

    def _ruling(self, evidence: Evidence, margin: float, name: str) -> Ruling:
        if evidence.broken:
            return Ruling(holds=False, excess=math.inf, text=evidence.broken)
        found = [(bound, figure(evidence, bound, margin)) for bound in self.bounds]
        known = [(bound, item) for bound, item in found if item is not None]
        if not known:
            return Ruling(holds=True, excess=0.0, text="no term can be measured on these samples")
        bound, worst = max(known, key=lambda pair: pair[1].excess)
        unit = _UNITS.get(bound.metric, "")
        text = f"{bound.metric} {worst.measured:.4g}{unit}"
        if name == "all":
            text += " on all samples"
        elif worst.cautious != worst.measured:
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


def _parts(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    waiting = iter(batches)
    while part := list(islice(waiting, _AT_ONCE)):
        yield part


def _run(context: Context, model: ir.Model, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    names = [value.name or "" for value in model.graph.outputs]
    return context.run(model, [batch.inputs for batch in batches], names)
