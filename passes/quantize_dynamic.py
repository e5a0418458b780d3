"""``quantize_dynamic``: int8 weights, ranges of activations found at every run; needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core import graph as g
from converter.core.contract import Outcome, Pass
from converter.core.params import Param
from converter.core.select import Selection
from passes.dynamic.gelu import join
from passes.dynamic.plan import LEAST_OPSET, plan
from passes.dynamic.residual import keep_apart
from passes.dynamic.write import Writer

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Multiply matrices on 8-bit integers whose ranges are found anew at every run.

    Weights become int8, symmetric, with one scale per output channel, so that zeros stay zero; the
    activations of every run are rounded to uint8 on the range that they have then. MatMul, Gemm and
    LSTM compute so, in sub-graphs and functions too, and tables that Gather reads by row are stored
    as int8 with one scale per row. Convolutions and GRU stay in float.
    """

    name: ClassVar[str] = "quantize_dynamic"
    summary: ClassVar[str] = "multiply matrices on 8-bit integers, without calibration data"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "prune", "prune_channels", "drop_layers"}
    )
    changes_interface: ClassVar[bool] = True  # the opset, where it is too old for the operators

    per_channel: Annotated[bool, Param("one scale per output channel of a weight")] = True
    embeddings: Annotated[bool, Param("store tables that are read by row as int8 too")] = True
    include: Annotated[tuple[str, ...], Param("nodes to quantize: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave in float")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize every product that pays; see :class:`Outcome` for what was left and why."""
        selection = Selection(self.include, self.exclude)
        skipped = selection.misses(g.walk(model))
        raised, notes = self._raise_opset(model, selection, context)
        found = plan(model, selection, tables=self.embeddings)
        skipped += found.skipped
        if not found:
            return Outcome(modified=raised, skipped=tuple(skipped), notes=notes)
        joined = join(model, found.products)
        writer = Writer(model, per_channel=self.per_channel)
        writer.write(found)
        counts = {**writer.counts, **({"gelus_joined": joined} if joined else {})}
        apart = keep_apart(model) if found.products else 0
        if apart:
            counts["sums_kept_apart"] = apart
            notes += (
                "the sums before LayerNormalization are written as Sum: onnxruntime would join "
                "Add and LayerNormalization to an operator that takes longer",
            )
        return Outcome(modified=True, counts=counts, skipped=tuple(skipped), notes=notes)

    def _raise_opset(
        self, model: ir.Model, selection: Selection, context: Context
    ) -> tuple[bool, tuple[str, ...]]:
        """Raise an opset that is too old, if there is anything to quantize at all."""
        from passes.affine.opset import PER_CHANNEL_OPSET, raise_opset
        from passes.opset.convert import convert

        before = g.opset(model)
        if not 0 < before < LEAST_OPSET:
            return False, ()
        if not plan(model, selection, tables=self.embeddings, opset=LEAST_OPSET).needs_opset:
            return False, ()
        if context.keep_opset:
            return False, (f"opset {before} was to be kept",)
        if context.dataset is None:
            reason = convert(model, PER_CHANNEL_OPSET, context).reason
        else:
            reason = raise_opset(model, context)
        if reason:
            return False, (f"opset {before} stays: {reason}",)
        return True, (f"opset {before} was raised to {PER_CHANNEL_OPSET} for integer products",)
