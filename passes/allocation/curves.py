"""One curve per component: what it costs to take so many of its atoms away.

The local error is known after every step of the removal. At a few levels the model is run with this
component alone cut and its readers re-fitted; between the levels the damage found there follows the
local error.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.execution.blas import use_one_thread
from passes.allocation.crossed import Crossed
from passes.allocation.masked import Masked
from passes.allocation.trial import Change, Trials, divisible, joined, spread
from passes.importance.obs import Removal, Task, remove
from passes.importance.observe import Observed, Part, extra, observe, parts, work
from passes.importance.readers import layer_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, RunSettings
    from converter.coupling.structure import Component, Coupling

Array = np.ndarray[Any, Any]

_TRIALS = (
    (10, 512),
    (9, 384),
    (8, 256),
    (7, 128),
    (6, 96),
    (5, 64),
    (4, 48),
    (4, 32),
    (3, 24),
    (3, 16),
    (3, 8),
)
"""Levels of a curve and samples per level; the first that fits the work is taken."""
_WORK = 6e12
"""Multiply-accumulates of all trials together: two to three minutes on one core."""
_LOAD = 600.0
"""Multiply-accumulates that take as long as it takes to hand a weight to the runtime."""
_LEAST_HALVED = 16
"""Samples from which on halves of them can judge each other."""
_HALF = 0.5
"""Share of the user's time limit, if there is one, after which nothing is tried any more: cut,
recovery and verification take the rest."""
_BROKEN = 1e30  # the damage of outputs that are not finite
_FEW_ROWS = 2.0
"""Rows per column below which the order by error is worse than the order by size."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What removing atoms of one component costs.

    Attributes:
        component: Its index.
        order: Atoms of the model, the first goes first: int64 (atoms,).
        unit: Atoms that go in one round.
        errors: Local error by rounds, relative, from 0 and rising: float64 (rounds + 1,).
        losses: Damage at the outputs by rounds, likewise; the local error where nothing was run.
    """

    component: int
    order: Array
    unit: int
    errors: Array
    losses: Array

    @property
    def rounds(self) -> int:
        """How many rounds may go."""
        return len(self.errors) - 1


@dataclass(frozen=True, eq=False)
class Wanted:
    """What to find out.

    Attributes:
        model: The original.
        coupling: Its atoms.
        components: Those that may be cut.
        ranks: By component index: importance of every atom, the lowest goes first; a component
            that is missing goes by its error.
        fallback: The same for components with too few rows to go by their error.
        keep: Share of every component that stays.
        compensate: What stays is re-fitted afterwards.
        run: Also measure the damage at the outputs.
        recouple: Finds the atoms of a clone.
    """

    model: ir.Model
    coupling: Coupling
    components: Sequence[Component]
    ranks: Mapping[int, Array] = field(default_factory=dict)
    fallback: Mapping[int, Array] = field(default_factory=dict)
    keep: float = 0.08
    compensate: bool = True
    run: bool = True
    recouple: Callable[[ir.Model], Coupling] | None = None


def measure(
    wanted: Wanted,
    batches: Sequence[Batch],
    *,
    settings: RunSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Return a curve per component, as mappings of its fields; called in a child process."""
    use_one_thread()
    with tempfile.TemporaryDirectory(prefix="curves-", dir=settings.workspace) as name:
        return _Measurement(wanted, batches, settings, Path(name), progress).curves()


def steps(wanted: Wanted) -> int:
    """Return how many steps :func:`measure` reports."""
    return work(wanted.components) + len(wanted.components)


