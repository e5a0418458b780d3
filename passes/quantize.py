"""Static 8-bit quantization: ranges from calibration data, one grid per value, QDQ form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from converter.calibration.minmax import MinMax
from converter.calibration.statistic import Request
from converter.core import graph as g
from converter.core.contract import Need, Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from passes.affine.grid import Array, Grid, asymmetric, symmetric
from passes.affine.insert import Writer
from passes.affine.numbers import Numbers, WeightKey, weight_key
from passes.affine.opset import PER_CHANNEL_OPSET, PER_TENSOR_OPSET, raise_opset
from passes.affine.pay import slower_note, what_pays
from passes.affine.placement import Placement, place
from passes.affine.rules import Rules
from passes.affine.scale import largest
from passes.tuning.decide import Options, decide, unfit
from passes.tuning.tuner import Tuner
from passes.dynamic.encoder import quantize_parts

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_WIDEST = 1e30
"""Values beyond this are masks (minus infinity in disguise), and no grid of 256 steps fits them."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Let the model compute on 8-bit integers wherever onnxruntime does so faster than in float.

    Weights become int8, symmetric, with one scale per output channel; activations uint8 with one
    scale and zero point per tensor from the range seen in the calibration data; biases int32 on the
    product of both scales. Zero is exact on every grid, so what pruning set to zero stays zero.
    """

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "run on 8-bit integers, with ranges from calibration data"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    follows: ClassVar[frozenset[str]] = frozenset({"simplify", "prune"})
    changes_interface: ClassVar[bool] = True  # the opset, where it is too old for the operators

    method: Annotated[
        Literal["auto", "minmax"],
        Param("how ranges are chosen; auto also decides on rounding and biases, by held-out data"),
    ] = "auto"
    rounding: Annotated[
        Literal["auto", "nearest", "gptq"] | None,
        Param("of weights; gptq makes later weights up for earlier ones; default: as method"),
    ] = None
    correct_bias: Annotated[
        bool | None,
        Param("biases make up for what rounding does to the means; default: with method=auto"),
    ] = None
    per_channel: Annotated[bool, Param("one scale per output channel of a weight")] = True
    symmetric: Annotated[bool, Param("grids of activations have zero in their middle")] = False
    speed: Annotated[
        Literal["balanced", "max"],
        Param("balanced: float where integers are estimated to be slower; max: all that fuses"),
    ] = "balanced"
    transformers: Annotated[
        Literal["auto", "dynamic", "static"],
        Param("ranges of transformers and LSTM: auto is dynamic, static where a method is named"),
    ] = "auto"
    include: Annotated[tuple[str, ...], Param("nodes to quantize: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave in float")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize every node that pays; see :class:`Outcome` for what was left and why.

        Raises:
            MissingDataError: There is no calibration data.
            ConverterError: The model cannot be run on the calibration data.
        """
        selection = Selection(self.include, self.exclude)
        nodes = list(g.walk(model))
        skipped = [Skip(p, "matches no node") for p in selection.unmatched(nodes)]
        raised, notes = self._raise_opset(model, selection, context)
        if g.opset(model) < PER_TENSOR_OPSET:
            skipped += _too_old(model, selection, "; ".join(notes))
            return Outcome(modified=False, skipped=tuple(skipped), notes=notes)
        parts = quantize_parts(model, selection, context, everything=self._dynamic())
        ranges = _Ranges(model, selection, context, self)
        plan = ranges.plan()
        skipped += plan.skipped
        notes += (*parts.notes, *slower_note(ranges.declined))
        if not plan.units:
            changed = raised or bool(parts.counts)
            return Outcome(changed, parts.counts, tuple(skipped), notes)
        numbers, reasons = self._numbers(ranges, plan)
        notes += reasons
        writer = Writer(model, numbers, per_channel=ranges.per_channel)
        writer.write(plan.units)
        if self.per_channel and not ranges.per_channel:
            notes += (
                f"weights have one scale per tensor, because opset {g.opset(model)} knows no other",
            )
        if context.dataset is not None:
            notes += (f"ranges from {context.dataset.samples} calibration samples",)
        counts = {**parts.counts, **writer.counts}
        return Outcome(modified=True, counts=counts, skipped=tuple(skipped), notes=notes)

    def _dynamic(self) -> bool:
        """Tell whether transformers take their ranges at run time."""
        return self.transformers == "dynamic" or (
            self.transformers == "auto" and self.method == type(self).method
        )

    def _numbers(self, ranges: _Ranges, plan: Placement) -> tuple[Numbers, tuple[str, ...]]:
        """Choose all numbers, by trying where that was asked for."""
        options = self._options()
        if not options.open and options.plain:
            return ranges.numbers(plan), ()
        reason = unfit(ranges.context.dataset, ranges.model)
        if reason:
            return ranges.numbers(plan), (f"plain ranges and rounding: {reason}",)
        tuner = Tuner(
            ranges.model,
            plan,
            ranges.magnitudes,
            ranges.context,
            per_channel=ranges.per_channel,
        )
        return decide(tuner, lambda _: ranges.numbers(plan).grids, options)

    def _options(self) -> Options:
        """Return what is to be decided; naming a method leaves nothing open that is not named."""
        auto = self.method == "auto"
        rounding = self.rounding or ("auto" if auto else "nearest")
        correct = auto if self.correct_bias is None else self.correct_bias
        return Options(
            ranges=("minmax",) if auto else (self.method,),
            roundings=("nearest", "gptq") if rounding == "auto" else (rounding,),
            corrections=("none", "float", "student") if correct else ("none",),
        )

    def _raise_opset(
        self, model: ir.Model, selection: Selection, context: Context
    ) -> tuple[bool, tuple[str, ...]]:
        """Raise an opset that is too old, if there is anything to quantize at all."""
        before = g.opset(model)
        if not 0 < before < PER_CHANNEL_OPSET or (
            not self.per_channel and before >= PER_TENSOR_OPSET
        ):
            return False, ()
        if not place(model, selection, rules=Rules(opset=PER_CHANNEL_OPSET)).units:
            return False, ()
        if context.keep_opset:
            return False, (f"opset {before} was to be kept",)
        reason = raise_opset(model, context)
        if reason:
            return False, (f"opset {before} stays: {reason}",)
        return True, (f"opset {before} was raised to {PER_CHANNEL_OPSET} for int8 weights",)


