"""Weight-only quantization: 2, 4 or 8 bits in the file, activations in float."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from converter.core import graph as g
from converter.core.contract import Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from converter.errors import MissingDataError
from passes.affine.opset import raise_opset, with_samples
from passes.encoding.choose import DATA_FREE, Form, gptq
from passes.encoding.fit import Fit, assign, fit
from passes.encoding.plan import BLOCKED_OPSET, Job, Wish, fuses, plan
from passes.encoding.weights import Weight, find

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context
    from passes.encoding.codes import Codes
    from passes.encoding.inputs import Inputs

_WORTH_RAISING = 0.25
"""Share of the weights, in bytes, that must become fused products to raise the opset for them."""
_BLOCK = 32
_WIDE = 8
_DENSE = 0.7
"""Share of weights that are not zero, up to which a tensor counts as sparse."""
_WIDE_DENSE = 0.95
"""The same for 8 bits, where a grid that has zero as integer 0 rounds hardly worse."""
_TABLE_BITS = {"int8": 8, "int4": 4, "none": 0}
_WAYS = {
    "dequantize": "as 4- or 8-bit products (MatMulNBits in onnxruntime)",
    "nbits": "as MatMulNBits of onnxruntime",
    "cast": "as integers that become float weights when onnxruntime loads the file",
    "packed": "as packed bytes that become float weights when onnxruntime loads the file",
    "lookup": "as integer tables of which only the rows looked up become float",
}


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store weights in few bits; what is computed stays in float.

    Blocks of ``block`` weights of one channel share a scale (and a zero point). With calibration
    data the integers are chosen so that the outputs of each layer stay what they were (GPTQ, with
    the inputs that come out of the layers rounded before it); without, each block gets the grid
    with the least squared error. Matrix products are written so that onnxruntime computes on the
    small integers; all other weights so that it turns them to float once, while it loads the file.
    """

    name: ClassVar[str] = "quantize_weights"
    summary: ClassVar[str] = "store weights in 2, 4 or 8 bits and compute in float"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "fuse", "fold_constants", "prune", "prune_channels", "drop_layers"}
    )
    changes_interface: ClassVar[bool] = True  # the opset, where it is too old for 4-bit integers

    bits: Annotated[Literal[2, 4, 8], Param("width of a weight", search=(4, 8))] = 4
    block: Annotated[
        int | None,
        Param(
            "weights of a channel that share a scale; 0: all of them; 32 unless many are zero",
            ge=0,
            le=65536,
        ),
    ] = None
    method: Annotated[
        Literal["auto", "rtn", "hqq", "gptq"],
        Param("how integers are chosen; gptq needs data, auto uses it when there is some"),
    ] = "auto"
    symmetric: Annotated[bool, Param("no zero points: a little smaller, less exact")] = False
    embedding: Annotated[
        Literal["int8", "int4", "none"], Param("how tables that are looked up are stored")
    ] = "int8"
    storage: Annotated[
        Literal["auto", "dequantize", "nbits", "cast"],
        Param("operators that products are written with; auto: DequantizeLinear"),
    ] = "auto"
    include: Annotated[tuple[str, ...], Param("nodes to take: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave in float")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Store every weight anew that becomes smaller by it.

        Raises:
            MissingDataError: ``method=gptq`` and there is no calibration data.
            ConverterError: The model cannot be run on the calibration data.
        """
        if self.method == "gptq" and context.dataset is None:
            raise MissingDataError(
                "method=gptq looks at the inputs of every layer, and there is no data",
                where=self.name,
                hint="give samples with --data FILE.npz, or use method=hqq",
            )
        selection = Selection(self.include, self.exclude)
        raised, notes = self._raise_opset(model, selection, context)
        weights, skipped = find(model, selection)
        jobs, left = self._plan(model, weights)
        skipped += left
        if not jobs:
            return Outcome(modified=raised, skipped=tuple(skipped), notes=tuple(notes))
        found = self._choose(model, jobs, context)
        before = sum(job.weight.tensor.nbytes for job in jobs)
        after = sum(job.nbytes() for job in jobs)
        _write(model, jobs, found)
        counts: dict[str, float] = {"weights_quantized": len(jobs)}
        counts |= {"bytes_before": before, "bytes_after": after}
        notes += _told(jobs, found, self._used(context), context)
        return Outcome(modified=True, counts=counts, skipped=tuple(skipped), notes=tuple(notes))

    def _used(self, context: Context) -> str:
        if self.method != "auto":
            return self.method
        return "gptq" if context.dataset is not None else "least_error"

    def _wish(self) -> Wish:
        table = _TABLE_BITS[self.embedding]
        block = _BLOCK if self.block is None else self.block
        return Wish(self.bits, block, self.symmetric, self.storage, table)

    def _wish_for(self, weight: Weight) -> Wish:
        """Return the wish for one weight: where many are zero, grids have zero as integer 0.

        Scales are shared by about as many weights that are not zero as in a dense tensor then, so
        that what ``pack`` can save by leaving zeros out is not lost to scales.
        """
        wish = self._wish()
        array = weight.tensor.numpy()
        density = np.count_nonzero(array) / max(1, array.size)
        if not 0.0 < density <= (_WIDE_DENSE if self.bits == _WIDE else _DENSE):
            return wish
        if self.block is None:
            shared = _BLOCK << round(-math.log2(density))
            wish = replace(wish, block=0 if self.bits == _WIDE else shared)
        return replace(wish, symmetric=True)

    def _raise_opset(
        self, model: ir.Model, selection: Selection, context: Context
    ) -> tuple[bool, list[str]]:
        """Raise an opset below 21 where that lets enough products run on small integers."""
        before, wish = g.opset(model), self._wish()
        weights, _ = find(model, selection)
        gain = [
            w.tensor.nbytes
            for w in weights
            if fuses(w, wish, BLOCKED_OPSET) and not fuses(w, wish, before)
        ]
        total = sum(w.tensor.nbytes for w in weights)
        if before <= 0 or not gain or sum(gain) < _WORTH_RAISING * total:
            return False, []
        instead = "weights of products become float when the file is loaded"
        if context.keep_opset:
            return False, [f"opset {before} was to be kept: {instead}"]
        reason = raise_opset(model, with_samples(model, context), BLOCKED_OPSET)
        if reason:
            return False, [f"opset {before} stays: {reason}; {instead}"]
        return True, [f"opset {before} was raised to {BLOCKED_OPSET} for integers in blocks"]

    def _plan(self, model: ir.Model, weights: list[Weight]) -> tuple[list[Job], list[Skip]]:
        jobs, skipped = [], []
        opset = g.opset(model)
        for weight in weights:
            job = plan(weight, self._wish_for(weight), opset)
            if isinstance(job, Job) and not np.isfinite(weight.tensor.numpy()).all():
                job = "the weight holds NaN or infinity"
            if isinstance(job, str):
                skipped.append(Skip(weight.label, job))
            else:
                jobs.append(job)
        return jobs, skipped

    def _choose(self, model: ir.Model, jobs: list[Job], context: Context) -> Fit:
        method = self._used(context)
        forms = {job.weight.name: job.form for job in jobs}
        if method != "gptq":
            choose = DATA_FREE[method]
            found = Fit()
            for job in jobs:
                found.codes[job.weight.name] = choose(job.weight.rows(), job.form)
            return found

        def round_one(weight: Weight, inputs: Inputs | None) -> Codes:
            return _one(weight, forms[weight.name], inputs)

        return fit(model, [job.weight for job in jobs], round_one, context)


def _one(weight: Weight, form: Form, inputs: Inputs | None) -> Codes:
    rows = weight.rows()
    return DATA_FREE["least_error"](rows, form) if inputs is None else gptq(rows, form, inputs)


def _write(model: ir.Model, jobs: list[Job], found: Fit) -> None:
    names = g.Names(model)
    assign(model, found.biases)
    for job in jobs:
        codes = found.codes[job.weight.name]
        job.write(model, names, codes)  # type: ignore[arg-type]


def _told(jobs: list[Job], found: Fit, method: str, context: Context) -> list[str]:
    """Say what was stored how, and what the integers were chosen with."""
    counted = Counter(job.way for job in jobs)
    stored = "; ".join(f"{count} {_WAYS[way]}" for way, count in sorted(counted.items()))
    notes = [f"weights stored: {stored}"]
    if method == "gptq" and context.dataset is not None:
        seen = len(jobs) - len(found.unseen)
        notes.append(
            f"weights rounded with what their layers see of {context.dataset.samples} samples: "
            + f"{seen}{f'; without: {len(found.unseen)}' if found.unseen else ''}"
        )
    elif method == "least_error":
        notes.append("no data: each block has the grid with the least error for usual inputs")
    return notes
