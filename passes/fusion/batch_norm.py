"""BatchNormalization into the weights of the layer before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant, is_op, set_constant
from converter.core.tensors import MappedTensor
from passes.rewriting import sizes
from passes.rewriting.work import Result, Rule, Work

Array = np.ndarray[Any, Any]

ROUNDING = "one rounding step of the weights: relative 1e-6 for float32, 1e-3 for float16"
_EAGER_BYTES = 1 << 20  # larger weights are scaled when they are read, chunk by chunk
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class _Affine:
    """``y = factor * x + shift`` per channel, in float64."""

    factor: Array
    shift: Array


@dataclass(frozen=True)
class _Layer:
    """Where a linear layer keeps its output channels.

    Attributes:
        channels: Number of output channels.
        period: Elements of the weight that follow each other and belong to one channel.
        repeat: The channel of flat element i is ``repeat(i // period)``.
    """

    channels: int
    period: int
    order: Array


@dataclass(frozen=True)
class ScaleChannels:
    """Multiplies the elements of a flat weight by a factor per channel.

    Attributes:
        factors: float64, in the order in which channels follow each other in the flat weight.
        period: Elements of one channel that follow each other.
    """

    factors: Array
    period: int

    def __call__(self, chunk: Array, start: int) -> Array:
        """Return the scaled chunk; ``start`` is the index of its first element."""
        index = np.arange(start, start + chunk.size) // self.period % self.factors.size
        with np.errstate(over="ignore", invalid="ignore"):
            return (chunk * self.factors[index]).astype(chunk.dtype)


def _conv(node: ir.Node, weight: tuple[int, ...]) -> _Layer | None:
    if len(weight) < 3:
        return None
    return _Layer(weight[0], int(np.prod(weight[1:])), np.arange(weight[0]))


def _conv_transpose(node: ir.Node, weight: tuple[int, ...]) -> _Layer | None:
    attribute = node.attributes.get("group")
    group = 1 if attribute is None else attribute.as_int()
    if len(weight) < 3 or group < 1 or weight[0] % group:
        return None
    # The weight is (in, out / group, ...); input channel i belongs to group i // (in / group).
    first = np.repeat(np.arange(group), weight[0] // group) * weight[1]
    order = (first[:, None] + np.arange(weight[1])).reshape(-1)
    return _Layer(weight[1] * group, int(np.prod(weight[2:])), order)


def _gemm(node: ir.Node, weight: tuple[int, ...]) -> _Layer | None:
    if len(weight) != 2:
        return None
    attribute = node.attributes.get("transB")
    if attribute is not None and attribute.as_int():
        return _Layer(weight[0], weight[1], np.arange(weight[0]))
    return _Layer(weight[1], 1, np.arange(weight[1]))


_LAYERS: dict[str, Callable[[ir.Node, tuple[int, ...]], _Layer | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
}


def _batch_norm(node: ir.Node, work: Work) -> Result:
    source = node.inputs[0]
    layer = source.producer() if source is not None else None
    if source is None or layer is None or not is_op(layer, *_LAYERS) or layer.overload:
        return None
    if layer not in work.selection or layer.op_type in work.redefined:
        return None
    reason = _training(node, work) or _layer_obstacle(layer, source, node)
    if reason is not None:
        return reason
    affine = _affine(node)
    return affine if isinstance(affine, str) else _fold(work, layer, node, affine)


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


def _layer_obstacle(layer: ir.Node, source: ir.Value, node: ir.Node) -> str | None:
    """Return why the layer's weights cannot take the normalization in."""
    if source.is_graph_output():
        return f"the output of {layer.op_type} before it is public"
    if len(source.uses()) != 1:
        return f"the output of {layer.op_type} before it is used elsewhere"
    if len(layer.inputs) < 2 or layer.inputs[1] is None:
        return "the layer before it has no weight"
    if layer.graph is not node.graph:
        return f"{layer.op_type} before it belongs to another graph"
    if any(a.is_ref() for a in layer.attributes.values()):
        return "the layer before it depends on an attribute of the function's call"
    return _weight_obstacle(layer.inputs[1], layer.op_type)


def _weight_obstacle(value: ir.Value, kind: str) -> str | None:
    weight = constant(value)
    if weight is None:
        return f"the weight of {kind} before it is no constant"
    if weight.dtype not in _FLOATS:
        return f"the weight of {kind} before it has type {weight.dtype.name}"
    if len(value.uses()) != 1 or value.is_graph_output():
        return f"the weight of {kind} before it is shared"
    return None


def _affine(node: ir.Node) -> _Affine | str:
    """Return the normalization as factor and shift, or why it has none."""
    arrays: list[Array] = []
    for value in node.inputs[1:5]:
        tensor = constant(value)
        if tensor is None or tensor.dtype not in _FLOATS or len(tensor.shape) != 1:
            return "a parameter of BatchNormalization is no constant vector"
        arrays.append(np.asarray(tensor.numpy(), np.float64))
    if len(arrays) != 4 or len({array.size for array in arrays}) != 1:
        return "the parameters of BatchNormalization do not fit each other"
    scale, bias, mean, variance = arrays
    attribute = node.attributes.get("epsilon")
    epsilon = float(np.float32(1e-5)) if attribute is None else attribute.as_float()
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        shift = bias - mean * factor
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return "its factors are not finite"
    return _Affine(factor, shift)


def _fold(work: Work, layer: ir.Node, node: ir.Node, affine: _Affine) -> Result:
    weight = constant(layer.inputs[1])
    assert weight is not None
    plan = _LAYERS[layer.op_type](layer, tuple(int(d) for d in weight.shape.numpy()))
    if plan is None or plan.channels != affine.factor.size or not plan.period:
        return "the parameters of BatchNormalization do not fit the layer's channels"
    bias = _bias(layer, plan.channels)
    if isinstance(bias, str):
        return bias
    with np.errstate(over="ignore", invalid="ignore"):
        new_bias = (bias * affine.factor + affine.shift).astype(weight.dtype.numpy())
    new_weight = _scaled(weight, ScaleChannels(affine.factor[plan.order], plan.period))
    if new_weight is None or not np.isfinite(new_bias).all():
        return f"the folded weights do not fit {weight.dtype.name}"
    if not work.affords(_cost(work, layer, node, new_bias)):
        return "the new bias would make the file bigger"
    _install(work, layer, new_weight, new_bias)
    return work.replace(node, layer.outputs[0]) or "its output cannot be moved"


def _bias(layer: ir.Node, channels: int) -> Array | str:
    """Return the layer's bias per channel in float64."""
    value = layer.inputs[2] if len(layer.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    tensor = constant(value)
    if tensor is None:
        return f"the bias of {layer.op_type} before it is no constant"
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if tensor.size not in {1, channels} or any(size != 1 for size in shape[:-1]):
        return f"the bias of {layer.op_type} before it is not per channel"
    beta = layer.attributes.get("beta")
    factor = 1.0 if beta is None else beta.as_float()
    array = np.asarray(tensor.numpy(), np.float64).reshape(-1) * factor
    return np.broadcast_to(array, (channels,))


def _scaled(weight: ir.TensorProtocol, scale: ScaleChannels) -> ir.TensorProtocol | None:
    """Return the scaled weight, or None when it overflows its type."""
    if weight.nbytes > _EAGER_BYTES:
        mapped = MappedTensor(weight, scale)
        finite = all(bool(np.isfinite(chunk).all()) for _, chunk in mapped.chunks())
        return mapped if finite else None
    array = np.asarray(weight.numpy())
    result = scale(array.reshape(-1), 0).reshape(array.shape)
    return ir.tensor(result, name=weight.name) if np.isfinite(result).all() else None


def _cost(work: Work, layer: ir.Node, node: ir.Node, bias: Array) -> int:
    """Return how much longer the file gets: the bias, less what only the old form needed."""
    gone = sizes.node_bytes(node)
    gone += sum(work.constant_saving(v, {node}) for v in dict.fromkeys(node.inputs[1:5]))
    if len(layer.inputs) > 2:
        gone += work.constant_saving(layer.inputs[2], {layer})
    return sizes.new_constant_bytes(bias.nbytes, 1, _bias_name(layer)) - gone


def _bias_name(layer: ir.Node) -> str:
    weight = layer.inputs[1]
    assert weight is not None
    return f"{weight.name}_bias"


def _install(work: Work, layer: ir.Node, weight: ir.TensorProtocol, bias: Array) -> None:
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    for index, data in ((1, weight), (2, ir.tensor(bias))):
        old = layer.inputs[index]
        if old is not None and old.is_initializer() and len(old.uses()) == 1:
            work.saved += (constant(old) or data).nbytes - data.nbytes
            set_constant(old, data)
            work.edits += 1
        else:
            name = _bias_name(layer) if index == 2 else (old.name if old else None) or "weight"
            work.set_input(layer, index, work.new_constant(layer, name, data))
    if layer.op_type == "Gemm" and "beta" in layer.attributes:
        layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


RULES = (Rule("batch_norms_fused", ("BatchNormalization",), _batch_norm, ROUNDING),)
