"""What a static quantization had better leave to ranges found at run time: transformers first.

The activations of transformers have a few channels and tokens that are far wider than all others.
A grid that holds for every input wastes most of its steps on them; one that is made for each input
does not, and costs onnxruntime about as much. So products in a model with attention, those that
read a normalization or GELU, and recurrent layers are computed on dynamic ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.affine.eligible import after_gelu
from passes.dynamic.plan import Plan, plan
from passes.dynamic.residual import keep_apart
from passes.dynamic.write import Writer
from passes.opset.convert import take_over
from passes.smoothing.fold import NORMALIZATIONS
from passes.smoothing.sites import find, smooth

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context
    from converter.core.contract import Skip
    from converter.core.select import Selection

_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_AFTER_SOFTMAX = ("Cast", "Dropout", "Identity", "Mul", "Where", "Reshape", "Transpose")
_DEPTH = 6
NORMALIZATION_OPSET = 17
"""First opset with LayerNormalization."""
_TRIALS = 8
"""Batches that decide whether smoothing pays."""


@dataclass
class Parts:
    """What was done to a model.

    Attributes:
        counts: By kind.
        skipped: What was eligible and stays in float.
        notes: Sentences for the report.
    """

    counts: dict[str, float] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def better_dynamic(model: ir.Model, selection: Selection, *, everything: bool = True) -> Plan:
    """Return the part of a dynamic plan that is better than static ranges.

    Args:
        model: Left as it is.
        selection: Nodes that may be chosen.
        everything: Leave transformers to dynamic ranges altogether; else only products after GELU,
            whose range no static grid of 8 bits holds.
    """
    found = plan(model, selection)
    found.skipped.clear()  # the static plan says what stays in float
    if not everything:
        found.products = [p for p in found.products if after_gelu(p.x)]
        found.lookups, found.layers = [], []
    elif not has_attention(model):
        found.products = [p for p in found.products if after_gelu(p.x) or _normalized(p.x)]
    return found


def has_attention(model: ir.Model) -> bool:
    """Tell whether a product of two activations, one of them after Softmax, is computed."""
    for node in g.walk(model):
        if node.op_type in _ATTENTION:
            return True
        if g.is_op(node, "Softmax") and _multiplies(node.outputs[0], _DEPTH):
            return True
    return False


def _multiplies(value: ir.Value, depth: int) -> bool:
    for user in value.consumers():
        if g.is_op(user, "MatMul", "Einsum"):
            if not any(g.constant(v) is not None for v in user.inputs):
                return True
        elif depth and g.is_op(user, *_AFTER_SOFTMAX) and _multiplies(user.outputs[0], depth - 1):
            return True
    return False


def _normalized(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type in NORMALIZATIONS


def quantize_parts(
    model: ir.Model, selection: Selection, context: Context, *, everything: bool
) -> Parts:
    """Write what is better dynamic, smoothed where samples say that this is closer to float.

    Args:
        model: Changed in place.
        selection: Nodes that may be chosen.
        context: Has calibration data.
        everything: See :func:`better_dynamic`.

    Raises:
        ConverterError: The model cannot be run on the calibration data.
    """
    if not better_dynamic(model, selection, everything=everything):
        return Parts()
    joined = _join_normalizations(model, context) if everything else ()
    plain = model.clone()
    parts = _write(plain, better_dynamic(plain, selection, everything=everything))
    parts.notes = (*joined, *parts.notes)
    smoothed, note = _smoothed(model, selection, context, everything=everything)
    if smoothed is None:
        take_over(model, plain)
        return parts
    more = _write(smoothed, better_dynamic(smoothed, selection, everything=everything))
    errors = _errors(model, (plain, smoothed), context)
    if errors[1] < errors[0]:
        take_over(model, smoothed)
        note += f"; output error falls from {errors[0]:.2%} to {errors[1]:.2%} of the signal"
        more.notes = (*joined, *more.notes, note)
        return more
    parts.notes += (
        f"smoothing was left out: output error {errors[1]:.2%} of the signal instead of "
        f"{errors[0]:.2%}",
    )
    take_over(model, plain)
    return parts


def _join_normalizations(model: ir.Model, context: Context) -> tuple[str, ...]:
    """Raise the opset where normalizations are written as arithmetic: one operator can be smoothed.

    Returns:
        What was done, for the report; nothing where the model stays as it is.
    """
    from passes.affine.opset import raise_opset
    from passes.fuse import Fuse

    before = g.opset(model)
    if context.keep_opset or context.dataset is None or not 0 < before < NORMALIZATION_OPSET:
        return ()
    if not any(g.is_op(node, "ReduceMean") for node in model.graph) or not has_attention(model):
        return ()
    draft = model.clone()
    if raise_opset(draft, context, NORMALIZATION_OPSET):
        return ()
    Fuse().apply(draft, context)
    joined = sum(1 for node in draft.graph if g.is_op(node, "LayerNormalization"))
    if not joined:
        return ()
    take_over(model, draft)
    return (
        f"opset {before} was raised to {NORMALIZATION_OPSET}, in which each of {joined} "
        "normalizations is one operator",
    )


def _smoothed(
    model: ir.Model, selection: Selection, context: Context, *, everything: bool
) -> tuple[ir.Model | None, str]:
    """Return a smoothed copy of the float model, or None where nothing could be gained."""
    if context.dataset is None:
        return None, ""
    draft = model.clone()
    nodes = {p.node for p in better_dynamic(draft, selection, everything=everything).products}
    sites, _ = find(draft, nodes)
    counts, _, notes = smooth(draft, sites, context, None)
    if not counts:
        return None, ""
    count = int(counts["activations_smoothed"])
    return draft, f"{count} activations were smoothed: {'; '.join(notes)}"


def _write(model: ir.Model, found: Plan) -> Parts:
    writer = Writer(model)
    writer.write(found)
    counts = {f"{name}_dynamically": count for name, count in writer.counts.items()}
    if found.products:
        counts["sums_kept_apart"] = keep_apart(model)
    kinds = {
        "matrix products": len(found.products),
        "recurrent layers": len(found.layers),
    }
    named = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    notes: tuple[str, ...] = ()
    if named:
        notes = (f"{named} take their ranges at run time, where static ones lose more",)
    return Parts({k: v for k, v in counts.items() if v}, [], notes)


def _errors(model: ir.Model, others: tuple[ir.Model, ...], context: Context) -> tuple[float, ...]:
    """Return the error of each model's outputs, as a share of the signal around its mean."""
    assert context.dataset is not None
    feeds = [batch.inputs for batch in islice(iter(context.dataset), _TRIALS)]
    expected = context.run(model, feeds)
    return tuple(_error(expected, context.run(other, feeds)) for other in others)


def _error(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> float:
    shares = []
    for name, first in expected[0].items():
        if first.dtype.kind != "f" or not first.size:
            continue
        noise = sum(_square(e[name] - a[name]) for e, a in zip(expected, actual, strict=True))
        mean = float(np.mean([float(e[name].mean(dtype=np.float64)) for e in expected]))
        signal = sum(_square(e[name] - mean) for e in expected)
        if signal > 0 and np.isfinite(noise):
            shares.append(noise / signal)
        elif not np.isfinite(noise):
            return float("inf")
    return float(np.sqrt(np.mean(shares))) if shares else 0.0


def _square(array: Any) -> float:
    return float((array.astype(np.float64) ** 2).sum())
