"""Weights as layers see them: constants, also behind a cast, a transpose or a dequantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import constant_array, is_op

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_DEEPEST = 6


def weight_of(value: ir.Value | None, depth: int = 0) -> Array | None:
    """Return what a value always is, or None when it is no weight.

    Quantized weights are returned as the numbers that they stand for.
    """
    found = constant_array(value)
    if found is not None or value is None or depth > _DEEPEST:
        return found
    node = value.producer()
    if node is None or not is_op(node, "Identity", "Cast", "Transpose", "DequantizeLinear"):
        return None
    source = weight_of(node.inputs[0], depth + 1)
    if source is None:
        return None
    if is_op(node, "Transpose"):
        return np.transpose(
            source, node.attributes.get_ints("perm", tuple(reversed(range(source.ndim))))
        )
    return _dequantized(node, source) if is_op(node, "DequantizeLinear") else source


def weight_at(node: ir.Node, position: int) -> Array | None:
    """Return a weight as an input of a node, in numbers: integers stand for what is made of them.

    None for scales and zero points of integers, which are no weights of their own.
    """
    if not is_op(node, "DequantizeLinear"):
        return weight_of(node.inputs[position])
    return weight_of(node.outputs[0]) if position == 0 else None


def floats(array: Array) -> Array:
    """Return an array in float32 or float64, whichever holds its numbers."""
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def _dequantized(node: ir.Node, source: Array) -> Array | None:
    """Return ``(x - zero) * scale`` of a constant, per tensor, per channel or per block."""
    scale = constant_array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant_array(given)
    if scale is None or (given is not None and zero is None):
        return None
    numbers = source.astype(np.float32)
    axis = node.attributes.get_int("axis", 1)
    factor, offset = (
        _aligned(part, numbers.shape, axis)
        for part in (scale, np.zeros(scale.shape) if zero is None else zero)
    )
    if factor is None or offset is None:
        return None
    return np.asarray((numbers - offset) * factor, np.float32)


def _aligned(part: Array, shape: tuple[int, ...], axis: int) -> Array | None:
    """Return scales in a shape that broadcasts to the weight, or None when they do not fit."""
    wide = part.astype(np.float32)
    if wide.size == 1:
        return wide.reshape(())
    axis %= len(shape)
    if wide.ndim == 1:
        if wide.size != shape[axis]:
            return None
        return wide.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    if wide.ndim != len(shape) or not wide.shape[axis] or shape[axis] % wide.shape[axis]:
        return None
    return np.repeat(wide, shape[axis] // wide.shape[axis], axis)
