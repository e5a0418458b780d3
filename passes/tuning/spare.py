"""The smallest set of layers to leave in float so that the loss stays within a bound.

Layers are ranked by what quantizing each alone costs (:mod:`converter.search`). The shortest head
of that order that keeps the bound is searched for by doubling and halving, and layers of it that
turn out not to be needed are quantized again. Every set is measured as it would be written. The
number of measurements is bounded, not their time, so the same input gives the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from converter.core import graph as g
from converter.core.contract import Outcome, Skip
from converter.errors import PreconditionError
from converter.measure.damage import Damage, DamageMeter
from converter.search.probe import Work
from converter.search.sensitivity import examine
from passes.affine.numbers import Numbers

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from converter.core.context import Arrays, Batch, Context, Dataset, Services

MOST_MEASUREMENTS = 24
MOST_SAMPLES = 64
_RANKING_SAMPLES = 16
_REFINED = 12


@dataclass
class Memory:
    """What was chosen for the whole model, for the sets of layers that are tried after it.

    Attributes:
        numbers: Of all layers; None before the first run.
        notes: On how they were chosen.
        smoothed: Whether smoothing brought transformers closer to float; None: not known.
    """

    numbers: Numbers | None = None
    notes: tuple[str, ...] = ()
    smoothed: bool | None = None

    def recall(self, plain: Numbers) -> Numbers:
        """Return what was chosen, and plain numbers for what only this set of layers needs."""
        assert self.numbers is not None
        grids = {name: self.numbers.grids.get(name, grid) for name, grid in plain.grids.items()}
        return replace(plain, grids=grids, weights=self.numbers.weights, biases=self.numbers.biases)


@dataclass
class Remembering:
    """Services that observe a value once, however many clones of one model ask for it."""

    services: Services
    found: dict[Any, Any] = field(default_factory=dict)

    def run(
        self, model: ir.Model, feeds: Iterable[Arrays], outputs: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Run a model."""
        return self.services.run(model, feeds, outputs)

    def collect(
        self, model: ir.Model, requests: Sequence[Any], dataset: Dataset
    ) -> Mapping[Any, Any]:
        """Observe what has not been observed yet."""
        missing = [request for request in requests if request not in self.found]
        if missing:
            self.found.update(self.services.collect(model, missing, dataset))
        return {request: self.found[request] for request in requests}


def within(
    quantize: Callable[[ir.Model, Context, tuple[str, ...]], Outcome],
    models: tuple[ir.Model, ir.Model],
    context: Context,
    bound: float,
) -> Outcome:
    """Quantize a model but for as few layers as keep the loss within a bound.

    Args:
        quantize: Quantizes a model in place, leaving the named layers in float.
        models: The model, which is quantized in place; and a clone at the opset of the result,
            which stays as it is.
        context: Runs models; its samples decide.
        bound: Largest loss, as of :class:`converter.measure.damage.Damage`.

    Raises:
        PreconditionError: Quantizing changed the opset in a way not foreseen.
    """
    model, original = models
    if context.services is not None:
        context = replace(context, services=Remembering(context.services))
    trial = original.clone()
    if not quantize(trial, context, ()).modified:
        return quantize(model, context, ())
    if g.opset(trial) != g.opset(original):
        raise PreconditionError(
            f"max_loss cannot compare opset {g.opset(original)} with opset {g.opset(trial)}",
            where="max_loss",
            hint=f"put convert_opset:to={g.opset(trial)} before the pass",
        )

    def write(names: tuple[str, ...]) -> ir.Model:
        made = original.clone()
        quantize(made, context, names)
        return made

    spared = spare(original, trial, write, context, bound)
    outcome = quantize(model, context, spared.names)
    reason = f"in float to keep max_loss={bound:g}"
    skipped = [Skip(spared.labels.get(name, name), reason) for name in spared.names]
    return replace(
        outcome,
        skipped=(*outcome.skipped, *skipped),
        notes=(*outcome.notes, spared.note(bound)),
    )


@dataclass
class Spared:
    """What was left in float.

    Attributes:
        names: The layers, the most harmful first.
        before: Damage with all layers quantized.
        after: Damage with these left in float.
        saved: Loss that each of them takes away, where it was measured last.
        measurements: Sets that were measured.
        samples: On so many samples.
        labels: Names of layers with their operators.
    """

    names: tuple[str, ...]
    before: Damage
    after: Damage
    saved: dict[str, float] = field(default_factory=dict)
    measurements: int = 1
    samples: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    def note(self, bound: float) -> str:
        """Say what was done, and why."""
        words = f"max_loss={bound:g}: "
        found = f"loss {self.before.loss:.3g} ({self.before.measure}) on {self.samples} samples"
        if not self.names:
            return f"{words}{found}, so every layer is quantized"
        layers = ", ".join(
            name + (f" (saves {self.saved[name]:.2g})" if name in self.saved else "")
            for name in self.names
        )
        return (
            f"{words}{found} with all layers quantized, {self.after.loss:.3g} with "
            f"{len(self.names)} left in float, found by {self.measurements} measurements: {layers}"
        )


