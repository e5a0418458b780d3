"""``cast``: compute in float16, and store in float16 or bfloat16, where the ranges allow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from passes.precision.edit import Editor
from passes.precision.plan import CAST_BYTES, Caution, Losses, Plan, Planner, Settings
from passes.precision.ranges import Ranges, observe
from passes.precision.rounding import FORMATS, Format
from passes.precision.trial import Trial, make_rounding_real

if TYPE_CHECKING:
    from converter.calibration.minmax import MinMax
    from converter.core.context import Context

_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_FIRST_OPSET = {"float16": 6, "bfloat16": 13}
_EXACT_SIZE_BYTES = 8 << 20
_SLOW = (
    "onnxruntime's CPU provider has few float16 kernels and casts around the other nodes: expect "
    "this model to be slower there, and faster on hardware that computes in float16"
)
_STORED = (
    "weights are stored in {0} and widened when the model is loaded; computation is in float32, "
    "because {1}"
)


@dataclass(frozen=True)
class Cast(Pass):
    """Halve a float32 model: compute in 16 bits where that is safe, store weights in 16 bits.

    With calibration data a node stays in float32 when a value that it reads or makes leaves the
    range of the type, or is lost in it; without data, delicate operators stay (exp, normalization,
    division, long sums). Weights of nodes that stay are stored in 16 bits and widened by a Cast,
    which onnxruntime computes once. A constant that would overflow stays as it is. With data, the
    result is run: more nodes stay as long as an output is not finite or below ``sqnr``.
    """

    name: ClassVar[str] = "cast"
    summary: ClassVar[str] = "compute in float16 or bfloat16 where observed ranges allow it"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "prune", "prune_channels", "drop_layers"}
    )
    changes_interface: ClassVar[bool] = True  # with io=convert

    to: Annotated[Literal["float16", "bfloat16"], Param("the 16-bit type")] = "float16"
    io: Annotated[Literal["keep", "convert"], Param("types of the model's inputs and outputs")] = (
        "keep"
    )
    limit: Annotated[
        float, Param("largest observed magnitude that is computed in 16 bits", gt=0, le=65504)
    ] = 16384.0
    sqnr: Annotated[
        float, Param("decibels that every output must reach on the data, else more stays", ge=0)
    ] = 35.0
    keep: Annotated[
        tuple[str, ...], Param("nodes that compute in float32: name, glob or op:TYPE")
    ] = ()
    include: Annotated[tuple[str, ...], Param("nodes to convert: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave alone, weights and all")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Convert what can be converted; see :class:`Outcome` for what was left and why.

        Raises:
            ConverterError: The model cannot be run on the calibration data.
        """
        skipped = [
            Skip(pattern, "matches no node")
            for pattern in dict.fromkeys((*self._unmatched(model), *self._keep_unmatched(model)))
        ]
        skipped += [Skip(f.name, "model functions stay as they are") for f in _float_bodies(model)]
        work = _Work(model, context, self)
        reason = work.refusal()
        if reason:
            skipped.append(Skip("model", reason))
            return Outcome(modified=False, skipped=tuple(skipped))
        return work.run(skipped)

    def may_change_interface(self) -> bool:
        """Tell whether inputs and outputs change their type: only on request."""
        return self.io == "convert"

    def _unmatched(self, model: ir.Model) -> tuple[str, ...]:
        return Selection(self.include, self.exclude).unmatched(list(g.walk(model)))

    def _keep_unmatched(self, model: ir.Model) -> tuple[str, ...]:
        return Selection(self.keep).unmatched(list(g.walk(model)))


def _float_bodies(model: ir.Model) -> list[ir.Function]:
    """Return the functions that hold constants or are anything but a few nodes."""
    return [function for function in model.functions.values() if len(function.graph)]


