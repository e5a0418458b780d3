"""``pack``: constants in the fewest bytes that onnxruntime turns back when it opens the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core import graph as g
from converter.core.contract import Outcome, Pass, Skip
from converter.core.forecast import Forecast, Saving
from converter.core.packed import is_packed
from converter.core.params import Param
from converter.core.select import Selection
from converter.errors import ConverterError
from passes.affine.opset import raise_opset, with_samples
from passes.opset.convert import take_over
from passes.storage.choose import choose
from passes.storage.find import find
from passes.storage.measure import run_time
from passes.storage.places import OLDEST_OPSET
from passes.storage.recode import recode
from passes.storage.settle import settle
from passes.storage.size import stored_bytes
from passes.storage.slim import slim
from passes.storage.tell import alternatives, nothing, told
from passes.storage.traces import drop_traces
from passes.storage.unpack import unpack

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context
    from passes.storage.settle import Settled

_WORTH_RAISING = 0.05
"""Share of the bytes of all constants that a newer opset must save."""
_WORTH = 0.99
_WORTH_AGAIN = 0.95
"""A file is rewritten only if its constants and nodes shrink to this share, a packed one to the
second: rounded weights show what fits them only when they are looked at once more."""


@dataclass(frozen=True)
class Pack(Pass):
    """Store each constant in the smallest form that costs nothing at run time.

    Zeros, repeated values, values on a coarse grid and float16 numbers need few bytes. They are
    written as small constants with standard operators behind them, which onnxruntime computes once,
    while it opens the file; it then runs the same operators on the same numbers as before. That is
    proven for every file: what onnxruntime makes of it is compared with what it makes of the plain
    model, at the optimisation levels basic and all. Where all optimisation is switched off, the
    decoders run with every call.
    """

    name: ClassVar[str] = "pack"
    summary: ClassVar[str] = "store constants in fewer bytes that become plain at load"
    follows: ClassVar[frozenset[str]] = frozenset(
        {
            *("simplify", "fuse", "eliminate", "fold_constants", "deduplicate", "convert_opset"),
            *("prune", "prune_channels", "drop_layers", "correct_bias", "equalize", "smooth"),
            *("quantize", "quantize_weights", "quantize_dynamic", "cluster_weights", "cast"),
            "reconstruct",
        }
    )

    changes_interface: ClassVar[bool] = True  # the opset, where it is too old for decoders

    max_slowdown: Annotated[
        float, Param("longest run time, as a multiple of that of the plain model", ge=1.0, le=10.0)
    ] = 1.03
    values: Annotated[
        Literal["exact", "float16", "int8", "int4"],
        Param("what float weights are rounded to, biases to float16; exact: nothing changes"),
    ] = "exact"
    load: Annotated[
        float, Param("most time that decoding may take at load, ns per element", gt=0, le=10000)
    ] = 25.0
    traces: Annotated[
        Literal["drop", "keep"],
        Param("stack traces, sizes and defaults an exporter wrote, often most of a graph"),
    ] = "drop"
    include: Annotated[tuple[str, ...], Param("nodes to take: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes whose constants stay as they are")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Store every constant anew that becomes smaller by it."""
        selection = Selection(self.include, self.exclude)
        plain = model.clone()
        again = is_packed(model)
        if again:
            unpack(plain, context, ours=True)
        notes = self._raise_opset(plain, selection, context)
        coded = recode(plain, selection, context)
        which = "1 weight that is computed" if coded == 1 else f"{coded} weights that are computed"
        text = f"{which} from stored constants while the file is opened: coded anew, exactly"
        notes += [text] * bool(coded)
        places, skipped = find(plain, selection)
        choices, left = choose(places, g.opset(plain), self.values, self.load)
        skipped += left
        if not choices:
            return _unchanged(notes + nothing(places, self.values), skipped)
        try:
            settled = settle(plain, selection, choices, context)
        except ConverterError as error:
            text = f"nothing is packed: it cannot be proven to be undone, because {error.what}"
            return _unchanged([text], skipped)
        skipped += settled.skipped
        packed, dropped = self._cleared(settled, context)
        before, after = stored_bytes(model), stored_bytes(packed)
        if settled.proof is None or after > (_WORTH_AGAIN if again else _WORTH) * before:
            said = [_again(self.values)] if again else nothing(places, self.values)
            return _unchanged(said, skipped)
        measured = run_time(settled.plain, packed, self.max_slowdown, context)
        if measured is not None and measured.beyond(self.max_slowdown):
            text = f"left as it was: packed it takes {measured.ratio:.3f} times as long to run"
            return _unchanged([text], skipped)
        take_over(model, packed)
        members = [member for choice in settled.choices for member in choice.members]
        notes += told(members, settled.proof, measured)
        notes += alternatives(places, self.values, sum(member.after for member in members))
        notes += dropped
        counts = {"constants_packed": len(members), "bytes_before": before, "bytes_after": after}
        return Outcome(modified=True, counts=counts, skipped=tuple(skipped), notes=tuple(notes))

    def _cleared(self, settled: Settled, context: Context) -> tuple[ir.Model, list[str]]:
        """Return the packed model without what need not be in it, and what to say about that."""
        if self.traces == "keep":
            return settled.packed, []
        traces = drop_traces(settled.packed)
        packed, implied = slim(settled.plain, settled.packed, context)
        said = {
            "stack traces of the exporter were dropped": traces,
            "sizes and attributes that follow from the rest, and names that quantizers gave to "
            "scales and inner values, were dropped": implied,
        }
        return packed, [f"{text}: {count} bytes" for text, count in said.items() if count]

    def _raise_opset(self, plain: ir.Model, selection: Selection, context: Context) -> list[str]:
        """Raise an opset that lacks operators of decoders, where that saves enough."""
        before = g.opset(plain)
        if not 0 < before < OLDEST_OPSET:
            return []
        places, _ = find(plain, selection)
        sizes = [
            sum(m.before - m.after for choice in choices for m in choice.members)
            for choices, _ in (
                choose(places, opset, self.values, self.load) for opset in (before, OLDEST_OPSET)
            )
        ]
        if sizes[1] - sizes[0] < _WORTH_RAISING * sum(p.tensor.nbytes for p in places):
            return []
        instead = "so forms that need newer operators are left out"
        if context.keep_opset:
            return [f"opset {before} was to be kept, {instead}"]
        reason = raise_opset(plain, with_samples(plain, context), OLDEST_OPSET)
        if reason:
            return [f"opset {before} stays: {reason}; {instead}"]
        return [f"opset {before} was raised to {OLDEST_OPSET} for the operators of decoders"]

    def forecast(self, model: ir.Model) -> Forecast:
        """Return what would be stored differently, without running anything.

        A model that is packed already is looked at as it is.
        """
        places, _ = find(model, Selection(self.include, self.exclude))
        choices, _ = choose(places, g.opset(model), self.values, self.load)
        members = [member for choice in choices for member in choice.members]
        savings = tuple(Saving(m.name, m.form, m.before, m.after) for m in members)
        notes = alternatives(places, self.values, sum(m.after for m in members))
        return Forecast(savings, tuple(notes or nothing(places, self.values)))


def _again(values: str) -> str:
    rounded = "" if values == "exact" else "; weights that were rounded are not rounded once more"
    return f"it is packed already{rounded}"


def _unchanged(notes: list[str], skipped: list[Skip]) -> Outcome:
    return Outcome(modified=False, skipped=tuple(skipped), notes=tuple(notes))