def _too_old(model: ir.Model, selection: Selection, reason: str) -> Iterator[Skip]:
    """Say what would have been quantized at a newer opset."""
    plan = place(model, selection, rules=Rules(opset=PER_CHANNEL_OPSET))
    yield from plan.skipped
    for unit in plan.units:
        if unit.row.weight is not None:
            yield Skip(g.label(unit.node), f"too old for QuantizeLinear: {reason}")


class _Ranges:
    """Plans, looks at the ranges of what was planned, and plans again without what has none."""

    def __init__(
        self, model: ir.Model, selection: Selection, context: Context, settings: Quantize
    ) -> None:
        self.model = model
        self.selection = selection
        self.context = context
        self.settings = settings
        self.per_channel = settings.per_channel and g.opset(model) >= PER_CHANNEL_OPSET
        self.magnitudes: dict[WeightKey, Array] = {}
        self._ranges: dict[ir.Value, MinMax] = {}
        self._unusable: dict[ir.Value, str] = {}
        self.declined: dict[ir.Node, str] = {}

    def plan(self) -> Placement:
        """Return a placement all of whose values and weights are finite."""
        if self.settings.speed == "balanced":
            self.declined = what_pays(self.context, self.model, self._place)
        while True:
            plan = self._place(self.declined)
            known = len(self._unusable)
            self._weigh(plan)
            if len(self._unusable) == known:
                self._observe(plan)
            if len(self._unusable) == known:
                return plan

    def _place(self, declined: Mapping[ir.Node, str]) -> Placement:
        return place(
            self.model,
            self.selection,
            self._unusable,
            symmetric=self.settings.symmetric,
            declined=declined,
        )

    def numbers(self, plan: Placement) -> Numbers:
        """Return the grid of every value of the plan, and the magnitudes of all weights."""
        fixed = _fixed_ranges(plan)
        make = symmetric if self.settings.symmetric else asymmetric
        roots = plan.ranged()
        made: dict[ir.Value, Grid] = {}
        for root in dict.fromkeys(roots.values()):
            low, high = fixed.get(root) or (self._ranges[root].low, self._ranges[root].high)
            made[root] = make(low, high)
        grids = {value.name or "": made[root] for value, root in roots.items()}
        return Numbers(grids, self.magnitudes)

    def _weigh(self, plan: Placement) -> None:
        """Look at every weight once: its magnitudes make the scales."""
        for unit in plan.units:
            if unit.row.weight is None:
                continue
            key = weight_key(unit, per_channel=self.per_channel)
            if key in self.magnitudes:
                continue
            weight = g.constant_array(unit.weight)
            assert weight is not None
            self.magnitudes[key] = largest(weight, key[1])
            if not np.isfinite(self.magnitudes[key]).all():
                self._unusable[unit.weight] = "the weight holds NaN or infinity"

    def _observe(self, plan: Placement) -> None:
        fixed = _fixed_ranges(plan)
        roots = dict.fromkeys(plan.ranged().values())
        wanted = [v for v in roots if v not in self._ranges and v not in fixed]
        if not wanted:
            return
        found = self.context.collect(self.model, [Request(v.name or "") for v in wanted])
        for value in wanted:
            self._ranges[value] = found[Request(value.name or "")]
            reason = _flaw(self._ranges[value])
            if reason:
                self._unusable[value] = reason


def _fixed_ranges(plan: Placement) -> dict[ir.Value, tuple[float, float]]:
    """Ranges that follow from the operator alone."""
    return {
        value: unit.row.output_range
        for unit in plan.units
        if unit.row.output_range is not None
        for value in unit.outputs
    }


def _flaw(seen: MinMax) -> str:
    """Say why a range cannot become a grid; "" when it can."""
    if not seen.seen:
        return "its values were never computed on the calibration data"
    if not seen.finite:
        return "its values were NaN or infinite on the calibration data"
    if max(-seen.low, seen.high) > _WIDEST:
        return "its values are too large for 8 bits"
    return ""