class _Work:
    """One run on one model."""

    def __init__(self, model: ir.Model, context: Context, settings: Cast) -> None:
        self.model = model
        self.context = context
        self.settings = settings
        self.format: Format = FORMATS[settings.to]
        self._selection = Selection(settings.include, settings.exclude)
        self._losses: Losses = {}
        self._outputs: dict[str, MinMax] = {}
        self._planner = Planner(model, self.format, self._losses)

    def refusal(self) -> str:
        """Say why nothing is done at all; "" when there may be something to do."""
        if not any(self._planner.slots.values()):
            return "it computes nothing in float32"
        first = _FIRST_OPSET[self.settings.to]
        if g.opset(self.model) < first:
            return f"Cast to {self.settings.to} came with opset {first} (see convert_opset)"
        types, nodes = self._planner.types, self._planner.nodes
        if self.settings.include:
            return ""
        if any(types.of(value) in _HALVES for node in nodes for value in node.inputs):
            return (
                "it holds 16-bit values already, and what is float32 beside them is so on purpose "
                "(include=* converts it all the same)"
            )
        return ""

    def run(self, skipped: list[Skip]) -> Outcome:
        """Find the least caution with which the model works, and convert it."""
        observed = self._observe()
        caution, notes = self._caution(observed)
        if caution is None:
            skipped.append(Skip("model", notes[-1]))
            return Outcome(modified=False, skipped=tuple(skipped), notes=notes)
        before = _weight(self.model)
        trial = self.model.clone()
        plan, editor = self._edit(trial, caution, observed, final=True)
        skipped += [*plan.skips(), *editor.done.skipped]
        counts = {name: number for name, number in editor.done.counts.items() if number}
        if not counts:
            return Outcome(modified=False, skipped=tuple(skipped), notes=notes)
        if self.settings.io == "keep" and _weight(trial) > before:
            skipped.append(Skip("model", "the casts would take more bytes than the weights save"))
            return Outcome(modified=False, skipped=tuple(skipped))
        del trial
        self._edit(self.model, caution, observed, final=True, planner=self._planner)
        counts["nodes_kept"] = len(plan.reasons)
        notes = (*notes, *self._notes(plan))
        return Outcome(modified=True, counts=counts, skipped=tuple(skipped), notes=notes)

    def _observe(self) -> dict[str, MinMax]:
        """Return what the data shows of the values of the main graph, by name."""
        dataset = self.context.dataset
        if dataset is None or dataset.synthetic:
            return {}
        values = self._planner.values(self.model.graph)
        found = observe(self.model, values, self.context)
        return {value.name or "": seen for value, seen in found.items()}

    def _caution(self, observed: dict[str, MinMax]) -> tuple[Caution | None, tuple[str, ...]]:
        """Try from the boldest plan on; the last one changes nothing but the weights.

        Returns:
            The level, None when even the last one breaks the model, and notes.
        """
        if self.context.dataset is None:
            return Caution.RANGES, ("no data: delicate operators stay in float32",)
        trial = Trial(self.model, self.context, self.settings.sqnr)
        self._outputs = trial.outputs()
        notes: tuple[str, ...] = ()
        for caution in Caution:
            candidate = self.model.clone()
            plan, editor = self._edit(candidate, caution, observed)
            if not plan.slots and not editor.done.counts["weights_rounded"]:
                return caution, notes
            if self.settings.to == "float16":
                make_rounding_real(candidate, plan.results())
            flaw = trial.flaw(candidate)
            if not flaw:
                return caution, notes
            if caution < Caution.STORAGE:
                notes = (*notes, f"more was left in float32, since {flaw.text}")
        assert flaw is not None
        notes = (*notes, f"with nothing but weights in {self.settings.to}, {flaw.text}")
        return None if flaw.broken else Caution.STORAGE, notes

    def _edit(
        self,
        model: ir.Model,
        caution: Caution,
        observed: dict[str, MinMax],
        *,
        final: bool = False,
        planner: Planner | None = None,
    ) -> tuple[Plan, Editor]:
        planner = planner or Planner(model, self.format, self._losses)
        here = {v: observed[v.name] for v in _named(model) if v.name in observed}
        ranges = Ranges(here, self.format, self.settings.limit)
        kept = Selection(self.settings.keep)
        settings = Settings(
            self.format,
            touchable=lambda node: node in self._selection,
            kept=lambda node: bool(self.settings.keep) and node in kept,
            caution=caution,
        )
        plan = planner.plan(settings, ranges)
        editor = Editor(model, plan, self.format)
        editor.edit()
        if final and self.settings.io == "convert":
            named = {v: self._outputs.get(v.name or "") for v in model.graph.outputs}
            seen = {v: found for v, found in named.items() if found is not None}
            editor.convert_ports(Ranges({**here, **seen}, self.format, self.format.largest))
        model.graph.sort()
        return plan, editor

    def _notes(self, plan: Plan) -> tuple[str, ...]:
        name = self.settings.to
        if name == "bfloat16":
            reason = "onnxruntime has no CPU kernels for bfloat16"
            return (_STORED.format(name, reason),)
        if plan.slots:
            return (_SLOW,)
        return (_STORED.format(name, "no node could be converted"),)


def _named(model: ir.Model) -> list[ir.Value]:
    values = list(model.graph.inputs)
    for node in model.graph:
        values += node.outputs
    return values


def _weight(model: ir.Model) -> int:
    """Return about the size of the file: exactly where that is cheap."""
    size = g.footprint(model)
    if size.tensor_bytes <= _EXACT_SIZE_BYTES:
        return len(ir.to_proto(model).SerializeToString())
    return size.tensor_bytes + CAST_BYTES * size.nodes
