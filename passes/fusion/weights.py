"""New weights of linear layers: computed in float64, rounded once, large ones when read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant, replace_tensor
from converter.core.tensors import MappedTensor, chunks
from passes.fusion.layer import Layer, Layout, dims_of
from passes.rewriting import sizes
from passes.rewriting.rule import Applied, Result
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]
ROUNDING = "one rounding step of the weights: relative 1e-6 for float32, 1e-3 for float16"
STAYS = "its output cannot be moved"
_EAGER_BYTES = 1 << 16  # larger weights are scaled when they are read, chunk by chunk
_BLOCK = 1 << 15  # elements computed at once: what is in between fits the cache
_MOST_CANCELLED = 16.0


@dataclass(frozen=True)
class Affine:
    """``y = factor * x + shift`` per channel, in float64."""

    factor: Array
    shift: Array

    @property
    def finite(self) -> bool:
        """Tell whether it can be computed with."""
        return bool(np.isfinite(self.factor).all() and np.isfinite(self.shift).all())


@dataclass(frozen=True)
class ScaleChannels:
    """Multiplies the elements of a flat weight by a factor per channel.

    Attributes:
        factors: float64, in the order in which channels follow each other in the flat weight.
        period: Elements of one channel that follow each other.
        wide: Return float64 rather than the type of the weight.
    """

    factors: Array
    period: int
    wide: bool = False

    def __call__(self, chunk: Array, start: int) -> Array:
        """Return the scaled chunk; ``start`` is the index of its first element."""
        result = np.empty(chunk.shape, np.float64 if self.wide else chunk.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, chunk.size, _BLOCK):
                block = chunk[first : first + _BLOCK]
                factors = spread(self.factors, self.period, start + first, block.size)
                result[first : first + _BLOCK] = block * factors
        return result


def spread(vector: Array, period: int, start: int, count: int) -> Array:
    """Return the channels' entries for ``count`` elements of a flat weight from ``start`` on."""
    first, last = start // period, (start + count - 1) // period
    entries = vector[np.arange(first, last + 1) % vector.size]
    if period == 1:
        return entries
    lengths = np.full(entries.size, period)
    lengths[0] -= start - first * period
    lengths[-1] -= (last + 1) * period - (start + count)
    return np.repeat(entries, lengths)


def fold_after(work: Work, layer: Layer, node: ir.Node, affine: Affine) -> Result:
    """Take what ``node`` does to the layer's output into the layer's weights."""
    bias = layer.bias()
    if isinstance(bias, str):
        return bias
    if not affine.finite:
        return "its factors are not finite"
    scale = scale_of(layer, affine.factor)
    if isinstance(scale, str):
        return scale
    with np.errstate(over="ignore", invalid="ignore"):
        total = bias * affine.factor + affine.shift
    new = Weights(scale, None if np.array_equal(total, bias) else total)
    reason = _obstacle(work, layer, node, new)
    if reason:
        return reason
    name = _bias_name(layer.node, node)
    return _rewrite(work, layer, new, name) if work.replace(node, layer.output) else STAYS


def scale_of(layer: Layer, factor: Array) -> ScaleChannels | str | None:
    """Return how the weight changes when output channels are scaled, or why it cannot."""
    scale = _scale(factor, layer.shape.outputs)
    if scale is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        peaks = peaks_of(layer.weight, layer.shape.outputs, layer.shape.channels) * np.abs(factor)
    return unfit(peaks, layer.weight.dtype) or scale


def fold_over(work: Work, layer: Layer, scale: ScaleChannels | None) -> None:
    """Scale the weight of a layer; everything was checked before."""
    _rewrite(work, layer, Weights(scale, None))


