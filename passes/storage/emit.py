"""Nodes of decoders: short names, no declared types, constants that several decoders share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.encoding.build import Builder

Array = np.ndarray[Any, Any]

NODE_BYTES = 36
"""What a node and the name of its output add to a file, about."""
INITIALIZER_BYTES = 24
"""What an initializer adds beside its elements, about."""


class Emitter:
    """Adds nodes without types to a graph.

    Args:
        build: Where they go.
    """

    def __init__(self, build: Builder) -> None:
        self._build = build

    def constant(self, data: Array, name: str = "k") -> ir.Value:
        """Add an initializer."""
        return self._build.constant(name, np.ascontiguousarray(data).reshape(data.shape))

    def number(self, number: int, kind: type[np.generic] = np.int32) -> ir.Value:
        """Return a constant of one number; equal ones are shared."""
        array = np.asarray(number, kind)
        return self.once(f"number {array.dtype} {number}", lambda: self.constant(array))

    def sizes(self, dims: Sequence[int]) -> ir.Value:
        """Return an int64 vector; equal ones are shared."""
        array = np.asarray(dims, np.int64)
        return self.once(f"sizes {tuple(dims)}", lambda: self.constant(array))

    def once(self, key: str, make: Callable[[], ir.Value]) -> ir.Value:
        """Return what was made under this key before in this graph, or make it."""
        found = self._build.shared.get(key)
        if found is None:
            found = self._build.shared[key] = make()
        return found

    def node(
        self, op_type: str, *inputs: ir.Value, attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Add a node with one output."""
        output = self._build.node(op_type, inputs, ir.DataType.UNDEFINED, attributes)
        output.type = None
        return output

    def cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """Add a Cast."""
        return self.node("Cast", value, attributes={"to": int(kind)})

    def flat(self, value: ir.Value) -> ir.Value:
        """Make one axis of all."""
        return self.node("Reshape", value, self.sizes((-1,)))

    def joined(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Put vectors behind each other."""
        if len(parts) == 1:
            return parts[0]
        return self.node("Concat", *parts, attributes={"axis": 0})

    def split(self, value: ir.Value, lengths: Sequence[int]) -> list[ir.Value]:
        """Cut along the first axis."""
        if len(lengths) == 1:
            return [value]
        name = self._build.fresh("s")
        outputs = [ir.Value(name=f"{name}.{i}") for i in range(len(lengths))]
        if self._build.opset >= 13:
            inputs = [value, self.constant(np.asarray(lengths, np.int64))]
            self._build.place(ir.node("Split", inputs, outputs=outputs, name=name))
        else:
            attributes = {"split": [int(n) for n in lengths]}
            self._build.place(ir.node("Split", [value], attributes, outputs=outputs, name=name))
        return outputs

    def digits(self, bits: int) -> ir.Value:
        """Return int32 (256, 8 / bits): the integers of ``bits`` bits in every byte, lowest first.

        Computed, not stored: one for all decoders of the graph.
        """
        return self.once(f"digits {bits}", lambda: self._digits(bits))

    def _digits(self, bits: int) -> ir.Value:
        bytes_ = self.once("bytes", self._bytes)
        powers = self.constant(2 ** (bits * np.arange(8 // bits, dtype=np.int32)))
        return self.node("Mod", self.node("Div", bytes_, powers), self.number(2**bits))

    def _bytes(self) -> ir.Value:
        span = self.node("Range", self.number(0), self.number(256), self.number(1))
        return self.node("Reshape", span, self.sizes((256, 1)))

    def unpacked(self, packed: ir.Value, bits: int, kind: ir.DataType) -> ir.Value:
        """Take integers of ``bits`` bits out of bytes, see :func:`packed_bits`.

        Args:
            packed: uint8 vector.
            bits: 1, 2, 4 or 8.
            kind: Element type of the result, which is a vector.
        """
        if bits == 8:
            return packed if kind == ir.DataType.UINT8 else self.cast(packed, kind)
        table = self.digits(bits)
        if kind != ir.DataType.INT32:
            table = self.once(f"digits {bits} {kind.name}", lambda: self.cast(table, kind))
        return self._looked_up(table, packed)

    def signed(self, packed: ir.Value) -> ir.Value:
        """Take integers of 4 bits out of bytes and subtract 8; the result is int8."""
        key, kind = "digits less 8", ir.DataType.INT8
        digits = self.digits(4)
        less = self.once(key, lambda: self.cast(self.node("Sub", digits, self.number(8)), kind))
        return self._looked_up(less, packed)

    def _looked_up(self, table: ir.Value, packed: ir.Value) -> ir.Value:
        return self.flat(self.node("Gather", table, self.cast(packed, ir.DataType.INT32)))


def packed_bits(codes: Array, bits: int, filler: int = 0) -> Array:
    """Put integers into bytes, the first into the lowest bits; the end is filled up.

    Args:
        codes: Integers from 0 to 2^bits - 1, a vector.
        bits: 1, 2, 4 or 8.
        filler: Integer to fill up with.
    """
    if bits == 8:
        return codes.astype(np.uint8)
    count = 8 // bits
    padded = np.full(math.ceil(codes.size / count) * count, filler, np.uint8)
    padded[: codes.size] = codes
    parts = padded.reshape(-1, count) << (bits * np.arange(count, dtype=np.uint8))
    return np.asarray(np.bitwise_or.reduce(parts, axis=1), np.uint8)
