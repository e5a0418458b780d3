"""LSTM layers on 8-bit weights: onnxruntime's DynamicQuantizeLSTM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.affine.grid import INT8_SYMMETRIC, Array
from passes.affine.scale import largest, weight_scales
from passes.dynamic.store import constant

_DOMAIN = "com.microsoft"

_LEAST_ELEMENTS = 64 * 64
_DEFAULTS = ("Sigmoid", "Tanh", "Tanh")
_INPUTS = 8


@dataclass(frozen=True, eq=False)
class Layer:
    """An LSTM.

    Attributes:
        node: The node.
        graph: The graph it is in.
        weight: W, (directions, 4 x hidden, inputs).
        recurrence: R, (directions, 4 x hidden, hidden).
    """

    node: ir.Node
    graph: ir.Graph
    weight: ir.Value
    recurrence: ir.Value


def offer_lstm(node: ir.Node, graph: ir.Graph) -> Layer | str:
    """Return the layer, or say why it stays in float."""
    weight, recurrence = node.inputs[1], node.inputs[2]
    for value in (weight, recurrence):
        reason = _refusal(value)
        if reason:
            return reason
    assert weight is not None
    assert recurrence is not None
    if node.attributes.get_int("layout", 0):
        return "onnxruntime has no batch-first LSTM on integers"
    given = tuple(node.attributes.get_strings("activations", ()))
    if any(name != _DEFAULTS[i % len(_DEFAULTS)] for i, name in enumerate(given)):
        return "its activations are not those of the integer LSTM"
    return Layer(node, graph, weight, recurrence)


def _refusal(value: ir.Value | None) -> str:
    tensor = g.constant(value)
    if tensor is None or value is None:
        overridable = value is not None and value.is_graph_input() and value.is_initializer()
        return g.OVERRIDABLE if overridable else "the weight is not constant"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"the weight is {tensor.dtype.name.lower()}, not float32"
    if tensor.size < _LEAST_ELEMENTS:
        return "too small to be faster on integers"
    if not np.isfinite(tensor.numpy()).all():
        return "the weight holds NaN or infinity"
    return ""


def write_lstm(layer: Layer, model: ir.Model, names: g.Names, *, per_channel: bool) -> None:
    """Replace the layer; its outputs keep their names.

    Args:
        layer: The layer, in the main graph or a sub-graph of it.
        model: The model; it imports the operators of onnxruntime from now on.
        names: Hands out names.
        per_channel: One scale per gate of a unit, not one per direction.
    """
    node = layer.node
    inputs = [*node.inputs, *[None] * (_INPUTS - len(node.inputs))]
    parts: list[ir.Value] = []
    for position, value in ((1, layer.weight), (2, layer.recurrence)):
        name = value.name or "lstm"
        integers, scales = _gates(value, per_channel=per_channel)
        inputs[position] = constant(names, value, f"{name}_quantized", integers)
        parts.append(constant(names, value, f"{name}_scale", scales))
        zeros = np.zeros(scales.shape, np.int8)
        parts.append(constant(names, value, f"{name}_zero_point", zeros))
    made = ir.Node(
        _DOMAIN,
        "DynamicQuantizeLSTM",
        [*inputs, *parts],
        [a for key, a in node.attributes.items() if key != "layout"],
        num_outputs=len(node.outputs),
        name=names.fresh(f"{node.name or 'LSTM'}_quantized"),
    )
    layer.graph.insert_before(node, made)
    for old, new in zip(tuple(node.outputs), made.outputs, strict=True):
        new.name, new.type, new.shape = "", old.type, old.shape
        if old.name:
            kept = old.name
            g.redirect(old, new)
            old.name, new.name = f"{kept}_replaced", kept
    layer.graph.remove(node, safe=True)
    model.graph.opset_imports.setdefault(_DOMAIN, 1)


def _gates(value: ir.Value, *, per_channel: bool) -> tuple[Array, Array]:
    """Return int8 (directions, inputs, 4 x hidden) and float32 scales per direction (and gate)."""
    weight = g.constant_array(value)
    assert weight is not None
    magnitude = largest(weight.reshape(-1, weight.shape[-1]), 0).reshape(weight.shape[:2])
    if not per_channel:
        magnitude = magnitude.max(axis=1, keepdims=True)
    scales = weight_scales(np.broadcast_to(magnitude, weight.shape[:2]))
    steps = np.clip(np.rint(weight / scales[..., None]), INT8_SYMMETRIC.low, INT8_SYMMETRIC.high)
    integers = np.ascontiguousarray(steps.astype(np.int8).transpose(0, 2, 1))
    return integers, scales if per_channel else np.ascontiguousarray(scales[:, 0])
