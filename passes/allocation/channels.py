"""Curves of all components from samples or from weights alone, for a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.errors import MissingDataError
from passes.allocation.curves import Curve, Wanted, atoms_kept, measure, steps
from passes.allocation.latency import Latencies, layer_latencies
from passes.allocation.plan import Choice, Plan
from passes.importance.channels import CRITERIA, Evidence, observe_powers, score

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context
    from converter.coupling.structure import Component, Coupling
    from passes.allocation.cost import Cost

Array = np.ndarray[Any, Any]
MOST_SAMPLES = 512
_MOST_SECONDS = 7200.0
_WORK = 1.5e12  # multiply-accumulates of one run over the samples


@dataclass(frozen=True, eq=False)
class Source:
    """What a plan is made from.

    Attributes:
        model: The original.
        coupling: Its atoms.
        components: Those that may be cut.
        batches: Samples; may be empty, then criteria of the weights decide.
        context: Limits, seed and progress.
        recouple: Finds the atoms of a clone of the model.
    """

    model: ir.Model
    coupling: Coupling
    components: Sequence[Component]
    batches: Sequence[Batch]
    context: Context
    recouple: Callable[[ir.Model], Coupling] | None = None


def plan(source: Source, choice: Choice) -> Plan:
    """Measure curves and return the plan; what needs the model runs in a child process."""
    components = [c for c in source.components if c.sinks and _cuttable(c, choice.keep)]
    source = replace(source, components=components)
    if not components:
        return Plan(source.coupling, (), (), choice, _Stopwatch(source).cost)
    if not source.batches:
        return _without_data(source, choice)
    ranks, fallback = _ranks(source, choice)
    wanted = Wanted(
        source.model,
        source.coupling,
        components,
        ranks,
        fallback,
        choice.keep,
        choice.compensate,
        choice.allocation in ("kl", "dp"),
        source.recouple,
    )
    batches = _fewer(source)
    curves, untried = _measured(wanted, batches, source.context)
    used = sum(batch.samples for batch in batches)
    note = f"order by {choice.criterion}, damage measured on {used} sample{'s' * (used != 1)}"
    if untried:
        note += (
            f"; of {untried} of {len(curves)} sets of channels it is estimated, because the time "
            f"limit came near (--time-limit)"
        )
    return Plan(source.coupling, components, curves, choice, _Stopwatch(source).cost, (note,))


class _Stopwatch:
    """Times the layers of a model once somebody asks for it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def cost(self, curves: Sequence[Curve], size: int) -> Cost:
        """Return seconds by rounds.

        Raises:
            MissingDataError: There are no samples to run the model on.
        """
        return self._known.cost(curves, size)

    @cached_property
    def _known(self) -> Latencies:
        source = self._source
        if not source.batches:
            raise MissingDataError(
                "a run of the model cannot be timed without samples",
                hint="give samples with --data FILE.npz, or a target in flops",
            )
        feed = source.batches[0].inputs
        return layer_latencies(source.model, source.coupling, feed, source.context)


def _measured(
    wanted: Wanted, batches: Sequence[Batch], context: Context
) -> tuple[list[Curve], int]:
    import onnxruntime  # noqa: F401 - loaded once here, not again in every child process

    from converter.execution import sandbox

    context.progress.start("measuring what channels are worth", steps(wanted))
    try:
        found = sandbox.call(
            measure,
            wanted,
            batches,
            settings=context.settings,
            limits=context.settings.limits.extended(_MOST_SECONDS),
            on_progress=context.progress.advance,
            task="measuring what channels are worth",
        )
    finally:
        context.progress.stop()
    curves = [
        Curve(each["component"], each["order"], each["unit"], each["errors"], each["losses"])
        for each in found
    ]
    return curves, sum(not each["tried"] for each in found)


def _ranks(source: Source, choice: Choice) -> tuple[dict[int, Array], dict[int, Array]]:
    """Return importances that decide the order, and those for components with too little data."""
    evidence = Evidence(seed=source.context.seed)
    if choice.criterion == "obs":
        found = {c.index: score("l2", c, source.coupling, evidence) for c in source.components}
        return {}, found
    if CRITERIA[choice.criterion].data and source.context.dataset is not None:
        powers = observe_powers(source.model, source.coupling, source.components, source.context)
        evidence = replace(evidence, powers=powers)
    found = {
        c.index: score(choice.criterion, c, source.coupling, evidence) for c in source.components
    }
    return found, found


def _without_data(source: Source, choice: Choice) -> Plan:
    """Return curves from importances alone."""
    name = "l2" if choice.criterion == "obs" else choice.criterion
    evidence = Evidence(seed=source.context.seed)
    curves = []
    for component in source.components:
        given = score(name, component, source.coupling, evidence)
        curves.append(from_scores(component, given, choice.keep))
    note = f"no samples: order and depth follow {name}"
    timed = _Stopwatch(source).cost
    return Plan(source.coupling, source.components, curves, choice, timed, (note,))


def from_scores(component: Component, scores: Array, keep: float) -> Curve:
    """Return a curve on which every atom costs its share of the component's importance.

    Args:
        component: The component.
        scores: Importance of every atom, of any range: float64 (atoms,).
        keep: Share that stays.
    """
    from passes.importance.obs import Task, remove

    size = len(scores)
    unit = 1 if component.blocks is None else len(np.unique(component.blocks))
    finite = scores[np.isfinite(scores)]
    low = float(finite.min()) if len(finite) else 0.0
    high = float(finite.max()) if len(finite) else 1.0
    filled = np.nan_to_num(scores, nan=high, posinf=high, neginf=low)
    costs = filled - min(low, 0.0)
    total = float(costs.sum())
    costs = costs / total if total > 0 else np.full(size, 1.0 / size)
    kept = atoms_kept(size, unit, keep)
    removal = remove(Task(size, (), costs, component.blocks, kept, filled))
    errors = removal.errors
    return Curve(component.index, component.atoms[removal.order], removal.unit, errors, errors)


def _cuttable(component: Component, keep: float) -> bool:
    unit = 1 if component.blocks is None else len(np.unique(component.blocks))
    size = len(component.atoms)
    return size // unit > atoms_kept(size, unit, keep)


def _fewer(source: Source) -> list[Batch]:
    """Return the samples to use, fewer for large models: spread over the data."""
    from passes.allocation.trial import divisible, spread

    total = sum(batch.samples for batch in source.batches)
    most = min(MOST_SAMPLES, max(16, int(_WORK / max(1, source.coupling.macs()))))
    if total <= most:
        return list(source.batches)
    return spread(source.batches, most, divisible=divisible(source.model))
