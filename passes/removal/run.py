"""From a target to a model: exact removal, a plan, a proven cut, and the recovery.

With a budget about results, the plan is carried out at several depths, and the deepest one that
keeps the budget on samples held out is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.core.select import Selection
from converter.coupling.couple import Units, couple
from converter.coupling.describe import explain
from converter.coupling.shapes import observe_shapes
from converter.coupling.structure import Component, Coupling
from passes.allocation.channels import Source, plan
from passes.allocation.latency import share
from passes.allocation.plan import Allocation, Choice, Plan, Target
from passes.coupling.certificate import certified_cut
from passes.coupling.cut import cut
from passes.coupling.lossless import find_exact
from passes.coupling.settle import settle
from passes.guard.deepest import Attempt, deepest
from passes.guard.judge import Guard, Ruling, finer, hold_out
from passes.importance.channels import Evidence, outliers, score
from passes.inline import Inline
from passes.reconstruction.fit import Method, Recipe
from passes.reconstruction.walk import reconstruct
from passes.removal.account import Account
from passes.removal.mirrored import with_copies
from passes.removal.samples import made_besides, per_run, samples_for
from passes.removal.timed import search
from passes.simplify import Simplify

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]
Recovery = Literal["least_squares", "moments", "bias", "none"]
_BASES: Mapping[str, Callable[[Coupling], float | None]] = {
    "flops": lambda coupling: float(coupling.macs()),
    "params": lambda coupling: float(coupling.parameters()),
    "latency": lambda coupling: None,
    "sparsity": lambda coupling: None,
}
"""What a share is a share of: the model as it was given, not what exact removal left of it."""


@dataclass(frozen=True)
class Order:
    """What is wanted.

    Attributes:
        target: What to reach; None: only what goes exactly, and outliers for criterion "clp".
        choice: How to decide what goes.
        recover: How readers are repaired.
        units: What may go.
        selection: Nodes whose outputs may be cut.
    """

    target: Target | None
    choice: Choice
    recover: Recovery
    units: Units
    selection: Selection

    @property
    def lossy(self) -> bool:
        """True when more may go than what goes exactly."""
        return self.target is not None or self.choice.criterion == "clp"


@dataclass(frozen=True, eq=False)
class _Cut:
    """A model at one depth, and what to tell about it."""

    model: ir.Model
    account: Account


class Removal:
    """One run of the pass.

    Args:
        order: What is wanted.
        context: Data and services.
        account: Takes what is to be told.
    """

    def __init__(self, order: Order, context: Context, account: Account) -> None:
        self._order = order
        self._context = context
        self._account = account
        self._macs = 0.0
        self._made: Sequence[Batch] = ()

    def run(self, model: ir.Model) -> ir.Model | None:
        """Return the model without what was removed, or None when nothing can be removed.

        Args:
            model: Changed in place.
        """
        # normalizations tell how inputs are scaled, and folding them takes that away
        self._given = model.clone()
        self._prepare(model)
        shapes = observe_shapes(model, self._context)
        before = self._couple(model, shapes)
        self._account.frozen(before.frozen)
        if self._context.explain:
            self._account.events += explain(model, before, Selection(self._context.explain))
        exact = find_exact(model, lambda each: self._couple(each, shapes), self._allowed)
        if exact.removed:
            shapes = self._remove_exactly(model, shapes, exact.alive)
            self._account.notes += exact.notes
        coupling = self._couple(model, shapes) if exact.removed else before
        student = self._shrunk(model, shapes, coupling, before) if self._order.lossy else None
        if student is None and not exact.removed:
            return None
        result = student or model
        after = self._couple(result, observe_shapes(result, self._context))
        self._account.sizes(before, after, per_run(self._context))
        return result

    def _prepare(self, model: ir.Model) -> None:
        """Bring the model into the form in which layers are fitted; outputs stay as they are."""
        if model.functions:
            Inline().apply(model, self._context)
        fitted = self._order.lossy and self._order.recover != "none"
        if fitted and Simplify().apply(model, self._context).modified:
            self._account.notes.append("simplified first, so that normalizations are folded")

    def _couple(self, model: ir.Model, shapes: Shapes) -> Coupling:
        return couple(model, shapes, units=self._order.units)

    def _allowed(self, component: Component) -> bool:
        """Tell whether the selection covers the nodes that make a component."""
        nodes = [node for node, _, _ in component.producers]
        chosen = self._order.selection
        spared = Selection((), chosen.exclude)
        return all(node in spared for node in nodes) and (
            not chosen.include or any(node in chosen for node in nodes)
        )

    def _remove_exactly(self, model: ir.Model, shapes: Shapes, alive: Array) -> Shapes:
        """Cut what changes nothing and return the new sizes."""
        done = certified_cut(model, shapes, alive, self._context, units=self._order.units)
        self._account.proof(done)
        gone = float(np.count_nonzero(~done.alive))
        self._account.counts["atoms_removed_exactly"] = gone
        return observe_shapes(model, self._context)

    def _shrunk(
        self, model: ir.Model, shapes: Shapes, coupling: Coupling, before: Coupling
    ) -> ir.Model | None:
        """Return the model at the depth that is wanted, or as deep as the budget allows."""
        components = [c for c in coupling.components if self._allowed(c)]
        if not components:
            which = "selected" if coupling.components else "found"
            self._account.notes.append(
                f"nothing that can be removed was {which}: convert inspect --coupling shows what "
                f"there is, and what is frozen why"
            )
            return None
        self._macs = coupling.macs() / per_run(self._context)
        samples, note = samples_for(self._given, self._context, self._macs)
        self._account.notes.append(note)
        if self._context.dataset is not None:
            self._made, note = made_besides(self._given, samples, self._context.seed)
            self._account.notes.append(note)
        target = self._order.target
        if target is None:
            alive = self._without_outliers(coupling, components)
            found = self._at(model, shapes, alive, samples)
        else:
            wanted = replace(target, base=_BASES[target.kind](before))
            found = self._to_target((model, shapes), (coupling, components), wanted, samples)
        if found is None:
            return None
        self._merge(found.account)
        return found.model

    def _merge(self, other: Account) -> None:
        self._account.notes += other.notes
        self._account.skipped += other.skipped
        self._account.counts.update(other.counts)

    def _without_outliers(self, coupling: Coupling, components: Sequence[Component]) -> Array:
        """Return what stays when channels go whose Lipschitz constant is an outlier."""
        alive = coupling.all_alive()
        evidence = Evidence(seed=self._context.seed)
        for component in components:
            scores = score(self._order.choice.criterion, component, coupling, evidence)
            alive[component.atoms[outliers(scores)]] = False
        return alive

    def _at(
        self, model: ir.Model, shapes: Shapes, alive: Array, samples: Sequence[Batch]
    ) -> _Cut | None:
        """Cut a clone and repair it; None when nothing was cut."""
        account = Account()
        student = model.clone()
        done = certified_cut(student, shapes, alive, self._context, units=self._order.units)
        account.proof(done)
        gone = int(np.count_nonzero(~done.alive))
        account.counts["atoms_removed"] = float(gone)
        if not gone:
            return None
        recover = self._order.recover
        if recover != "none":
            method: Method = recover
            if method == "least_squares":
                samples = with_copies(samples, self._macs)
            repair = reconstruct(
                model,
                student,
                done.kept,
                samples,
                self._context.settings,
                recipe=Recipe(method=method),
                progress=self._context.progress,
            )
            account.repair(repair)
        return _Cut(student, account)

    def _to_target(
        self,
        given: tuple[ir.Model, Shapes],
        atoms: tuple[Coupling, Sequence[Component]],
        target: Target,
        samples: Sequence[Batch],
    ) -> _Cut | None:
        """Plan, then cut as deep as the target asks, or as the budget allows."""
        model, shapes = given
        coupling, components = atoms
        guard, fit = self._guard(model, samples)
        fit = [*fit, *self._made]
        source = Source(
            model, coupling, components, fit, self._context, lambda m: self._couple(m, shapes)
        )
        made = plan(source, self._order.choice)
        self._account.notes += made.notes
        if guard is None:
            return self._carried_out(given, made, target, fit)

        def attempt(depth: float) -> tuple[Ruling, _Cut | None]:
            found = self._carried_out(given, made, _at_depth(target, depth), fit)
            return guard.judge(model if found is None else found.model), found

        search = deepest(attempt, _depth(target))
        terms = " and ".join(bound.text for bound in guard.bounds)
        said = f"{search.words(terms)} (on {guard.samples} samples held out)"
        self._account.notes.append(said)
        if search.best is None:
            return None
        if search.stopped:
            reached = _at_depth(target, search.best.depth).value
            self._account.notes.append(
                f"asked for {target.kind}={target.value:g}, stopped at {reached:.3g}"
            )
        return self._with_all((given, made), search.best, target, samples, guard)

    def _with_all(
        self,
        parts: tuple[tuple[ir.Model, Shapes], Plan],
        best: Attempt[_Cut | None],
        target: Target,
        samples: Sequence[Batch],
        guard: Guard,
    ) -> _Cut | None:
        """Repair the cut that was found once more, with the samples that judged it, too."""
        found = best.result
        if found is None or self._order.recover == "none":
            return found
        again = self._carried_out(*parts, _at_depth(target, best.depth), [*samples, *self._made])
        if again is None or not guard.judge(again.model).holds:
            return found
        return again

    def _guard(
        self, model: ir.Model, samples: Sequence[Batch]
    ) -> tuple[Guard | None, Sequence[Batch]]:
        """Hold samples out for judging where there is a budget to judge by."""
        if self._context.dataset is None or not self._context.budget:
            return None, samples
        samples = finer(model, samples)
        if len(samples) < _LEAST_JUDGED:
            self._account.notes.append(
                "too few samples to hold some out, so budgets on outputs do not steer the depth"
            )
            return None, samples
        fit, held = hold_out(samples)
        guard = Guard.of(self._context, model, held)
        return (guard, fit) if guard is not None else (None, samples)

    def _carried_out(
        self, given: tuple[ir.Model, Shapes], made: Plan, target: Target, samples: Sequence[Batch]
    ) -> _Cut | None:
        """Cut to one depth; a time is measured, and the depth that reaches it is searched."""
        if target.kind != "latency" or not samples:
            return self._once(given, made, target, samples)
        model, shapes = given

        def time_at(asked: float) -> float:
            trial = model.clone()
            coupling = self._couple(trial, shapes)
            cut(trial, coupling, settle(coupling, made.at(replace(target, value=asked)).alive))
            return share(model, trial, samples[0].inputs, self._context)

        timed = search(time_at, target.value)
        found = self._once(given, made, replace(target, value=timed.asked), samples)
        if found is not None:
            said = f"a run takes {100 * timed.taken:.0f} % of the time, measured side by side"
            found.account.notes.append(said)
        return found

    def _once(
        self, given: tuple[ir.Model, Shapes], made: Plan, target: Target, samples: Sequence[Batch]
    ) -> _Cut | None:
        """Cut to what the plan says for a target."""
        allocation: Allocation = made.at(target)
        found = self._at(*given, allocation.alive, samples)
        if found is None:
            self._account.notes += allocation.notes
        else:
            found.account.notes[:0] = allocation.notes
        return found


_LEAST_JUDGED = 8
"""Batches from which on some are held out for judging."""


def _depth(target: Target) -> float:
    """Return how deep a target cuts: 0 for nothing."""
    return target.value if target.kind == "sparsity" else 1.0 - target.value


def _at_depth(target: Target, depth: float) -> Target:
    """Return the target that cuts so deep."""
    return replace(target, value=depth if target.kind == "sparsity" else 1.0 - depth)