def spare(
    original: ir.Model,
    quantized: ir.Model,
    write: Callable[[tuple[str, ...]], ir.Model],
    context: Context,
    bound: float,
) -> Spared:
    """Find layers to leave in float.

    Args:
        original: The float model, at the opset of the quantized one.
        quantized: With all layers quantized.
        write: Returns the model with the named layers left in float.
        context: Runs models; its samples decide.
        bound: Largest loss, as of :class:`converter.measure.damage.Damage`.
    """
    assert context.dataset is not None
    search = _Search(original, write, context, list(islice(context.dataset, MOST_SAMPLES)))
    before = search.damage_of(quantized)
    search.known[()] = before
    spared = Spared((), before, before, samples=sum(b.samples for b in search.batches))
    if before.loss <= bound:
        return spared
    spared.labels = _ranked(original, quantized, context)
    ranked = list(spared.labels)
    count = search.shortest(ranked, bound)
    names, saved = search.without_needless(ranked[:count], bound)
    spared.names, spared.saved = names, saved
    spared.after = search.measure(names)
    spared.measurements = len(search.known)
    return spared


def _ranked(original: ir.Model, quantized: ir.Model, context: Context) -> dict[str, str]:
    """Return the labels of the changed layers by name, the most harmful alone first."""
    assert context.dataset is not None

    def work(first: Path, second: Path) -> Work:
        return Work(first, second, context.settings, _RANKING_SAMPLES, refine=_REFINED, both=False)

    found = examine(
        original,
        quantized,
        context.dataset,
        settings=context.settings,
        work=work,
        progress=context.progress,
    )
    rows = [row for row in found["layers"] if row["alone"] is not None]
    rows.sort(key=lambda row: -row["alone"]["loss"])
    return {row["name"]: f"{row['name']} ({row['op_type']})" for row in rows}


class _Search:
    """Measures sets of layers, each once."""

    def __init__(
        self,
        original: ir.Model,
        write: Callable[[tuple[str, ...]], ir.Model],
        context: Context,
        batches: Sequence[Batch],
    ) -> None:
        self.write = write
        self.context = context
        self.batches = batches
        self.known: dict[tuple[str, ...], Damage] = {}
        self.expected = self._run(original)

    def _run(self, model: ir.Model) -> list[dict[str, Any]]:
        return self.context.run(model, [batch.inputs for batch in self.batches])

    def damage_of(self, model: ir.Model) -> Damage:
        """Compare a model's outputs with the float model's."""
        meter = DamageMeter()
        for batch, old, new in zip(self.batches, self.expected, self._run(model), strict=True):
            meter.update(old, new, batch.targets, batch.samples)
        return meter.result()

    def measure(self, names: Sequence[str]) -> Damage:
        """Return the damage with these layers in float."""
        key = tuple(names)
        if key not in self.known:
            self.known[key] = self.damage_of(self.write(key))
        return self.known[key]

    def shortest(self, ranked: Sequence[str], bound: float) -> int:
        """Return how many of the first layers must stay in float: doubling, then halving."""
        low, high = 0, 1
        while high < len(ranked) and self.measure(ranked[:high]).loss > bound:
            low, high = high, 2 * high
        high = min(high, len(ranked))
        while high - low > 1 and len(self.known) < MOST_MEASUREMENTS:
            middle = (low + high) // 2
            if self.measure(ranked[:middle]).loss > bound:
                low = middle
            else:
                high = middle
        return high

    def without_needless(
        self, names: Sequence[str], bound: float
    ) -> tuple[tuple[str, ...], dict[str, float]]:
        """Quantize again what need not stay in float, from the least harmful on.

        Returns:
            The layers that must stay, and what each saves where that was measured.
        """
        kept = list(names)
        saved: dict[str, float] = {}
        for name in reversed(names):
            if len(self.known) >= MOST_MEASUREMENTS:
                break
            rest = [other for other in kept if other != name]
            if not rest:
                saved[name] = self.known[()].loss - self.measure(kept).loss
                continue
            loss = self.measure(rest).loss
            if loss <= bound:
                kept = rest
            else:
                saved[name] = loss - self.measure(kept).loss
        return tuple(kept), {name: saved[name] for name in kept if name in saved}
