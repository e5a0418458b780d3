"""Two linear layers with nothing in between as one, where that saves weights and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from passes.fusion.layer import Layer, dims_of, integer, layer_before, layer_of, unpadded
from passes.fusion.weights import STAYS, constant_cost, set_weight, unfit
from passes.rewriting import sizes
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]
TOLERANCE = "sums in another order: relative 1e-5 of the largest output for float32"
_MOST_STEPS = 1 << 31  # multiplications that computing the new weight may take
_MOST_BYTES = 1 << 26  # of the weights, which are held in memory


@dataclass(frozen=True)
class _Pair:
    """Two layers, one after the other, and how their weights multiply."""

    inner: Layer
    outer: Layer
    product: Callable[[Array, Array], Array]
    elements: int
    steps: int
    keeps_inner: bool


def _merge(node: ir.Node, work: Work) -> Result:
    outer = layer_of(node, work)
    inner = layer_before(node, node.inputs[0], work) if isinstance(outer, Layer) else None
    if not isinstance(outer, Layer) or not isinstance(inner, Layer):
        return inner if isinstance(inner, str) else None
    form = _FORMS.get((inner.kind, outer.kind))
    pair = form(inner, outer) if form is not None else None
    if pair is None or isinstance(pair, str):
        return pair
    return _expensive(pair) or _apply(pair, work)


def _expensive(pair: _Pair) -> str | None:
    """Return why one layer would not be better than two."""
    first, second = pair.inner.weight, pair.outer.weight
    if pair.elements > first.size + second.size:
        return "one layer would have more weights and take more arithmetic than the two"
    if max(first.nbytes, second.nbytes) > _MOST_BYTES or pair.steps > _MOST_STEPS:
        return "the weights are too large to be multiplied here"
    return None if first.dtype == second.dtype else "the two layers have different types"


def _convolutions(inner: Layer, outer: Layer) -> _Pair | str | None:
    if integer(inner.node, "group", 1) != 1 or integer(outer.node, "group", 1) != 1:
        return None
    first, second = dims_of(inner.weight), dims_of(outer.weight)
    if len(first) != len(second) or first[0] != second[1]:
        return None
    (middle, sources), channels = first[:2], second[0]
    if _is_pointwise(outer, second):
        kernel = int(np.prod(first[2:]))
        count = channels * sources * kernel
        return _Pair(inner, outer, _then_pointwise, count, count * middle, keeps_inner=True)
    if _is_pointwise(inner, first):
        bias = inner.bias()
        if isinstance(bias, str) or (bias.any() and outer.pads()):
            return "zeros that Conv reads beside its input do not pass the layer before it"
        count = channels * sources * int(np.prod(second[2:]))
        return _Pair(inner, outer, _first_pointwise, count, count * middle, keeps_inner=False)
    return None


def _is_pointwise(layer: Layer, dims: tuple[int, ...]) -> bool:
    strides = layer.node.attributes.get("strides")
    steps = () if strides is None else strides.as_ints()
    return set(dims[2:]) == {1} and set(steps) <= {1} and _never_pads(layer.node)


def _never_pads(node: ir.Node) -> bool:
    # With a window of one element and strides of 1, SAME adds nothing either; it is rare.
    return unpadded(node)


def _then_pointwise(first: Array, second: Array) -> Array:
    flat = second.reshape(second.shape[0], -1) @ first.reshape(first.shape[0], -1)
    return flat.reshape(second.shape[0], *first.shape[1:])


def _first_pointwise(first: Array, second: Array) -> Array:
    matrix = first.reshape(first.shape[:2])
    return np.moveaxis(np.tensordot(second, matrix, axes=(1, 0)), -1, 1)


def _products(inner: Layer, outer: Layer) -> _Pair | str | None:
    first, second = inner.shape, outer.shape
    if len(inner.weight.shape) != 2 or len(outer.weight.shape) != 2:
        return None
    if integer(outer.node, "transA", 0) or first.channels != second.sources:
        return None
    turned = integer(inner.node, "transB", 0), integer(outer.node, "transB", 0)
    factor = inner.factor("alpha") * outer.factor("alpha")

    def product(a: Array, b: Array) -> Array:
        return factor * ((a.T if turned[0] else a) @ (b.T if turned[1] else b))

    count = first.sources * second.channels
    keeps_inner = inner.kind == "Gemm"
    return _Pair(inner, outer, product, count, count * first.channels, keeps_inner)


_FORMS: dict[tuple[str, str], Callable[[Layer, Layer], _Pair | str | None]] = {
    ("Conv", "Conv"): _convolutions,
    **{(a, b): _products for a in ("Gemm", "MatMul") for b in ("Gemm", "MatMul")},
}


def _apply(pair: _Pair, work: Work) -> Result:
    inner, outer = pair.inner, pair.outer
    biases = inner.bias(), outer.bias()
    if isinstance(biases[0], str) or isinstance(biases[1], str):
        return str(biases[0] if isinstance(biases[0], str) else biases[1])
    weights = [np.asarray(layer.weight.numpy(), np.float64) for layer in (inner, outer)]
    kind = inner.weight.dtype.numpy()
    with np.errstate(all="ignore"):
        exact = pair.product(*weights)
        bias = biases[1] + _passed(outer, weights[1], biases[0])
        weight, rounded = exact.astype(kind), bias.astype(kind)
    if not np.isfinite(rounded).all():
        return f"the merged bias does not fit {inner.weight.dtype.name}"
    layout = (0, *range(1, exact.ndim)) if inner.kind == "Conv" else (1, 0)
    peaks = np.abs(exact.transpose(layout)).reshape(outer.shape.channels, -1).max(axis=1)
    reason = unfit(peaks, inner.weight.dtype)
    if reason:
        return reason
    given = any(v is not None for layer in (inner, outer) for v in layer.node.inputs[2:])
    return _install(pair, weight, rounded if given else None, work)


def _passed(outer: Layer, weight: Array, bias: Array) -> Array:
    """Return what the outer layer makes of the bias of the inner one."""
    if outer.kind == "Conv":
        return np.asarray(weight.reshape(*weight.shape[:2], -1).sum(axis=2) @ bias)
    turned = integer(outer.node, "transB", 0)
    return np.asarray(outer.factor("alpha") * (bias @ (weight.T if turned else weight)))


def _install(pair: _Pair, weight: Array, bias: Array | None, work: Work) -> Result:
    inner, outer = pair.inner, pair.outer
    keeper, other = (inner, outer) if pair.keeps_inner else (outer, inner)
    gone = sizes.node_bytes(other.node)
    for layer in (inner, outer):
        gone += sum(work.constant_saving(v, {layer.node}) for v in layer.node.inputs[1:])
    name = (keeper.node.inputs[1] or inner.output).name or ""
    cost = constant_cost(work, outer.node, weight, name)
    if bias is not None:
        cost += constant_cost(work, outer.node, bias, f"{name}_bias")
        cost += sizes.text_bytes(f"{name}_bias_10") + 2
    if not work.affords(cost - gone):
        return "the merged weights would make the file bigger"
    if pair.keeps_inner:
        if work.replace(outer.node, inner.output) is None:
            return STAYS
    else:
        work.set_input(outer.node, 0, inner.source)
    node = keeper.node
    set_weight(work, node, 1, ir.tensor(weight))
    for attribute in ("alpha", "beta", "transB"):
        node.attributes.pop(attribute, None)
    if bias is not None:
        node.resize_inputs(3)
        set_weight(work, node, 2, ir.tensor(bias), f"{name}_bias")
    return Applied((node,))


RULES = (Rule("layers_merged", ("Conv", "Gemm", "MatMul"), _merge, TOLERANCE),)
