"""Where in a tensor its non-blank elements are, in few bits, and the nodes that put them there.

====== ===================================================================== =======================
width  what is stored                                                        smallest for zeros of
====== ===================================================================== =======================
0      nothing: every element is                                             0 to 5 %
1      one bit per element                                                   to 65 %
2      distances of 2 bits; the largest says "go on, nothing here"           65 to 80 %
4      distances of 4 bits                                                   80 to 93 %
8      distances of 8 bits                                                   93 % and more
====== ===================================================================== =======================

Bits become positions with tables of a byte each, running sums, and one GatherElements or
ScatterElements: operators whose result has a shape known beforehand, which is what onnxruntime
folds (NonZero and Compress it does not). All arithmetic is on 32-bit integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from passes.storage.emit import Emitter, packed_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, Any]

OLDEST_OPSET = 11
"""First opset with CumSum, GatherElements, ScatterElements and Range."""
MOST_ELEMENTS = 1 << 30
"""Positions fit into 32 bits, with room for what is filled up."""
DENSE, MASK, GAPS = 0, 1, (2, 4, 8)
WIDTHS = (DENSE, MASK, *GAPS)
NODES: Mapping[int, int] = {DENSE: 0, MASK: 7, 2: 13, 4: 13, 8: 9}
"""Nodes of a decoder, for the estimate of its size."""
_INT32 = ir.DataType.INT32


def sizes(kept: Array) -> dict[int, int]:
    """Return the bytes that the positions take, by width; not :data:`DENSE`.

    Args:
        kept: bool, a vector: what is to be stored.
    """
    found = {MASK: -(-kept.size // 8)}
    distances = _distances(kept)
    for width in GAPS:
        largest = 2**width - 1
        codes = distances.size + int(((distances - 1) // largest).sum())
        found[width] = -(-codes * width // 8)
    return found


def nanoseconds(width: int, codes: float) -> float:
    """Estimate what the operators take per element of the result, memory apart.

    Args:
        width: How positions are stored.
        codes: Number of codes per element; 1 for a mask.
    """
    per_code = {DENSE: 0.0, MASK: 5.0, 2: 12.0, 4: 14.0, 8: 10.0}
    return per_code[width] * codes


def peak(width: int, elements: int, codes: int, itemsize: int) -> int:
    """Estimate the bytes of all that lies between the constants and the vector, that included."""
    if width == DENSE:
        return 0
    if width == MASK:
        return elements * (16 + itemsize)
    return codes * (40 + itemsize) + 2 * elements * itemsize


def write(
    emit: Emitter, kept: Array, width: int, stream: ir.Value, blank: ir.TensorProtocol
) -> tuple[ir.Value, int]:
    """Add the nodes that put elements into their places.

    Args:
        emit: Where the nodes go.
        kept: bool, a vector: the places.
        width: How they are stored.
        stream: The elements in order, behind one blank element where the width is not
            :data:`DENSE`; what comes after them is not read.
        blank: The element that stands everywhere else, a vector of one.

    Returns:
        The vector and its length, which is that of ``kept`` or larger.
    """
    if width == DENSE:
        return stream, kept.size
    if width == MASK:
        return _masked(emit, kept, stream)
    return _spaced(emit, kept, width, stream, blank)


def _masked(emit: Emitter, kept: Array, stream: ir.Value) -> tuple[ir.Value, int]:
    """Element i is the one whose number is the count of bits up to i, or the blank one."""
    stored = emit.constant(packed_bits(kept, MASK), "m")
    # Bytes, not integers of 32 bits, are gathered and reshaped: a quarter of the memory.
    bits = emit.cast(emit.unpacked(stored, MASK, ir.DataType.UINT8), _INT32)
    ranks = emit.node("Mul", emit.node("CumSum", bits, emit.number(0)), bits)
    return emit.node("GatherElements", stream, ranks), -(-kept.size // 8) * 8


def _spaced(
    emit: Emitter, kept: Array, width: int, stream: ir.Value, blank: ir.TensorProtocol
) -> tuple[ir.Value, int]:
    """Walk from element to element; escapes put a blank one where there is one anyhow."""
    largest = 2**width - 1
    codes = _codes(_distances(kept), largest)
    per_byte = 8 // width
    spare = -codes.size % per_byte
    end = int(codes.sum()) + int(np.count_nonzero(codes < largest)) + spare * largest
    stored = emit.constant(packed_bits(codes, width, largest), "m")
    steps = emit.unpacked(stored, width, _INT32)
    real = emit.cast(emit.node("Less", steps, emit.number(largest)), _INT32)
    ranks = emit.node("Mul", emit.node("CumSum", real, emit.number(0)), real)
    found = emit.node("GatherElements", stream, ranks)
    ends = emit.node("CumSum", emit.node("Add", steps, real), emit.number(0))
    places = emit.node("Sub", ends, emit.number(1))
    length = max(kept.size, end)
    empty = emit.node("ConstantOfShape", emit.sizes((length,)), attributes={"value": blank})
    return emit.node("ScatterElements", empty, places, found), length


def _distances(kept: Array) -> Array:
    """Return the distance of each element that is kept to the one before, at least 1."""
    return np.diff(np.flatnonzero(kept), prepend=-1)


def _codes(distances: Array, largest: int) -> Array:
    """Return distances less one, those that are too large behind escapes."""
    escapes, rest = np.divmod(distances - 1, largest)
    ends = np.cumsum(escapes + 1) - 1
    codes = np.full(int(ends[-1]) + 1 if ends.size else 0, largest, np.uint8)
    codes[ends] = rest
    return codes
