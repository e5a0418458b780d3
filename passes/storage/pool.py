"""Constants that share a decoder: one behind the other in a vector, decoded once, then cut apart.

What a decoder adds to a file, a kilobyte, is as much as a small constant has. Two nodes for each
remain: Reshape, and Mul by its scales or GatherElements in its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from passes.storage import places
from passes.storage.content import Content, stored_side
from passes.storage.emit import INITIALIZER_BYTES, NODE_BYTES, Emitter, packed_bits
from passes.storage.form import Constant, Member, Pool

if TYPE_CHECKING:
    from passes.encoding.build import Builder

Array = np.ndarray[Any, Any]
Key = tuple[str, int, str, int]
"""Kind, bits, element type, blank: constants that are alike in these can share a decoder."""

_BYTES_BYTES = 200
_TABLE_BYTES = 150
"""The numbers 0 to 255, and a table of the integers in each: all decoders of a graph share them."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant, what its elements are stored as, and how their places are.

    Attributes:
        constant: The constant.
        content: Its elements.
        width: Of the positions, see :mod:`passes.storage.places`.
        nbytes: Bytes of elements, positions, scales or table, and its own nodes.
    """

    constant: Constant
    content: Content
    width: int
    nbytes: int

    @property
    def key(self) -> Key:
        """What it can share a decoder with."""
        content = self.content
        return (content.kind, content.bits, self.constant.array.dtype.str, content.blank)

    @property
    def form(self) -> str:
        """Name for the report."""
        kind, bits = self.content.kind, self.content.bits
        number = {"raw": "", "half": "float16", "scaled": f"int{bits}"}.get(kind, f"palette {bits}")
        place = {places.DENSE: "", places.MASK: "bitmask"}.get(self.width, f"gaps {self.width}")
        return " + ".join(part for part in (place, number) if part) or "plain"


def ways(constant: Constant, content: Content) -> list[Stored]:
    """Return a constant in one kind with its positions stored in every width."""
    elements, kept = content.codes.size, int(np.count_nonzero(content.kept))
    own = content.side_bytes + content.nodes * NODE_BYTES + 40
    found = [Stored(constant, content, places.DENSE, _bytes(elements, content.bits) + own)]
    if kept < elements:
        values = _bytes(kept, content.bits) + own
        for width, nbytes in places.sizes(content.kept).items():
            found.append(Stored(constant, content, width, nbytes + values))
    return found


def key_overhead(key: Key) -> int:
    """Bytes that a decoder of a kind needs whatever its widths are."""
    cast = 4 * NODE_BYTES if key[1] < 8 else 0
    return (3 if key[0] in ("scaled", "palette") else 1) * NODE_BYTES + 3 * INITIALIZER_BYTES + cast


def width_overhead(width: int) -> int:
    """Bytes that one more width needs in a decoder."""
    return places.NODES[width] * NODE_BYTES + 3 * INITIALIZER_BYTES


def make_pool(stored: Sequence[Stored]) -> Pool:
    """Let constants of one key share a decoder.

    Args:
        stored: At least one; all of one :attr:`Stored.key`.
    """
    widths = sorted({one.width for one in stored})
    overhead = key_overhead(stored[0].key) + sum(map(width_overhead, widths))
    tables = {bits for bits in (*widths, stored[0].content.bits) if 0 < bits < 8}
    overhead += _TABLE_BYTES * len(tables) + _BYTES_BYTES * bool(tables)
    total = sum(one.nbytes for one in stored)
    members = tuple(_member(one, overhead * one.nbytes / max(1, total)) for one in stored)
    write = partial(_write, list(stored))
    return Pool(members, total + overhead, sum(map(_peak, stored)), write)


def _member(one: Stored, share: float) -> Member:
    content = one.content
    kept = np.count_nonzero(content.kept) / max(1, content.codes.size)
    tail = {"raw": 1.0, "half": 1.5, "scaled": 2.5, "palette": 4.0}[content.kind]
    cost = tail + places.nanoseconds(one.width, float(kept))
    nbytes = one.nbytes + round(share)
    return Member(one.constant, one.form, nbytes, cost, content.error, content.decoded)


def _peak(one: Stored) -> int:
    """Bytes of everything between what is stored and the result."""
    content, size = one.content, one.constant.array.itemsize
    elements, kept = content.codes.size, int(np.count_nonzero(content.kept))
    carried = size if content.kind in ("raw", "half") else 1
    steps = {"raw": 1, "half": 2, "scaled": 3, "palette": 3}[content.kind]
    return elements * size * steps + places.peak(one.width, elements, kept, carried)


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _write(stored: list[Stored], build: Builder) -> list[ir.Value]:
    """Add the decoder; returns one value per constant, in their order."""
    emit = Emitter(build)
    widths = sorted({one.width for one in stored})
    order = [one for width in widths for one in stored if one.width == width]
    regions: list[ir.Value] = []
    lengths: list[int] = []
    for width in widths:
        part = [one for one in order if one.width == width]
        value, length = _region(emit, part, width)
        regions.append(value)
        lengths.extend(one.content.codes.size for one in part)
        spare = length - sum(one.content.codes.size for one in part)
        if spare:
            lengths.append(spare)
            order.insert(order.index(part[-1]) + 1, _SPARE)
    flat = _widened(emit, emit.joined(regions), stored[0])
    pieces = zip(order, emit.split(flat, lengths), strict=True)
    vectors = {id(one): piece for one, piece in pieces if one is not _SPARE}
    sides = _sides(emit, stored)
    found = []
    for one in stored:
        value = _finished(emit, one, vectors[id(one)], sides.get(id(one)))
        value.type = ir.TensorType(ir.DataType.from_numpy(one.constant.array.dtype))
        found.append(value)
    return found


def _region(emit: Emitter, part: list[Stored], width: int) -> tuple[ir.Value, int]:
    """Add what decodes the constants whose positions have one width."""
    content = part[0].content
    codes = np.concatenate([one.content.codes for one in part])
    kept = np.concatenate([one.content.kept for one in part])
    if width == places.DENSE:
        per_byte = max(1, 8 // content.bits)
        return _stream(emit, codes, part[0]), -(-codes.size // per_byte) * per_byte
    blank = np.asarray([content.blank], codes.dtype)
    stream = _stream(emit, np.concatenate([blank, codes[kept]]), part[0])
    carried = np.float32 if content.kind == "half" else codes.dtype
    return places.write(emit, kept, width, stream, ir.tensor(blank.astype(carried)))


def _stream(emit: Emitter, codes: Array, one: Stored) -> ir.Value:
    """Add the elements that are stored, as a vector of integers or of the constant's type."""
    content = one.content
    if content.kind == "half":
        return emit.cast(emit.constant(codes, "v"), ir.DataType.FLOAT)
    if content.bits >= 8:
        return emit.constant(codes, "v")
    if content.kind == "palette":
        stored = emit.constant(packed_bits(codes, content.bits), "v")
        return emit.unpacked(stored, content.bits, ir.DataType.UINT8)
    return emit.signed(emit.constant(packed_bits(codes.astype(np.int16) + 8, 4, 8), "v"))


