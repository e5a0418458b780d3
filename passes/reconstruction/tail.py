"""What follows a layer up to its activation: scaling, a sum with something else, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.reconstruction.activation import Activation, activation_of
from passes.reconstruction.linear import Linear, only_user

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_SAME = ("Identity", "Dropout")
_NORM_INPUTS = 5


@dataclass(frozen=True, eq=False)
class Tail:
    """The layer's output ``z`` becomes ``gain * z + offset + other``, then an activation.

    Attributes:
        gain: float64 (outputs,).
        offset: float64 (outputs,).
        other: What it is added to, or None.
        activation: Of nothing else than that sum; None: there is none.
        path: Operators on the way, to compare two models.
    """

    gain: Array
    offset: Array
    other: ir.Value | None = None
    activation: Activation | None = None
    path: tuple[str, ...] = field(default=())

    @classmethod
    def empty(cls, layer: Linear) -> Tail:
        """Return the tail of a layer whose output is looked at as it is."""
        return cls(np.ones(layer.outputs), np.zeros(layer.outputs))


def tail_of(layer: Linear) -> Tail:
    """Follow a layer's output as long as nobody else reads it."""
    tail = Tail.empty(layer)
    value = layer.last()
    while (node := only_user(value)) is not None:
        longer = _through(node, value, tail, layer)
        if longer is None:
            break
        tail = replace(longer, path=(*tail.path, node.op_type))
        if tail.activation is not None:
            break
        value = node.outputs[0]
    return tail


def _through(node: ir.Node, value: ir.Value, tail: Tail, layer: Linear) -> Tail | None:
    activation = activation_of(node) if node.inputs[0] is value else None
    if activation is not None:
        return replace(tail, activation=activation)
    if g.is_op(node, *_SAME):
        return tail if len([v for v in node.outputs if tuple(v.uses())]) <= 1 else None
    if g.is_op(node, "Add") and tail.other is None:
        return _sum(node, value, tail, layer)
    if g.is_op(node, "BatchNormalization") and tail.other is None:
        return _normalised(node, value, tail, layer)
    return None


def _sum(node: ir.Node, value: ir.Value, tail: Tail, layer: Linear) -> Tail | None:
    others = [v for v in node.inputs if v is not value]
    if len(others) != 1 or others[0] is None:
        return None
    array = g.constant_array(others[0])
    if array is None:
        fixed = others[0].is_initializer()
        return None if fixed else replace(tail, other=others[0])
    axes = len(layer.geometry.kernel)
    vector = _per_channel(array, axes + 2 if axes else None, layer.outputs)
    return None if vector is None else replace(tail, offset=tail.offset + vector)


def _per_channel(array: Array, rank: int | None, outputs: int) -> Array | None:
    """Read a constant that is added as a vector over the channels; None: it is none.

    Args:
        array: The constant.
        rank: Axes of a value with channels on axis 1; None: they are on the last axis.
        outputs: Channels.
    """
    if array.size == 1:
        return np.full(outputs, float(array.reshape(-1)[0]))
    position = array.ndim - 1 if rank is None else array.ndim - (rank - 1)
    if array.size != outputs or not 0 <= position < array.ndim:
        return None
    return array.astype(np.float64).reshape(-1) if array.shape[position] == outputs else None


def _normalised(node: ir.Node, value: ir.Value, tail: Tail, layer: Linear) -> Tail | None:
    training = node.attributes.get_int("training_mode", 0)
    if len(node.inputs) != _NORM_INPUTS or node.inputs[0] is not value or training:
        return None
    rank = None if value.shape is None else len(value.shape)
    if not layer.geometry.kernel and rank != 2:
        return None  # its channels are another axis than the layer's
    arrays = [g.constant_array(v) for v in node.inputs[1:]]
    if any(a is None or a.size != layer.outputs for a in arrays):
        return None
    scale, bias, mean, variance = (np.asarray(a, np.float64).reshape(-1) for a in arrays)
    gain = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return replace(tail, gain=tail.gain * gain, offset=(tail.offset - mean) * gain + bias)
