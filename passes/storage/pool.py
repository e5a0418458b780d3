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


_LATE = 1 << 20
"""Elements from which integers are cut and shaped before a Cast makes them four times as large."""
_FAULTS = 0.2
"""Nanoseconds for each byte that decoding touches: the system hands it out page by page."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant, what its elements are stored as, and how their places are.

    Attributes:
        constant: The constant.
        content: Its elements.
        width: Of the positions, see :mod:`passes.storage.places`.
        codes: Number of codes that the positions are.
        nbytes: Bytes of elements, positions, scales or table, and its own nodes.
    """

    constant: Constant
    content: Content
    width: int
    codes: int
    nbytes: int

    @property
    def key(self) -> Key:
        """What it can share a decoder with."""
        content = self.content
        return (content.kind, content.bits, self.constant.array.dtype.name, content.blank)

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
    found = [Stored(constant, content, places.DENSE, 0, _bytes(elements, content.bits) + own)]
    if kept < elements:
        values = _bytes(kept, content.bits) + own
        for width, nbytes in places.sizes(content.kept).items():
            codes = nbytes * 8 // width
            found.append(Stored(constant, content, width, codes, nbytes + values))
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
    kept = int(np.count_nonzero(content.kept)) if one.width else content.codes.size
    elements = max(1, content.codes.size)
    # Looking up a byte in a table takes as long whatever the number of integers in it.
    cost = content.bits * kept / elements if content.bits < 8 else 0.0
    cost += {"raw": 0.5, "half": 0.8, "scaled": 1.0, "palette": 1.5}[content.kind]
    cost += places.nanoseconds(one.width, one.codes / elements)
    cost += _FAULTS * _peak(one) / elements
    nbytes = one.nbytes + round(share)
    return Member(one.constant, one.form, nbytes, cost, content.error, content.decoded)


def _peak(one: Stored) -> int:
    """Bytes of everything between what is stored and the result."""
    content, size = one.content, one.constant.array.itemsize
    elements = content.codes.size
    carried = size if content.kind in ("raw", "half") else 1
    steps = {"raw": 1, "half": 2, "scaled": 3, "palette": 3}[content.kind]
    return elements * size * steps + places.peak(one.width, elements, one.codes, carried)


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _write(stored: list[Stored], build: Builder) -> list[ir.Value]:
    """Add the decoder; returns one value per constant, in their order."""
    emit = Emitter(build)
    blocks = _blocks(stored)
    regions: list[ir.Value] = []
    lengths: list[int] = []
    owners: list[list[Stored]] = []
    for width in sorted({block[0].width for block in blocks}):
        part = [block for block in blocks if block[0].width == width]
        value, length = _region(emit, [one for block in part for one in block], width)
        regions.append(value)
        owners += part
        lengths += [_elements(block) for block in part]
        spare = length - sum(map(_elements, part))
        if spare:
            owners.append([])
            lengths.append(spare)
    flat = emit.joined(regions)
    late = sum(lengths) > _LATE
    if not late:
        flat = _widened(emit, flat, stored[0])
    found: dict[int, ir.Value] = {}
    for block, vector in zip(owners, emit.split(flat, lengths), strict=True):
        if block:
            values = _finished(emit, block, vector, late=late)
            found.update(zip(map(id, block), values, strict=True))
    for one in stored:
        kind = ir.DataType.from_numpy(one.constant.array.dtype)
        found[id(one)].type = ir.TensorType(kind)
    return [found[id(one)] for one in stored]


def _elements(block: list[Stored]) -> int:
    return sum(one.content.codes.size for one in block)


def _blocks(stored: list[Stored]) -> list[list[Stored]]:
    """Return constants that make one larger tensor when put behind each other along axis 0."""
    blocks: dict[tuple[Any, ...], list[Stored]] = {}
    for one in stored:
        shape, side = one.constant.array.shape, one.content.scales
        along_first = side is None or side.size == side.shape[0] == shape[0]
        alone = not shape or one.content.table is not None or not along_first
        alone = alone or one.content.blocked is not None
        halves = None if side is None else stored_side(side).dtype.str
        key = (one.width, shape[1:], halves, id(one) if alone else 0)
        blocks.setdefault(key, []).append(one)
    return list(blocks.values())


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
    if codes.dtype == np.uint8:
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


def _finished(
    emit: Emitter, block: list[Stored], vector: ir.Value, *, late: bool
) -> list[ir.Value]:
    """Add the last nodes of constants that form one tensor; ``late``: the Cast is among them."""
    first = block[0]
    shape = first.constant.array.shape
    content = first.content
    if content.table is not None:
        vector = _widened(emit, vector, first) if late else vector
        table = _side(emit, first, stored_side(content.table))
        vector = emit.node("GatherElements", table, vector)
    rows = [one.constant.array.shape[0] for one in block if shape]
    whole = (sum(rows), *shape[1:]) if shape else ()
    value = emit.node("Reshape", vector, emit.sizes(content.blocked or whole))
    if content.scales is not None:
        value = _widened(emit, value, first) if late else value
        side = [stored_side(one.content.scales) for one in block if one.content.scales is not None]
        value = emit.node("Mul", value, _side(emit, first, np.concatenate(side)))
    if content.blocked is not None:
        value = emit.node("Reshape", value, emit.sizes(shape))
    values = emit.split(value, rows) if len(block) > 1 else [value]
    kind = ir.DataType.from_numpy(first.constant.array.dtype)
    last = content.bits == 4 and content.kind == "raw"
    if last or (content.kind == "scaled" and kind != ir.DataType.FLOAT):
        values = [emit.cast(value, kind) for value in values]
    return values


def _side(emit: Emitter, one: Stored, side: Array) -> ir.Value:
    """Add scales, as floats, or a table, as the type of the constant."""
    kind = ir.DataType.from_numpy(one.constant.array.dtype)
    kind = ir.DataType.FLOAT if one.content.kind == "scaled" else kind
    value = emit.constant(side, "s")
    return value if value.dtype == kind else emit.cast(value, kind)