def fold_before(
    work: Work, layer: Layer, node: ir.Node, source: ir.Value, affine: Affine
) -> Result:
    """Let the layer read ``source`` and take in what ``node`` in between did to that."""
    if not affine.finite:
        return "its factors are not finite"
    shape, bias = layer.shape, None
    if affine.shift.any():
        old = layer.bias()
        if isinstance(old, str):
            return old
        bias = old + layer.factor("alpha") * _response(layer, affine.shift)
    scale = _scale(affine.factor, shape.inputs)
    if scale is not None:
        wide = ScaleChannels(scale.factors, scale.period, wide=True)
        scaled = MappedTensor(layer.weight, wide, dtype=ir.DataType.DOUBLE)
        reason = unfit(peaks_of(scaled, shape.outputs, shape.channels), layer.weight.dtype)
        if reason:
            return reason
    new = Weights(scale, bias)
    reason = _obstacle(work, layer, node, new)
    if reason:
        return reason
    name = _bias_name(layer.node, node)
    work.set_input(layer.node, 0, source)
    return _rewrite(work, layer, new, name)


@dataclass(frozen=True)
class Weights:
    """What becomes of a layer's weight and bias; None: nothing."""

    scale: ScaleChannels | None
    bias: Array | None

    def rounded(self, dtype: ir.DataType) -> Array | None:
        """Return the bias in the element type."""
        with np.errstate(over="ignore"):
            return None if self.bias is None else self.bias.astype(dtype.numpy())


def _scale(factor: Array, layout: Layout) -> ScaleChannels | None:
    return ScaleChannels(factor[layout.order], layout.period) if (factor != 1).any() else None


def _response(layer: Layer, shift: Array) -> Array:
    """Return what the layer makes of an input that is ``shift`` everywhere, without its bias."""
    shape = layer.shape
    total = np.zeros(shape.channels)
    if not shift.any():
        return total
    given, wanted = shift[shape.inputs.order], shape.outputs
    for start, chunk in chunks(layer.weight):
        product = chunk * spread(given, shape.inputs.period, start, chunk.size)
        index = spread(wanted.order, wanted.period, start, chunk.size)
        total += np.bincount(index, weights=product, minlength=shape.channels)
    return total