def atoms_kept(size: int, unit: int, keep: float) -> int:
    """Return how many rounds of a component stay at least."""
    return max(1, math.ceil(size // unit * keep))


def levels(rounds: int, count: int) -> list[int]:
    """Return the rounds at which a component is tried: ascending, the last is the deepest."""
    if rounds <= 0:
        return []
    return sorted({max(1, round(rounds * (i + 1) / count)) for i in range(count)})


def interpolated(errors: Array, tried: Mapping[int, float]) -> Array:
    """Return the damage by rounds from what was tried, following the local error between.

    Args:
        errors: float64 (rounds + 1,), rising.
        tried: Damage by rounds; noise that lets it fall is smoothed away.

    Returns:
        float64 (rounds + 1,), from 0, never falling.
    """
    known = [(0, 0.0), *sorted(tried.items())]
    losses = np.maximum.accumulate([min(loss, _BROKEN) for _, loss in known])
    found = np.zeros(len(errors))
    for (first, _), (last, _), low, high in zip(
        known[:-1], known[1:], losses[:-1], losses[1:], strict=True
    ):
        part = errors[first : last + 1]
        rise = part[-1] - part[0]
        share = (part - part[0]) / rise if rise > 0 else np.linspace(0, 1, len(part))
        found[first : last + 1] = low + share * (high - low)
    found[known[-1][0] :] = losses[-1]
    return np.maximum.accumulate(found)


class _Measurement:
    def __init__(
        self,
        wanted: Wanted,
        batches: Sequence[Batch],
        settings: RunSettings,
        folder: Path,
        progress: Callable[[int], None],
    ) -> None:
        self._wanted = wanted
        free = divisible(wanted.model)
        self._batches = (
            joined(spread(batches, sum(b.samples for b in batches), divisible=True))
            if free
            else list(batches)
        )
        self._free = free
        self._settings = settings
        self._folder = folder
        self._progress = progress
        self._position = {node: i for i, node in enumerate(wanted.model.graph)}

    def curves(self) -> list[dict[str, Any]]:
        components = self._sorted()
        observed = observe(
            self._wanted.model,
            components,
            self._batches,
            settings=self._settings,
            folder=self._folder,
            progress=self._progress,
        )
        count, samples = self._budget(components)
        trials, masked, crossed = None, None, None
        if self._wanted.run:
            few = spread(self._batches, samples, divisible=self._free)
            stops = [self._first(component) for component in components]
            trials = Trials(self._wanted.model, stops, few, self._settings, self._folder)
            masked = Masked(
                self._wanted.model, few, self._settings, self._folder, self._wanted.recouple
            )
            crossed = self._crossed(components, observed, samples)
        found = []
        for component in components:
            for each in (trials, crossed):
                if each is not None:
                    each.advance()
            late = self._settings.limits.late(_HALF)
            tools = (None, None, None) if late else (trials, masked, crossed)
            found.append(self._curve(component, observed, count, tools))
            self._progress(1)
        _complete(found)
        return sorted(found, key=lambda each: int(each["component"]))

    def _crossed(
        self, components: Sequence[Component], observed: Observed, samples: int
    ) -> Crossed | None:
        """Prepare to judge those with few rows by samples that they are not fitted on."""
        short = [c for c in components if _short(c, observed)]
        if not short or not self._wanted.compensate or _samples(self._batches) < _LEAST_HALVED:
            return None
        return Crossed(
            self._wanted.model,
            self._wanted.coupling,
            short,
            [self._first(component) for component in components],
            self._batches,
            samples=samples,
            settings=self._settings,
            folder=self._folder,
        )

    def _sorted(self) -> list[Component]:
        return sorted(self._wanted.components, key=lambda c: self._position[self._first(c)])

    def _first(self, component: Component) -> ir.Node:
        return min((sink.node for sink in component.sinks), key=self._position.__getitem__)

    def _curve(
        self,
        component: Component,
        observed: Observed,
        count: int,
        tools: tuple[Trials | None, Masked | None, Crossed | None],
    ) -> dict[str, Any]:
        wanted = self._wanted
        readers, rest = parts(
            component, wanted.coupling, observed.grams, compensate=wanted.compensate
        )
        cost = extra(rest, component, wanted.coupling, observed)
        rank = wanted.ranks.get(component.index)
        short = _short(component, observed)
        if rank is None and (short or not (readers or cost.any())):
            rank = wanted.fallback.get(component.index)
        size, blocks = len(component.atoms), component.blocks
        unit = 1 if blocks is None else len(np.unique(blocks))
        kept = atoms_kept(size, unit, wanted.keep)
        runs = tools[0] is not None and (not rest or wanted.recouple is not None)
        tried = levels(size // unit - kept, count) if runs else []
        task = Task(size, [p.reader for p in readers], cost, blocks, kept, rank, tried)
        removal = remove(task)
        losses = removal.errors
        if tried:
            if short and tools[2] is not None and not rest and rank is not None:
                found = tools[2].losses(component, task, _changes)
            else:
                found = self._tried(component, removal, readers, tools[:2], exact=not rest)
            losses = interpolated(removal.errors, found)
        return {
            "component": component.index,
            "order": component.atoms[removal.order],
            "unit": removal.unit,
            "errors": removal.errors,
            "losses": losses,
            "tried": tools[0] is not None or not wanted.run,
        }

    def _tried(
        self,
        component: Component,
        removal: Removal,
        readers: Sequence[Part],
        tools: tuple[Trials | None, Masked | None],
        *,
        exact: bool,
    ) -> dict[int, float]:
        """Run the model at every level; atoms with other readers are masked, not only weights."""
        trials, masked = tools
        assert trials is not None
        assert masked is not None
        found = {}
        for rounds, weights in removal.weights.items():
            changes = _changes(readers, weights)
            if exact:
                found[rounds] = trials.loss(changes)
            else:
                gone = component.atoms[removal.order[: rounds * removal.unit]]
                found[rounds] = masked.loss(gone, changes)
        return found

    def _budget(self, components: Sequence[Component]) -> tuple[int, int]:
        """Choose levels and samples by the work that they need."""
        runs, loads = self._behind()
        firsts = [0 if _masked(c) else self._position[self._first(c)] for c in components]
        once = float(sum(runs[i] for i in firsts)) / self._samples_of_shapes()
        loaded = _LOAD * float(sum(loads[i] for i in firsts))
        total = sum(batch.samples for batch in self._batches)
        for count, samples in _TRIALS:
            if count * (once * min(samples, total) + loaded) <= _WORK:
                return count, samples
        return _TRIALS[-1]

    def _behind(self) -> tuple[Array, Array]:
        """Return multiply-accumulates, and elements of constants, from every node to the end."""
        macs, weights = np.zeros((2, len(self._position) + 1))
        alive = np.ones(self._wanted.coupling.size + 1, bool)
        for each in self._wanted.coupling.work:
            macs[self._position.get(each.node, 0)] += each.count(alive)
        for node, i in self._position.items():
            fixed = (v.const_value for v in node.inputs if v is not None and v.is_initializer())
            weights[i] = sum(tensor.size for tensor in fixed if tensor is not None)
        return np.cumsum(macs[::-1])[::-1], np.cumsum(weights[::-1])[::-1]

    def _samples_of_shapes(self) -> int:
        """Return how many samples the run had whose shapes the coupling knows."""
        for value in self._wanted.model.graph.inputs:
            shape = self._wanted.coupling.shapes.get(value.name or "", ())
            if self._free and shape:
                return max(1, shape[0])
        return max(1, self._batches[0].samples) if self._batches else 1


def _masked(component: Component) -> bool:
    """Tell whether trials run the whole model: something else than layers reads the component."""
    sinks = (sink for sink in component.sinks if sink.kind != "heads")
    return any(layer_of(sink) is None for sink in sinks)


def _short(component: Component, observed: Observed) -> bool:
    """Tell whether a layer has too few rows for its Gram matrix to decide an order."""
    for sink in component.sinks:
        layer = layer_of(sink)
        if layer is None or layer.key not in observed.grams:
            continue
        moments = observed.grams.read(layer.key)
        if moments.rows < _FEW_ROWS * moments.products.shape[-1]:
            return True
    return False


def _samples(batches: Sequence[Batch]) -> int:
    return sum(batch.samples for batch in batches)


def _changes(readers: Sequence[Part], weights: Sequence[Array]) -> list[Change]:
    """Put the groups of every layer together again."""
    changed: dict[tuple[ir.Node, int], Change] = {}
    for part, weight in zip(readers, weights, strict=True):
        key = part.layer.node, part.layer.constant
        if key not in changed:
            changed[key] = part.layer, part.layer.matrices()
        changed[key][1][part.group] = weight
    return list(changed.values())


def _complete(curves: Sequence[dict[str, Any]]) -> None:
    """Put the local errors of curves that time did not suffice for on the scale of the others."""
    known = [c for c in curves if c["tried"] and c["errors"][-1] > 0]
    scales = [float(c["losses"][-1] / c["errors"][-1]) for c in known]
    scale = float(np.median(scales)) if scales else 1.0
    for curve in curves:
        if not curve["tried"]:
            curve["losses"] = curve["errors"] * scale
