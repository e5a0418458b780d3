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

from converter.core.context import Batch
from passes.guard.figures import Evidence, figure, measurable

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Bound, Context

MARGIN = 1.0
"""Standard errors that a figure must be better than its bound: the samples are not all there are,
and the deepest of several cuts that seemed to hold is one that was lucky."""
_MOST_BYTES = 256 << 20  # of outputs of the original that are kept
_PLENTY = 256  # samples of which a quarter is enough to judge by
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
        measured: False when no term can be measured on these samples: accuracy without labels.
    """

    holds: bool
    excess: float
    text: str
    measured: bool = True


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
            said = "no term can be measured on these samples"
            return Ruling(holds=True, excess=0.0, text=said, measured=False)
        bound, worst = max(known, key=lambda pair: pair[1].excess)
        unit = _UNITS.get(bound.metric, "")
        text = f"{bound.metric} {worst.measured:.4g}{unit}"
        if name == "all":
            text += " on all samples"
        elif worst.cautious != worst.measured:
            text += f" (with the margin {worst.cautious:.4g})"
        return Ruling(worst.excess <= 1.0, worst.excess, text)


def hold_out(
    batches: Sequence[Batch], part: int | None = None
) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Split samples into those to fit on and those to judge by: every ``part``-th batch.

    Args:
        batches: All samples, at least two batches.
        part: One of so many is held out; None: four, or two where samples are so few that a
            quarter would say little.
    """
    if part is None:
        part = 4 if sum(batch.samples for batch in batches) >= _PLENTY else 2
    step = min(part, max(2, len(batches)))
    fit = tuple(batch for i, batch in enumerate(batches) if i % step != step - 1)
    return fit, tuple(batch for i, batch in enumerate(batches) if i % step == step - 1)


def finer(model: ir.Model, batches: Sequence[Batch], least: int = 16) -> list[Batch]:
    """Cut batches up where they are fewer than can be divided into two parts.

    Args:
        model: That takes batches of any size; others keep theirs.
        batches: Of any number.
        least: Batches that are enough.
    """
    fixed = any(
        value.shape is None or not len(value.shape) or isinstance(value.shape[0], int)
        for value in model.graph.inputs
        if value.const_value is None
    )
    if fixed or len(batches) >= least:
        return list(batches)
    pieces = -(-least // max(1, len(batches)))
    return [part for batch in batches for part in _cut(batch, pieces)]


def _cut(batch: Batch, pieces: int) -> list[Batch]:
    arrays = [np.asarray(array) for array in batch.inputs.values()]
    if any(not array.ndim or len(array) != batch.samples for array in arrays):
        return [batch]
    if batch.targets is not None and len(batch.targets) != batch.samples:
        return [batch]
    step = max(1, -(-batch.samples // pieces))
    return [
        Batch(
            {name: np.asarray(array)[i : i + step] for name, array in batch.inputs.items()},
            None if batch.targets is None else batch.targets[i : i + step],
            min(step, batch.samples - i),
        )
        for i in range(0, batch.samples, step)
    ]


def _parts(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    waiting = iter(batches)
    while part := list(islice(waiting, _AT_ONCE)):
        yield part


def _run(context: Context, model: ir.Model, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    names = [value.name or "" for value in model.graph.outputs]
    return context.run(model, [batch.inputs for batch in batches], names)