def peaks_of(weight: ir.TensorProtocol, layout: Layout, channels: int) -> Array:
    """Return the largest magnitude of each channel."""
    found = np.zeros(channels)
    order, period = layout.order, layout.period
    for start, chunk in chunks(weight):
        flat = np.abs(chunk)
        if period == 1:
            shift = start % order.size
            rows = np.zeros(-(-(shift + flat.size) // order.size) * order.size, flat.dtype)
            rows[shift : shift + flat.size] = flat
            np.maximum.at(found, order, rows.reshape(-1, order.size).max(axis=0))
            continue
        first, last = start // period, (start + flat.size - 1) // period
        bounds = np.arange(first, last + 1) * period - start
        bounds[0] = 0
        index = order[np.arange(first, last + 1) % order.size]
        np.maximum.at(found, index, np.maximum.reduceat(flat, bounds))
    return found


def unfit(peaks: Array, dtype: ir.DataType) -> str:
    """Return why weights with these largest magnitudes per channel do not fit a type, or ""."""
    limits = np.finfo(dtype.numpy())
    if not (peaks <= float(limits.max)).all():
        return f"the folded weights do not fit {dtype.name}"
    # A channel that vanishes beside the others may lose digits; one that matters may not.
    lost = (peaks > float(limits.eps) * peaks.max(initial=0.0)) & (peaks < float(limits.tiny))
    return f"the folded weights are too small for {dtype.name}" if lost.any() else ""


def swallowed(old: Array, shift: Array) -> str:
    """Return why a sum must stay in two steps: large terms that cancel round on purpose."""
    size = max(np.abs(old).max(initial=0.0), np.abs(shift).max(initial=0.0))
    if old.any() and shift.any() and size > _MOST_CANCELLED * np.abs(old + shift).max(initial=0.0):
        return "the two biases cancel each other, which rounds what they are added to"
    return ""


def _scaled(weight: ir.TensorProtocol, scale: ScaleChannels) -> ir.TensorProtocol:
    if weight.nbytes > _EAGER_BYTES:
        return MappedTensor(weight, scale)
    array = np.asarray(weight.numpy())
    return ir.tensor(scale(array.reshape(-1), 0).reshape(array.shape), name=weight.name)


def _obstacle(work: Work, layer: Layer, node: ir.Node, new: Weights) -> str:
    """Return why the layer cannot have its new weights once ``node`` is gone, or ""."""
    bias = new.rounded(layer.weight.dtype)
    if bias is None:
        return ""
    if not np.isfinite(bias).all():
        return f"the folded bias does not fit {layer.weight.dtype.name}"
    if layer.kind == "MatMul" and not _is_flat(layer, work):
        return "MatMul has no bias, and Gemm wants two axes"
    if layer.kind == "Gemm" and work.opset(layer.node) < 7:
        return "Gemm broadcasts its bias from opset 7 on"
    if not work.affords(_cost(work, layer, node, bias)):
        return "the new bias would make the file bigger"
    return ""


def _is_flat(layer: Layer, work: Work) -> bool:
    """Tell whether a MatMul is certain to have two axes, so that Gemm can take its place."""
    dims = work.facts.of(layer.source).dims
    flat = dims is not None and len(dims) == 2 and len(layer.weight.shape) == 2
    return flat and work.opset(layer.node) >= 7 and "Gemm" not in work.redefined


def _cost(work: Work, layer: Layer, node: ir.Node, bias: Array) -> int:
    """Return how much longer the file gets: the bias, less what only the old form needed."""
    gone = sizes.node_bytes(node)
    gone += sum(work.constant_saving(v, {node}) for v in dict.fromkeys(node.inputs))
    old = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    if old is not None and _is_own(old):
        tensor = constant(old)
        if tensor is not None and dims_of(tensor) == bias.shape:
            return -gone
        gone += work.constant_saving(old, {layer.node})
    name = f"{_bias_name(layer.node, node)}_10"
    cost = constant_cost(work, layer.node, bias, name) + sizes.text_bytes(name) + 2
    return cost - gone


def constant_cost(work: Work, user: ir.Node, data: Array, name: str) -> int:
    """Return at least the bytes that a new constant for ``user`` takes."""
    nodes = work.wants_nodes(user)
    bytes_of = sizes.new_constant_node_bytes if nodes else sizes.new_constant_bytes
    return bytes_of(data.nbytes, data.ndim, name)


def _is_own(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _bias_name(layer: ir.Node, node: ir.Node) -> str:
    """Name a new bias after the constant that it comes from: the second of BatchNormalization."""
    given = [value.name for value in node.inputs if value is not None and constant(value)]
    weight = layer.inputs[1]
    assert weight is not None
    return (given[min(1, len(given) - 1)] if given else None) or f"{weight.name}_bias"


def _rewrite(work: Work, layer: Layer, new: Weights, name: str = "") -> Applied:
    node = layer.node
    if new.scale is not None:
        set_weight(work, node, 1, _scaled(layer.weight, new.scale))
    bias = new.rounded(layer.weight.dtype)
    if bias is not None:
        if layer.kind == "MatMul":
            node.op_type = "Gemm"
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        set_weight(work, node, 2, ir.tensor(bias), name)
        if "beta" in node.attributes:
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return Applied((node,))


def set_weight(
    work: Work, node: ir.Node, index: int, data: ir.TensorProtocol, name: str = ""
) -> None:
    """Give a layer a new constant, in place of the old one where nobody else reads that."""
    old = node.inputs[index]
    before = constant(old)
    if old is None or before is None or not _is_own(old) or dims_of(before) != dims_of(data):
        base = (old.name if old is not None else None) or name or "weight"
        work.set_input(node, index, work.new_constant(node, base, data))
        return
    data.name = before.name
    replace_tensor(old, data)
    work.edits += 1
