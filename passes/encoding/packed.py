"""Several small integers in one byte, taken apart by operators that every opset from 7 on has.

A byte holds ``8 / bits`` integers, each from another part of the tensor, so that taking it apart is
division by powers of two and one Concat: exact in float, and onnxruntime folds it at load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.encoding.build import Builder

Array = np.ndarray[Any, Any]

OLDEST_OPSET = 7
"""First opset whose Mul and Sub broadcast."""


def pack(codes: Array, bits: int) -> Array:
    """Pack along the last axis.

    Args:
        codes: Integers from 0 to 2^bits - 1, (..., n) with n a multiple of 8 / bits.
        bits: 1, 2 or 4.

    Returns:
        uint8 (..., n * bits / 8): byte ``i`` holds, from its lowest bits up, the elements ``i``,
        ``i + n * bits / 8`` and so on.
    """
    parts = np.split(codes.astype(np.uint8), 8 // bits, axis=-1)
    packed = np.zeros_like(parts[0])
    for position, part in enumerate(parts):
        packed |= part << np.uint8(position * bits)
    return packed


def unpack(build: Builder, packed: ir.Value, bits: int, kind: ir.DataType) -> ir.Value:
    """Add the nodes that undo :func:`pack` on a value; the result is a tensor of floats.

    Args:
        build: Where the nodes go.
        packed: uint8 value.
        bits: 1, 2, 4; 8 makes a mere Cast.
        kind: FLOAT or FLOAT16: both hold all integers up to 255 and their quotients exactly.
    """
    rest = build.node("Cast", [packed], kind, {"to": int(kind)})
    if bits == 8:
        return rest
    parts = []
    size = float(2**bits)
    for _ in range(8 // bits - 1):
        share = build.node("Mul", [rest, build.scalar(1 / size, kind)], kind)
        high = build.node("Floor", [share], kind)
        raised = build.node("Mul", [high, build.scalar(size, kind)], kind)
        parts.append(build.node("Sub", [rest, raised], kind))
        rest = high
    # Gathered bytes have axes in front that nobody knows: the last one is counted from the end
    # only since opset 11, and a flat tensor has no other.
    return build.node("Concat", [*parts, rest], kind, {"axis": _axis(packed)})


def _axis(packed: ir.Value) -> int:
    return 0 if packed.shape is not None and len(packed.shape) == 1 else -1
