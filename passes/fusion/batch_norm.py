"""BatchNormalization into the weights of the layer before it, or of the one after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import constant
from passes.fusion.layer import (
    FLOATS,
    LAYERS,
    Layer,
    layer_before,
    layer_of,
    step_before,
    varies,
)
from passes.fusion.weights import ROUNDING, Affine, ScaleChannels, fold_after, fold_before
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES", "ScaleChannels", "affine_of"]

Array = np.ndarray[Any, Any]


def _after(node: ir.Node, work: Work) -> Result:
    layer = layer_before(node, node.inputs[0], work)
    if layer is None:
        return None
    if isinstance(layer, str):
        return layer
    affine = _training(node, work) or _unaligned(layer, work, "before") or affine_of(node)
    if isinstance(affine, str):
        return affine
    if affine.factor.size != layer.shape.channels:
        return "the parameters of BatchNormalization do not fit the layer's channels"
    return fold_after(work, layer, node, affine)


def _before(node: ir.Node, work: Work) -> Result:
    layer = layer_of(node, work)
    if not isinstance(layer, Layer):
        return None
    norm = step_before(layer, "BatchNormalization", work=work)
    if norm is None or isinstance(norm, str) or norm.inputs[0] is None:
        return norm if isinstance(norm, str) else None
    affine = _training(norm, work) or _misfit(layer, work) or affine_of(norm)
    if isinstance(affine, str):
        return affine
    return _mismatch(layer, affine) or fold_before(work, layer, norm, norm.inputs[0], affine)


def _mismatch(layer: Layer, affine: Affine) -> str | None:
    if affine.factor.size != layer.shape.sources:
        return "the parameters of BatchNormalization do not fit the layer's channels"
    if affine.shift.any() and layer.pads():
        return f"zeros that {layer.kind} reads beside its input do not pass BatchNormalization"
    return None


def _misfit(layer: Layer, work: Work) -> str | None:
    if layer.kind == "ConvTranspose":
        return "the sums at the borders of ConvTranspose differ"
    attribute = layer.node.attributes.get("transA")
    if attribute is not None and attribute.as_int():
        return "Gemm reads the normalized values transposed"
    return _unaligned(layer, work, "after")


def _unaligned(layer: Layer, work: Work, where: str) -> str | None:
    """Return why axis 1, which is normalized, may not be the one of the layer's channels."""
    dims = work.facts.of(layer.source).dims
    if layer.shape.rank is not None or (dims and len(dims) == len(layer.weight.shape) == 2):
        return None
    return f"MatMul {where} it may have more than two axes"


def _training(node: ir.Node, work: Work) -> str | None:
    """Return why the node is not the inference form, which is affine per channel."""
    if any(a.is_ref() for a in node.attributes.values()):
        return "it depends on an attribute of the function's call"
    version = work.opset(node)
    flag = node.attributes.get("training_mode")
    test = node.attributes.get("is_test")
    spatial = node.attributes.get("spatial")
    if version >= 14 and flag is not None and flag.as_int():
        return "BatchNormalization runs in training mode"
    if version < 7 and (test is None or not test.as_int()):
        return "BatchNormalization runs in training mode"
    if version < 9 and spatial is not None and not spatial.as_int():
        return "BatchNormalization has statistics per position"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "statistics of BatchNormalization are used"
    return None


def affine_of(node: ir.Node) -> Affine | str:
    """Return the normalization as factor and shift, or why it has none."""
    arrays: list[Array] = []
    for value in node.inputs[1:5]:
        tensor = constant(value)
        if tensor is None and value is not None:
            return varies("a parameter of BatchNormalization", value)
        if tensor is None or tensor.dtype not in FLOATS or len(tensor.shape) != 1:
            return "a parameter of BatchNormalization is no constant vector"
        arrays.append(np.asarray(tensor.numpy(), np.float64))
    if len(arrays) != 4 or len({array.size for array in arrays}) != 1:
        return "the parameters of BatchNormalization do not fit each other"
    scale, bias, mean, variance = arrays
    attribute = node.attributes.get("epsilon")
    epsilon = float(np.float32(1e-5)) if attribute is None else attribute.as_float()
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        return Affine(factor, bias - mean * factor)


RULES = (
    Rule("batch_norms_fused", ("BatchNormalization",), _after, ROUNDING),
    Rule("batch_norms_fused", tuple(LAYERS), _before, ROUNDING),
)
