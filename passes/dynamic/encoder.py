"""What a static quantization had better leave to ranges found at run time: transformers first.

The activations of transformers have a few channels and tokens that are far wider than all others.
A grid that holds for every input wastes most of its steps on them; one that is made for each input
does not, and costs onnxruntime about as much. So products in a model with attention, those that
read a normalization or GELU, and recurrent layers are computed on dynamic ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.select import Selection
from passes.affine.eligible import after_gelu
from passes.dynamic.gelu import expand, join
from passes.dynamic.plan import Plan, plan
from passes.dynamic.residual import keep_apart
from passes.dynamic.write import Writer
from passes.opset.convert import take_over
from passes.smoothing.fold import NORMALIZATIONS
from passes.smoothing.sites import find, smooth

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_AFTER_SOFTMAX = ("Cast", "Dropout", "Identity", "Mul", "Where", "Reshape", "Transpose")
_RECURRENT = ("(GRU)", "(RNN)", "(LSTM)")
_STATIC = "onnxruntime has no static ranges for it; transformers=dynamic takes dynamic ones"
_DEPTH = 6
NORMALIZATION_OPSET = 17
"""First opset with LayerNormalization."""
_WORTH = 0.95
"""Smoothing costs some percent of the time, so it has to bring more than that."""
_TRIALS = 8
"""Batches that decide whether smoothing pays."""


@dataclass(frozen=True)
class Wish:
    """What is left to dynamic ranges.

    Attributes:
        selection: Nodes that may be chosen.
        everything: Leave transformers to dynamic ranges altogether; else only products after GELU,
            whose range no static grid of 8 bits holds.
        per_channel: One scale per output channel of a weight.
        smoothing: Smooth, or not; None: where samples say that it is closer to float.
    """

    selection: Selection = field(default_factory=Selection)
    everything: bool = True
    per_channel: bool = True
    smoothing: bool | None = None


@dataclass
class Parts:
    """What was done to a model.

    Attributes:
        counts: By kind.
        notes: Sentences for the report.
        skipped: What could have been dynamic, stays in float, and no static plan speaks of.
        smoothed: Whether smoothing was kept; None: there was nothing to smooth.
    """

    counts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()
    smoothed: bool | None = None


def better_dynamic(model: ir.Model, wish: Wish) -> Plan:
    """Return the part of a dynamic plan that is better than static ranges; changes nothing."""
    found = plan(model, wish.selection)
    # Of all others the static plan says why they stay in float.
    found.skipped = [skip for skip in found.skipped if skip.subject.endswith(_RECURRENT)]
    if not wish.everything:
        found.skipped += [Skip(g.label(layer.node), _STATIC) for layer in found.layers]
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


def quantize_parts(model: ir.Model, context: Context, wish: Wish) -> Parts:
    """Write what is better dynamic, smoothed where samples say that this is closer to float.

    Args:
        model: Changed in place.
        context: Has calibration data.
        wish: What may be done.

    Raises:
        ConverterError: The model cannot be run on the calibration data.
    """
    found = better_dynamic(model, wish)
    if not found:
        return Parts(skipped=tuple(found.skipped))
    joined = _join_normalizations(model, context) if wish.everything else ()
    plain, (smoothed, note) = model.clone(), _smoothed(model, context, wish)
    parts = _write(plain, wish)
    if smoothed is not None:
        better = _write(smoothed, wish)
        errors = _errors(model, (plain, smoothed), context) if wish.smoothing is None else (1, 0)
        parts.smoothed = errors[1] < _WORTH * errors[0]
        if parts.smoothed:
            plain, parts = smoothed, replace(better, smoothed=True)
        else:
            note = "smoothing was left out"
        if wish.smoothing is None:
            note += f"; output error {errors[0]:.2%} of the signal without, {errors[1]:.2%} with it"
        parts.notes += (note,)
    take_over(model, plain)
    parts.notes = (*joined, *parts.notes)
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


def _smoothed(model: ir.Model, context: Context, wish: Wish) -> tuple[ir.Model | None, str]:
    """Return a smoothed copy of the float model, or None where nothing could be gained."""
    if context.dataset is None or wish.smoothing is False:
        return None, ""
    draft = model.clone()
    expand(draft, [p.x for p in better_dynamic(draft, wish).products if p.graph is draft.graph])
    sites, _ = find(draft, {product.node for product in better_dynamic(draft, wish).products})
    counts, _, notes = smooth(draft, sites, context, None)
    if not counts:
        return None, ""
    count = int(counts["activations_smoothed"])
    return draft, f"{count} activations were smoothed: {'; '.join(notes)}"


def _write(model: ir.Model, wish: Wish) -> Parts:
    found = better_dynamic(model, wish)
    join(model, found.products)
    writer = Writer(model, per_channel=wish.per_channel)
    writer.write(found)
    counts = {f"{name}_dynamically": count for name, count in writer.counts.items()}
    if found.products:
        counts["sums_kept_apart"] = keep_apart(model)
    kinds = {"matrix product": len(found.products), "recurrent layer": len(found.layers)}
    named = " and ".join(
        f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in kinds.items() if count
    )
    notes: tuple[str, ...] = ()
    if named:
        notes = (f"ranges found at run time, where static ones lose more: {named}",)
    found_counts = {name: count for name, count in counts.items() if count}
    return Parts(found_counts, notes, tuple(found.skipped))


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
