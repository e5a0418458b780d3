"""Static 8-bit quantization: ranges from calibration data, one grid per value, QDQ form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core import graph as g
from converter.core.contract import Need, Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from converter.errors import LimitExceededError, ModelError
from passes.affine.insert import INT4_OPSET, Writer
from passes.affine.numbers import Numbers
from passes.affine.observed import Choice, Observed
from passes.affine.opset import PER_CHANNEL_OPSET, raise_opset
from passes.affine.pay import slower_note
from passes.affine.placement import Placement, place
from passes.affine.portable import Sums, portability_note
from passes.affine.qoperator import write_operators
from passes.affine.rules import Rules, rules_of
from passes.affine.uneven import uneven_note
from passes.dynamic.encoder import Parts, Wish, quantize_parts
from passes.equalize import Equalize
from passes.opset.convert import take_over
from passes.quantize_weights import QuantizeWeights
from passes.tuning.decide import FEW_SAMPLES, Options, constant, decide, unfit
from passes.tuning.spare import Memory, within
from passes.tuning.tuner import Tuner

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context, Dataset


_AUTO_PERCENTILE = 99.999
"""Of what method=auto tries; keeping less than this hurts more models than it helps."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Let the model compute on 8-bit integers wherever onnxruntime does so faster than in float.

    Weights become int8, symmetric, with one scale per output channel; activations uint8 with one
    scale and zero point per tensor from the range seen in the calibration data; biases int32 on the
    product of both scales. Zero is exact on every grid, so what pruning set to zero stays zero.
    """

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "run on 8-bit integers, with ranges from calibration data"
    reads_weights: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "prune", "prune_channels", "drop_layers"}
    )
    changes_interface: ClassVar[bool] = True  # the opset, where it is too old for the operators

    method: Annotated[
        Literal["auto", "minmax", "average", "percentile", "mse", "entropy"],
        Param("how ranges are chosen; auto also decides on rounding and biases, by held-out data"),
    ] = "auto"
    percentile: Annotated[
        float, Param("percent of the elements that method=percentile keeps", gt=50.0, le=100.0)
    ] = 99.99
    rounding: Annotated[
        Literal["auto", "nearest", "gptq"] | None,
        Param("of weights; gptq makes later weights up for earlier ones; default: as method"),
    ] = None
    correct_bias: Annotated[
        bool | None,
        Param("biases make up for what rounding does to the means; default: with method=auto"),
    ] = None
    refine: Annotated[
        bool, Param("then move scales and zero points where held-out outputs gain by it (slow)")
    ] = False
    weights: Annotated[
        Literal["int8", "int4"],
        Param("int4: half the size; layers that suffer most keep 8 bits"),
    ] = "int8"
    activations: Annotated[
        Literal["auto", "uint8", "int8", "uint16", "int16", "none"],
        Param("integers of activations; auto: what the target likes best; none: weights only"),
    ] = "auto"
    target: Annotated[
        Literal["ort-cpu", "ort-cuda", "tensorrt", "qnn", "openvino"],
        Param("what will run the model: decides which operators run on integers, and how"),
    ] = "ort-cpu"
    format: Annotated[
        Literal["qdq", "qoperator"],
        Param("conversions around operators, or the integer operators written out"),
    ] = "qdq"
    per_channel: Annotated[bool, Param("one scale per output channel of a weight")] = True
    symmetric: Annotated[bool, Param("grids of activations have zero in their middle")] = False
    portable: Annotated[
        bool, Param("7-bit weights in layers whose sums saturate on x86 processors without VNNI")
    ] = False
    speed: Annotated[
        Literal["balanced", "max"],
        Param("balanced: float where integers are estimated to be slower; max: all that fuses"),
    ] = "balanced"
    transformers: Annotated[
        Literal["auto", "dynamic", "static"],
        Param("ranges of transformers and LSTM: auto is dynamic, static where a method is named"),
    ] = "auto"
    max_loss: Annotated[
        float | None,
        Param(
            "leave as few layers in float as keep the loss within this: mean KL divergence of "
            "class scores, 1 - cosine of other outputs",
            gt=0.0,
        ),
    ] = None
    equalize: Annotated[
        bool, Param("first make ranges of channels equal from layer to layer, as equalize does")
    ] = False
    include: Annotated[tuple[str, ...], Param("nodes to quantize: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave in float")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activations != "none":
            rules_of(self.target, self.activations, symmetric=self.symmetric)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize every node that pays; see :class:`Outcome` for what was left and why.

        Raises:
            MissingDataError: There is no calibration data.
            ConverterError: The model cannot be run on the calibration data.
        """
        if not self.equalize:
            return self._within_loss(model, context)
        first = Equalize(exclude=self.exclude).apply(model, context)
        return _joined(first, self._within_loss(model, context))

    def _within_loss(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize what keeps the loss within ``max_loss``."""
        memory = Memory()
        if self.max_loss is None:
            return self._quantize(model, context, memory)

        def quantize(given: ir.Model, inner: Context, spared: tuple[str, ...]) -> Outcome:
            return self._quantize(given, inner, memory, spared)

        original = model.clone()
        if self.activations != "none":
            self._raise_opset(original, Selection(self.include, self.exclude), context)
        return within(quantize, (model, original), context, self.max_loss)

    def _quantize(
        self, model: ir.Model, context: Context, memory: Memory, spared: tuple[str, ...] = ()
    ) -> Outcome:
        """Quantize all but some layers, with the numbers in memory or new ones."""
        if self.activations == "none":
            return self._weights_only(model, context, spared)
        selection = Selection(self.include, (*self.exclude, *spared))
        nodes = list(g.walk(model))
        skipped = selection.misses(nodes)
        older = model.clone() if g.opset(model) < self._opset[1] else None
        raised, notes = self._raise_opset(model, selection, context)
        if g.opset(model) < self._rules.opset_lowest:
            skipped += _too_old(model, selection, "; ".join(notes))
            notes += _nothing_note(skipped)
            return Outcome(modified=False, skipped=tuple(skipped), notes=notes)
        parts = self._dynamic_parts(model, selection, context, memory)
        ranges = Observed(model, selection, context, self._choice())
        plan = ranges.plan()
        skipped += (*parts.skipped, *plan.skipped)
        if not plan.units and not parts.counts and raised and older is not None:
            take_over(model, older)  # nothing is gained by the newer opset
            raised, notes = False, ()
        notes += (*parts.notes, *self._rules.notes(), *slower_note(ranges.declined))
        notes += uneven_note(plan, ranges.ranges(plan))
        if not plan.units:
            changed = raised or bool(parts.counts)
            notes += () if changed else _nothing_note(skipped)
            return Outcome(changed, parts.counts, tuple(skipped), notes)
        if memory.numbers is None:
            memory.numbers, memory.notes = self._numbers(ranges, plan)
            numbers = memory.numbers
        else:
            numbers = memory.recall(ranges.numbers(plan))
        notes += memory.notes
        if self.portable or (self.method == "auto" and self.max_loss is None):
            sums = Sums(model, plan, numbers, per_channel=ranges.per_channel)
            found = sums.saturating(context)
            numbers = sums.narrowed(found) if self.portable else numbers
            notes += portability_note(found, narrowed=self.portable)
        writer = Writer(model, numbers, per_channel=ranges.per_channel)
        writer.write(plan.units)
        if self.format == "qoperator":
            writer.counts["integer_operators"] = write_operators(model, plan.units)
        if self.per_channel and not ranges.per_channel:
            notes += (
                f"weights have one scale per tensor, because opset {g.opset(model)} knows no other",
            )
        if context.dataset is not None:
            notes += (_source_note(context.dataset),)
        counts = {**parts.counts, **writer.counts}
        return Outcome(modified=True, counts=counts, skipped=tuple(skipped), notes=notes)

    def _dynamic_parts(
        self, model: ir.Model, selection: Selection, context: Context, memory: Memory
    ) -> Parts:
        """Write what is better off with ranges found at run time, where the target can do that."""
        if self.target != type(self).target or self.activations not in {"auto", "uint8"}:
            said = "ranges are static: dynamic ones are uint8, and for ort-cpu"
            return Parts(notes=(said,) if self.transformers == "dynamic" else ())
        named = self.method != type(self).method
        everything = self.transformers == "dynamic" or (self.transformers == "auto" and not named)
        # The second normalization and the GELU of a smoothed layer cost some percent, and looking
        # for the factors costs two more runs of the data, which the plain path does without.
        smoothing = memory.smoothed if everything and self.speed != "max" else False
        wish = Wish(selection, everything, self.per_channel, smoothing)
        parts = quantize_parts(model, context, wish)
        memory.smoothed = parts.smoothed if memory.smoothed is None else memory.smoothed
        return parts

    def _numbers(self, ranges: Observed, plan: Placement) -> tuple[Numbers, tuple[str, ...]]:
        """Choose all numbers, by trying where that was asked for."""
        options = self._options()
        if not options.open and options.plain:
            return ranges.numbers(plan), ()
        reason = unfit(ranges.context.dataset, ranges.model)
        if self._rules.target.inputs_only:
            reason = (
                f"the others are made for operators fused as onnxruntime does, not {self.target}"
            )
        if reason:
            kept = "" if self.weights == "int8" else ", weights of 8 bits"
            return ranges.numbers(plan), (f"plain ranges and rounding{kept}: {reason}",)
        tuner = Tuner(
            ranges.model,
            plan,
            ranges.magnitudes,
            ranges.context,
            per_channel=ranges.per_channel,
        )
        share = _AUTO_PERCENTILE if self.method == "auto" else self.percentile
        try:
            return decide(tuner, lambda method: ranges.grids(plan, method, share), options)
        except LimitExceededError as error:
            said = f"{error.what}; fewer samples or --time-limit help"
        except ModelError as error:
            said = f"the model does not run in pieces: {error.what}"
        return ranges.numbers(plan), (f"plain ranges and rounding: {said}",)

    def _choice(self) -> Choice:
        """Return what will be asked of the calibration data."""
        return Choice(
            self._options().ranges,
            percentile=self.percentile,
            symmetric=self.symmetric,
            per_channel=self.per_channel,
            everything=self.speed == "max",
            target=self._rules.target,
            activations=self._rules.activations,
        )

    @property
    def _rules(self) -> Rules:
        return rules_of(self.target, self.activations, symmetric=self.symmetric)

    def _weights_only(self, model: ir.Model, context: Context, spared: tuple[str, ...]) -> Outcome:
        """Store weights as int8 with one scale per channel, and compute in float."""
        weights = QuantizeWeights(
            bits=8,
            block=0,
            symmetric=True,
            include=self.include,
            exclude=(*self.exclude, *spared),
        )
        return weights.apply(model, context)

    def _options(self) -> Options:
        """Return what is to be decided; naming a method leaves nothing open that is not named."""
        auto = self.method == "auto"
        rounding = self.rounding or ("auto" if auto else "nearest")
        correct = auto if self.correct_bias is None else self.correct_bias
        return Options(
            ranges=("minmax", "mse", "percentile") if auto else (self.method,),
            roundings=("nearest", "gptq") if rounding == "auto" else (rounding,),
            corrections=("none", "float", "student") if correct else ("none",),
            bits=4 if self.weights == "int4" else 8,
            refine=self.refine,
        )

    @property
    def _opset(self) -> tuple[int, int]:
        """The opset to raise a model to, and the one below which that is done."""
        rules = self._rules
        aim = max(rules.opset_needed, INT4_OPSET if self.weights == "int4" else 0)
        return aim, aim if self.per_channel or self.weights == "int4" else rules.opset_lowest

    def _raise_opset(
        self, model: ir.Model, selection: Selection, context: Context
    ) -> tuple[bool, tuple[str, ...]]:
        """Raise an opset that is too old, if there is anything to quantize at all."""
        before, rules = g.opset(model), self._rules
        aim, needed = self._opset
        if not 0 < before < needed:
            return False, ()
        if not place(model, selection, rules=replace(rules, opset=aim)).units:
            return False, ()
        if context.keep_opset:
            return False, (f"opset {before} was to be kept",)
        reason = raise_opset(model, context, aim)
        if reason:
            return False, (f"opset {before} stays: {reason}",)
        cause = {PER_CHANNEL_OPSET: "int8 weights"}.get(aim, "16-bit or 4-bit integers")
        return True, (f"opset {before} was raised to {aim} for {cause}",)


def _source_note(dataset: Dataset) -> str:
    """Say where ranges come from, and when that is too little."""
    count = dataset.samples
    said = f"ranges from {count} calibration sample{'' if count == 1 else 's'}"
    if dataset.synthetic:
        return f"{said} that were made up: real ones reach other ranges"
    if count < FEW_SAMPLES:
        return f"{said}, which is few: other inputs may lie beyond; give 32 to 200 typical ones"
    if constant(dataset):
        return f"{said} that are all equal: other inputs may lie beyond; give typical ones"
    return said


def _nothing_note(skipped: Iterable[Skip]) -> tuple[str, ...]:
    """Say what to do when the model is none to start from."""
    reasons = {skip.reason for skip in skipped}
    if "already quantized" in reasons:
        return ("the model is already quantized; for other settings start from the float model",)
    if any("the weight is float16" in reason for reason in reasons):
        return ("the model is in float16: start from the float32 model it was made of",)
    return ()


def _joined(equalized: Outcome, outcome: Outcome) -> Outcome:
    """Return the outcome of both steps; what could not be equalized is no loss to anybody."""
    channels = int(equalized.counts.get("channels_rescaled", 0))
    return replace(
        outcome,
        modified=equalized.modified or outcome.modified,
        counts={**equalized.counts, **outcome.counts},
        notes=(f"{channels} channels were equalized first", *outcome.notes),
    )


def _too_old(model: ir.Model, selection: Selection, reason: str) -> Iterator[Skip]:
    """Say what would have been quantized at a newer opset."""
    plan = place(model, selection, rules=Rules(opset=PER_CHANNEL_OPSET))
    yield from plan.skipped
    for unit in plan.units:
        if unit.row.weight is not None:
            yield Skip(g.label(unit.node), f"too old for QuantizeLinear: {reason}")