def _widened(emit: Emitter, flat: ir.Value, one: Stored) -> ir.Value:
    """Turn integers into what the last step computes with."""
    if one.content.kind == "scaled":
        # Products of float16 numbers are folded late, at the higher levels of optimisation alone.
        return emit.cast(flat, ir.DataType.FLOAT)
    if one.content.kind == "palette":
        return emit.cast(flat, ir.DataType.INT32)
    return flat


def _finished(emit: Emitter, one: Stored, vector: ir.Value, side: ir.Value | None) -> ir.Value:
    """Add the last nodes of one constant."""
    shape = emit.sizes(one.constant.array.shape)
    if one.content.kind == "palette":
        assert side is not None
        return emit.node("Reshape", emit.node("GatherElements", side, vector), shape)
    value = emit.node("Reshape", vector, shape)
    if side is None:
        return value
    product = emit.node("Mul", value, side)
    single = one.constant.array.dtype == np.float32
    return product if single else emit.cast(product, ir.DataType.FLOAT16)


def _sides(emit: Emitter, stored: list[Stored]) -> dict[int, ir.Value]:
    """Add scales and tables; those that differ along their first axis alone share a vector."""
    groups: dict[tuple[Any, ...], list[tuple[Stored, Array]]] = {}
    found: dict[int, ir.Value] = {}
    for one in stored:
        side = one.content.scales if one.content.table is None else one.content.table
        if side is not None:
            side = _squeezed(stored_side(side))
            alone = (id(one),) if side.ndim and side.size != len(side) else ()
            groups.setdefault((side.dtype.str, side.shape[1:], *alone), []).append((one, side))
    for group in groups.values():
        first = group[0][0]
        kind = ir.DataType.from_numpy(first.constant.array.dtype)
        kind = ir.DataType.FLOAT if first.content.kind == "scaled" else kind
        value = emit.constant(np.concatenate([side for _, side in group]), "s")
        if value.dtype != kind:
            value = emit.cast(value, kind)
        pieces = emit.split(value, [len(side) for _, side in group])
        found.update({id(one): piece for (one, _), piece in zip(group, pieces, strict=True)})
    return found


def _squeezed(side: Array) -> Array:
    """Take away axes of one in front, as far as there is another one."""
    while side.ndim > 1 and side.shape[0] == 1:
        side = side[0]
    return side


_NOTHING = np.zeros(0, np.uint8)
_SPARE = Stored(
    Constant(ir.Value(name="spare"), _NOTHING), Content("raw", 8, _NOTHING, lambda: _NOTHING), 0, 0
)
"""Stands for elements behind the last constant of a region."""
