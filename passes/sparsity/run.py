"""From words to zeros: layers, counts, what goes, and the recovery, once or in several steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.core.contract import Event, Outcome, Skip
from converter.core.select import Selection
from passes.allocation.order import Plan
from passes.removal.account import Account
from passes.simplify import Simplify
from passes.sparsity import counted, criteria, masks
from passes.sparsity.counted import Counted
from passes.sparsity.layers import Layer, find
from passes.sparsity.patterns import Pattern
from passes.sparsity.problem import Criterion, Problem, Recovery
from passes.sparsity.recovery import Recoverer
from passes.sparsity.schedule import Schedule, shares
from passes.sparsity.strategies import STRATEGIES, Name

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context
    from passes.reconstruction.repair import Repair

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Order:
    """What is wanted.

    Attributes:
        share: Zeros, as a share of all weights; None: by the threshold.
        threshold: Absolute value below which a weight becomes zero.
        criterion: What orders weights.
        pattern: The units in which they go.
        allocation: How zeros are distributed over layers.
        recover: What makes up for them.
        steps: How often zeros are made and made up for.
        schedule: How their share rises.
        population: Of the evolutionary search.
        generations: Of the evolutionary search.
        selection: Nodes whose weights may be pruned.
    """

    share: float | None
    threshold: float | None
    criterion: Criterion
    pattern: Pattern
    allocation: Name
    recover: Recovery
    steps: int
    schedule: Schedule
    population: int
    generations: int
    selection: Selection


def _numbered(repair: Repair, share: float | None, steps: int) -> Repair:
    """Say at which share of zeros a recovery went so, where there are several."""
    if steps == 1 or share is None:
        return repair
    return replace(repair, notes=tuple(f"at {100 * share:.4g} %: {n}" for n in repair.notes))


_UNMENDED = (
    "nothing made up for the zeros: with --data FILE (64 to 512 unlabelled samples) the weights "
    "that are left are fitted to the original"
)


_SEEN = 0.0005
"""A difference of shares that shows in reports."""


class Pruning:
    """One run of the pass.

    Args:
        order: What is wanted.
        context: Data and services.
    """

    def __init__(self, order: Order, context: Context) -> None:
        self._order = order
        self._context = context
        self._account = Account()
        self._recoverer: Recoverer | None = None
        self._teacher: ir.Model | None = None  # stays None where nothing is to be made up for

    def run(self, model: ir.Model) -> Outcome:
        """Prune a model in place and say what was done."""
        order = self._order
        modified = self._prepare(model)
        first: list[int] | None = None
        last: list[Counted] = []
        for share in [None] if order.share is None else self._shares(order.share):
            self._context.progress.start("prune", None)
            last, changed = self._step(model, share, again=first is not None)
            self._context.progress.stop()
            modified = modified or changed
            first = [each.before for each in last] if first is None else first
            if changed and self._teacher is not None:
                self._account.repair(_numbered(self.recovered(model, last), share, order.steps))
        counted.tell(self._account, first or [], last)
        self._tell_rest(last)
        if modified and order.recover == "none" and self._context.dataset is None:
            self._account.notes.append(_UNMENDED)
        self._explain(last)
        return replace(self._account.outcome(modified=modified), counts=self._account.counts)

    def _shares(self, share: float) -> list[float]:
        return shares(share, self._order.steps, self._order.schedule)

    def _prepare(self, model: ir.Model) -> bool:
        """Bring the model into the form in which layers are fitted; outputs stay as they are."""
        if self._order.recover == "none" or self._idle(model):
            return False
        simplified = Simplify().apply(model, self._context).modified
        if simplified:
            self._account.notes.append("simplified first, so that normalizations are folded")
        teacher = self._context.comparable
        if teacher is not None and simplified:
            teacher = teacher.clone()
            Simplify().apply(teacher, self._context)
        self._teacher = model.clone() if teacher is None else teacher
        return simplified

    def _idle(self, model: ir.Model) -> bool:
        """Tell whether there is nothing to prune, or there are as many zeros as wanted already."""
        layers, zeros, _ = counted.census(find(model, self._order.selection)[0])
        share = self._order.share
        if not layers or share is None or self._order.pattern.share is not None:
            return not layers
        return sum(zeros) >= round(share * sum(int(layer.tensor.size) for layer in layers))

    def _step(
        self, model: ir.Model, share: float | None, *, again: bool
    ) -> tuple[list[Counted], bool]:
        """Set weights to zero once; return what became of every tensor, and whether any changed."""
        layers, skipped = find(model, self._order.selection)
        self._account.skipped += skipped
        plans = self._plans(layers, share)
        if plans is not None:
            found, skipped = counted.planned(layers, plans)
        else:
            assert share is not None
            found, skipped = self._decided(model, layers, share)
        self._account.skipped += skipped
        changed = [masks.assign(each.layer, each.choice) for each in found]
        return found, any(changed) or (again and self._teacher is not None)

    def _plans(self, layers: Sequence[Layer], share: float | None) -> list[Plan] | None:
        """Return plans for the rules that look at sizes alone; None for all others."""
        order = self._order
        if share is None:
            assert order.threshold is not None
            return counted.below(layers, order.threshold)
        if order.criterion != "magnitude" or order.pattern.kind != "unstructured":
            return None
        if order.allocation not in ("global", "local"):
            return None
        return counted.by_size(layers, share, together=order.allocation == "global")

    def _decided(
        self, model: ir.Model, layers: Sequence[Layer], share: float
    ) -> tuple[list[Counted], list[Skip]]:
        """Let the strategy decide numbers, and criterion and pattern what goes."""
        layers, zeros, skipped = counted.census(layers)
        problem = self._problem(model, layers, share)
        if not layers or self._enough(problem, sum(zeros)):
            return [
                Counted(each, n, n, None) for each, n in zip(layers, zeros, strict=True)
            ], skipped
        allocation = STRATEGIES[self._order.allocation](problem)
        self._account.notes += allocation.notes
        self._account.counts |= allocation.counts
        choices = masks.choose(problem, allocation.zeros, allocation.cuts)
        return counted.chosen(layers, zeros, allocation.zeros, choices), skipped

    def _enough(self, problem: Problem, zeros: int) -> bool:
        """Tell whether there are as many zeros as wanted already: a second run changes nothing."""
        return zeros >= problem.wanted and self._order.pattern.share is None

    def _problem(self, model: ir.Model, layers: Sequence[Layer], share: float) -> Problem:
        order = self._order
        scores = criteria.scores(order.criterion, layers, model, self._context)
        self._account.skipped += scores.skipped

        def build(zeros: Array, samples: Sequence[Batch] | None = None) -> ir.Model:
            return self.built(problem, zeros, samples)

        problem = Problem(
            model=model,
            layers=layers,
            share=share,
            context=self._context,
            criterion=order.criterion,
            pattern=order.pattern,
            recover=order.recover,
            scores=scores,
            build=build,
            population=order.population,
            generations=order.generations,
        )
        return problem

    def recovered(
        self, model: ir.Model, found: Sequence[Counted], samples: Sequence[Batch] | None = None
    ) -> Repair:
        """Fit a pruned model in place to what it was before."""
        order = self._order
        if self._recoverer is None:
            assert self._teacher is not None
            self._recoverer = Recoverer(self._teacher, self._context, order.recover)
            self._account.notes.append(self._recoverer.said)
        choose = order.pattern if order.recover == "obs" else None
        return self._recoverer(model, found, samples, choose=choose)

    def built(self, problem: Problem, zeros: Array, samples: Sequence[Batch] | None) -> ir.Model:
        """Return a clone of a problem's model with so many zeros, masked and recovered."""
        choices = masks.choose(problem, zeros)
        clone = problem.model.clone()
        layers = find(clone, self._order.selection)[0]
        by_name = {layer.name: layer for layer in layers}
        found = []
        for layer, choice, count in zip(problem.layers, choices, zeros.tolist(), strict=True):
            twin = by_name[layer.name]
            masks.assign(twin, choice)
            found.append(Counted(twin, 0, count, choice))
        if self._order.recover != "none":
            self.recovered(clone, found, samples)
        return clone

    def _tell_rest(self, last: Sequence[Counted]) -> None:
        """Say why there are fewer zeros than a pattern makes where all its groups are full."""
        pattern = self._order.pattern
        full = sum(each.size for each in last)
        if not full or pattern.share is None:
            return
        reached = sum(each.after for each in last) / full
        if reached < pattern.share - _SEEN:
            self._account.notes.append(
                f"{100 * reached:.1f} % zeros instead of {100 * pattern.share:.4g} %: where what "
                f"an output sums over is no multiple of {pattern.second}, the rest stays as it is"
            )

    def _explain(self, last: Sequence[Counted]) -> None:
        """Answer what became of the weights of the nodes that the user asked about."""
        if not self._context.explain:
            return
        asked = Selection(self._context.explain)
        for each in last:
            for node in each.layer.nodes:
                if node in asked:
                    said = f"{each.after:,} of {each.size:,} weights of {each.layer.name} are zero"
                    said += f", {each.before:,} before the last step"
                    self._account.events.append(Event(g.label(node), "prune", said))
