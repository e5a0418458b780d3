"""Weights as indices into small tables of numbers, folded to floats when the file is loaded.

======== ======================================================================================
tables   nodes
======== ======================================================================================
one      Gather(table, indices), Reshape, Mul by a scale per row
several  GatherElements(tables, indices), one table per row or group of rows, Reshape, (Mul),
         (Transpose)
======== ======================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.encoding.build import Builder, replace
from passes.encoding.packed import pack, unpack
from passes.encoding.weights import Weight

Array = np.ndarray[Any, Any]

ELEMENTS_OPSET = 11
"""First opset with GatherElements."""
_NODES = 13


@dataclass(frozen=True, eq=False)
class Palette:
    """A weight as indices.

    Attributes:
        indices: int (rows, columns).
        tables: float32 (tables, entries), float16 numbers where :attr:`half`; the rows are divided
            evenly among several tables, in order.
        scales: float32 (rows,), or None where tables need none.
        bits: Width of an index: 2, 4 or 8.
    """

    indices: Array
    tables: Array
    scales: Array | None
    bits: int

    def numbers(self) -> Array:
        """Return the float32 numbers that the runtime will compute with."""
        split = self.indices.reshape(len(self.tables), -1)
        found = np.take_along_axis(self.tables, split, axis=1).reshape(self.indices.shape)
        return found if self.scales is None else found * self.scales[:, None]


def nbytes(weight: Weight, tables: int, bits: int, *, scaled: bool) -> int:
    """Estimate the size in the file."""
    view = weight.view
    indices = math.ceil(view.rows * view.summed * bits / 8)
    figures = 2 * ((tables << bits) + (view.rows if scaled else 0))
    return indices + figures + _NODES * 55 + 3 * (40 + 2 * len(weight.name))


def write_palette(build: Builder, weight: Weight, palette: Palette) -> None:
    """Store indices in packed bytes; several tables need opset 11, one table opset 7."""
    kind = weight.tensor.dtype
    view = weight.view
    several = len(palette.tables) > 1
    # With several tables rows come first: each looks up in its own.
    order = palette.indices if several else view.to_cube(palette.indices)
    flat = np.ascontiguousarray(order).reshape(-1)
    packed = pack(np.pad(flat, (0, -flat.size % (8 // palette.bits))), palette.bits)
    steps = unpack(build, build.constant(f"{weight.name}_indices", packed), palette.bits, kind)
    if packed.size * (8 // palette.bits) != flat.size:
        steps = build.part(steps, 0, flat.size, kind)
    whole = ir.DataType.INT32
    indices = build.node("Cast", [steps], whole, {"to": int(whole)})
    tables = _figures(build, f"{weight.name}_table", palette.tables, weight)
    if several:
        split = build.sizes((len(palette.tables), flat.size // len(palette.tables)))
        indices = build.node("Reshape", [indices, split], whole)
        found = build.node("GatherElements", [tables, indices], kind, {"axis": 1})
        _turned(build, weight, found, palette)
        return
    found = build.node("Gather", [tables, indices], kind, {"axis": 0})
    cube = build.sizes((view.outer, view.summed, view.inner))
    found = build.node("Reshape", [found, cube], kind)
    if palette.scales is not None:
        spread = palette.scales.reshape(view.outer, 1, view.inner)
        scales = _figures(build, f"{weight.name}_scale", spread, weight)
        found = build.node("Mul", [found, scales], kind)
    _finish(build, weight, found)


def _turned(build: Builder, weight: Weight, found: ir.Value, palette: Palette) -> None:
    """Bring rows that come first back into the order of the weight."""
    view, kind = weight.view, weight.tensor.dtype
    if palette.scales is not None:
        found = build.node("Reshape", [found, build.sizes((view.rows, view.summed))], kind)
        scales = _figures(build, f"{weight.name}_scale", palette.scales.reshape(-1, 1), weight)
        found = build.node("Mul", [found, scales], kind)
    if view.inner > 1:
        shape = build.sizes((view.outer, view.inner, view.summed))
        found = build.node("Reshape", [found, shape], kind)
        found = build.node("Transpose", [found], kind, {"perm": [0, 2, 1]})
    _finish(build, weight, found)


def _finish(build: Builder, weight: Weight, found: ir.Value) -> None:
    shape, kind = build.sizes(weight.shape), weight.tensor.dtype
    replace(
        weight.value, build.node("Reshape", [found, shape], kind, name=f"{weight.name}_decoded")
    )


def _figures(build: Builder, name: str, array: Array, weight: Weight) -> ir.Value:
    """Add tables or scales: float16 where that is exact, with a Cast to the weight's type."""
    if array.shape[:1] == (1,) and array.ndim == 2:
        array = array[0]
    half = array.astype(np.float16)
    kind = weight.tensor.dtype
    exact = np.array_equal(half.astype(np.float32), array)
    stored = build.constant(name, half if exact or not weight.single else array.astype(np.float32))
    if stored.dtype == kind:
        return stored
    return build.node("Cast", [stored], kind, {"to": int(kind)})
