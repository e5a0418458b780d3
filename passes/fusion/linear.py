"""Constants before and after linear layers into their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant, is_op
from passes.fusion.layer import (
    LAYERS,
    Layer,
    alone,
    layer_before,
    layer_of,
    per_channel,
    step_before,
)
from passes.fusion.weights import (
    ROUNDING,
    STAYS,
    Affine,
    constant_cost,
    fold_after,
    fold_before,
    fold_over,
    scale_of,
    set_weight,
    swallowed,
)
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]
BROADCASTS = 7
"""Operator set from which on arithmetic broadcasts as numpy does."""

_Form = Callable[[Array], tuple[Array, Array]]
_FORMS: dict[tuple[str, int], _Form] = {
    ("Add", 0): lambda c: (np.ones_like(c), c),
    ("Add", 1): lambda c: (np.ones_like(c), c),
    ("Sub", 0): lambda c: (-np.ones_like(c), c),
    ("Sub", 1): lambda c: (np.ones_like(c), -c),
    ("Mul", 0): lambda c: (c, np.zeros_like(c)),
    ("Mul", 1): lambda c: (c, np.zeros_like(c)),
    ("Div", 1): lambda c: (1 / c, np.zeros_like(c)),
}
"""What an operator with a constant at this place does to the other operand: factor and shift."""


@dataclass(frozen=True)
class _Step:
    """Arithmetic with one constant.

    Attributes:
        node: The node.
        value: The operand that varies.
        tensor: The other one; None: the operator has one operand and is Neg.
        place: Index of the constant.
    """

    node: ir.Node
    value: ir.Value
    tensor: ir.TensorProtocol | None
    place: int

    def affine(self, layer: Layer, count: int) -> Affine | str:
        """Return what it does to each of ``count`` channels, or why it does more."""
        if self.tensor is None:
            return Affine(-np.ones(count), np.zeros(count))
        vector = per_channel(self.tensor, layer.shape, count)
        if vector is None:
            return f"the constant of {self.node.op_type} is not one number per channel"
        with np.errstate(all="ignore"):
            return Affine(*_FORMS[self.node.op_type, self.place](vector))


def _step(node: ir.Node) -> _Step | None:
    if node.op_type == "Neg" and node.inputs[0] is not None:
        return _Step(node, node.inputs[0], None, 1)
    if len(node.inputs) != 2:
        return None
    for place in (1, 0):
        tensor, other = constant(node.inputs[place]), node.inputs[1 - place]
        if tensor is not None and other is not None and constant(other) is None:
            known = (node.op_type, place) in _FORMS
            return _Step(node, other, tensor, place) if known else None
    return None


def _after(node: ir.Node, work: Work) -> Result:
    step = _step(node) if work.opset(node) >= BROADCASTS else None
    layer = layer_before(node, step.value, work) if step is not None else None
    if step is None or not isinstance(layer, Layer):
        return layer if isinstance(layer, str) else None
    if layer.kind == "MatMul" and node.op_type in {"Add", "Sub"}:
        return None  # a rule of its own: Gemm, where that is possible
    affine = step.affine(layer, layer.shape.channels)
    if isinstance(affine, str):
        return affine
    old = layer.bias()
    if not isinstance(old, str) and affine.finite:
        old = swallowed(old * affine.factor, affine.shift)
    return old if isinstance(old, str) and old else fold_after(work, layer, node, affine)


_SCALES = ("Mul", "Div", "Neg")


def _before(node: ir.Node, work: Work) -> Result:
    source = node.inputs[0] if node.inputs else None
    if source is None or not is_op(source.producer(), *_SCALES):
        return None
    layer = layer_of(node, work)
    if not isinstance(layer, Layer) or work.opset(node) < BROADCASTS:
        return None
    found = step_before(layer, *_SCALES, work=work)
    step = _step(found) if isinstance(found, ir.Node) else None
    if step is None:
        return found if isinstance(found, str) else None
    affine = step.affine(layer, layer.shape.sources)
    if isinstance(affine, str):
        return affine
    reason = _unlike(step, affine, layer, work)
    return reason or fold_before(work, layer, step.node, step.value, affine)


def _unlike(step: _Step, affine: Affine, layer: Layer, work: Work) -> str | None:
    """Return why the layer may read something else without the node before it."""
    turned = layer.node.attributes.get("transA")
    if turned is not None and turned.as_int() and np.unique(affine.factor).size > 1:
        return "Gemm reads the scaled values transposed"
    if not _keeps_shape(step, layer, work):
        return f"{step.node.op_type} before {layer.kind} may broadcast what it scales"
    return None


def _keeps_shape(step: _Step, layer: Layer, work: Work) -> bool:
    """Tell whether the operand that varies is certain to have the shape of the result."""
    tensor = step.tensor
    if tensor is None or len(tensor.shape) == 0:
        return True
    dims, rank = work.facts.of(step.value).dims, layer.shape.rank
    if dims is None:
        return tensor.size == 1 and rank is not None and len(tensor.shape) < rank
    at = len(dims) + layer.shape.axis
    fits = tensor.size == 1 or (at >= 0 and dims[at] == layer.shape.sources)
    return len(tensor.shape) <= len(dims) and fits


def _over_bias(node: ir.Node, work: Work) -> Result:
    """``(x @ W + b) * c`` is ``x @ (W * c) + b * c``."""
    step = _step(node) if work.opset(node) >= BROADCASTS else None
    add = step.value.producer() if step is not None else None
    if step is None or add is None or not is_op(add, "Add", "Sub") or add.overload:
        return None
    inner = _step(add) if add in work.selection and add.op_type not in work.redefined else None
    layer = layer_before(add, inner.value, work) if inner is not None else None
    if inner is None or not isinstance(layer, Layer) or layer.kind != "MatMul":
        return layer if isinstance(layer, str) else None
    affine, bias = (s.affine(layer, layer.shape.channels) for s in (step, inner))
    reason = alone(step.value, node, add.op_type)
    if reason is not None or isinstance(affine, str) or isinstance(bias, str):
        return next(text for text in (reason, affine, bias) if isinstance(text, str))
    return _scale_both(node, inner, layer, affine.factor, work)


def _scale_both(node: ir.Node, inner: _Step, layer: Layer, factor: Array, work: Work) -> Result:
    tensor = inner.tensor
    if tensor is None:
        return None
    even = factor[:1] if (factor == factor[0]).all() else factor
    if even.size > 1 and tensor.size == 1:
        return "the bias would become longer"
    with np.errstate(over="ignore", invalid="ignore"):
        bias = np.asarray(tensor.numpy(), np.float64)
        rounded = (bias * (even[0] if even.size == 1 else even)).astype(tensor.dtype.numpy())
    scale = scale_of(layer, factor) if np.isfinite(factor).all() else "its factors are not finite"
    if isinstance(scale, str) or not np.isfinite(rounded).all():
        return scale if isinstance(scale, str) else f"the bias does not fit {tensor.dtype.name}"
    if not work.affords(_copy(inner, work, rounded)):
        return "the new bias would make the file bigger"
    if work.replace(node, inner.node.outputs[0]) is None:
        return STAYS
    set_weight(work, inner.node, inner.place, ir.tensor(rounded.reshape(tensor.shape.numpy())))
    fold_over(work, layer, scale)
    return Applied((layer.node, inner.node))


def _copy(inner: _Step, work: Work, data: Array) -> int:
    """Return what a second constant costs when somebody else reads the first."""
    value = inner.node.inputs[inner.place]
    if value is None or work.constant_saving(value, {inner.node}):
        return 0
    return constant_cost(work, inner.node, data, f"{value.name}_10") + 4


RULES = (
    Rule(
        "constants_folded_into_layers",
        ("Add", "Sub", "Mul", "Div", "Neg"),
        _after,
        ROUNDING,
        below=dict.fromkeys(("Add", "Sub", "Mul", "Div", "Neg"), frozenset(LAYERS)),
    ),
    Rule(
        "constants_folded_into_layers",
        tuple(LAYERS),
        _before,
        ROUNDING,
        below=dict.fromkeys(LAYERS, frozenset(_SCALES)),
    ),
    Rule(
        "scales_folded",
        ("Mul", "Div", "Neg"),
        _over_bias,
        ROUNDING,
        below=dict.fromkeys(("Mul", "Div", "Neg"), frozenset({"Add", "Sub"})),
    ),
)
