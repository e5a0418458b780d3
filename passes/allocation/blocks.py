"""Layers with channels that come in and go out, and the blocks in which the runtime works on them.

onnxruntime keeps images in blocks of 16 channels (AVX-512) or 8. Outputs of a Conv cost what the
next whole block costs; so do inputs from one block on, if their number is a multiple of 4; else
another, slower kernel runs. Fewer inputs than a block cost in proportion.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.allocation.cost import Cost, Term, mac_terms

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.structure import Coupling
    from passes.allocation.curves import Curve

Array = np.ndarray[Any, Any]
FOUR = 4
"""Other numbers of input channels leave the blocked kernels."""
SLOWER = 1.4
"""What these cost more, measured on layers of 25 to 57 channels."""
AXES = {"Conv": 1, "FusedConv": 1, "Gemm": 1, "MatMul": -1}
"""Axis of the channels of a layer's input and output."""
_BLOCKED = ("Conv", "FusedConv")


@dataclass(frozen=True, eq=False)
class Channels:
    """A layer whose channels can go.

    Attributes:
        node: The layer.
        ins: Atoms of what it sums over: int64 (inputs,), -1 for what stays.
        outs: Atoms of its outputs, likewise.
        block: Channels of a block; 1: it works on any number.
    """

    node: ir.Node
    ins: Array
    outs: Array
    block: int


def channels_of(node: ir.Node, coupling: Coupling) -> Channels | None:
    """Return the channels of a layer; None: it is of another form, or no channel can go."""
    axis = AXES.get(node.op_type)
    weight = g.constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if axis is None or weight is None or weight.dtype.kind != "f" or not node.outputs:
        return None
    if node.attributes.get_int("group", 1) != 1 or node.attributes.get_int("transA", 0) != 0:
        return None
    if node.op_type == "MatMul" and weight.ndim != 2:
        return None
    shapes = coupling.shapes
    x, y = (v.name or "" if v is not None else "" for v in (node.inputs[0], node.outputs[0]))
    if not shapes.get(x) or not shapes.get(y):
        return None
    given, made = coupling.uses.get((node, 0)), coupling.values.get(node.outputs[0])
    ins, outs = given[axis] if given else None, made[axis] if made else None
    if ins is None and outs is None:
        return None
    return Channels(
        node,
        np.full(shapes[x][axis], -1) if ins is None else ins,
        np.full(shapes[y][axis], -1) if outs is None else outs,
        vector_channels() if node.op_type in _BLOCKED else 1,
    )


def padded_inputs(count: Any, block: int) -> Any:
    """Return the inputs that cost the same, and how much slower their kernel is: arrays or int."""
    whole = np.where(np.asarray(count) < block, count, -(-count // block) * block)
    return whole, np.where((np.asarray(count) > block) & (count % FOUR != 0), SLOWER, 1.0)


def effective_inputs(count: Any, full: Any, block: int) -> Any:
    """Return the inputs that cost the same, with all that belongs to it: arrays or int.

    Args:
        count: Inputs that are left.
        full: Inputs that there were. Where fewer than a block are left of them, they have to be
            put back in rows first; measured on 6, 8 and 15 of 16.
        block: Channels of a block.
    """
    whole, slower = padded_inputs(count, block)
    rows = (np.asarray(count) < block) & (np.asarray(count) < full)
    return np.where(rows, 1.15 * whole + 1.5, whole * slower)


def padded_outputs(count: Any, block: int) -> Any:
    """Return the outputs that cost the same."""
    return -(-count // block) * block


class Padded(Cost):
    """Multiply-accumulates that the runtime really does.

    Args:
        coupling: The atoms.
        curves: Order of removal of every component.
        block: Channels of a block.
    """

    def __init__(self, coupling: Coupling, curves: Sequence[Curve], block: int) -> None:
        self._block = block
        terms, blocked = [], []
        for work, plain in zip(coupling.work, mac_terms(coupling), strict=True):
            found = channels_of(work.node, coupling) if work.node.op_type in _BLOCKED else None
            blocked.append(found is not None)
            if found is None:
                terms.append(plain)
                continue
            whole = work.count(np.ones(coupling.size + 1, bool))
            factor = whole / max(1, len(found.ins) * len(found.outs))
            terms.append(Term(factor, (found.ins, found.outs)))
        self._blocked = np.array(blocked, bool)
        super().__init__(terms, curves, coupling.size)

    def values(self, terms: Array, sizes: Array) -> Array:
        """Return the values of terms, with channels of Conv in whole blocks."""
        plain = super().values(terms, sizes)
        if not self._blocked.any():
            return plain
        axes = self.axes[terms]
        ins = effective_inputs(sizes[axes[:, 0]], self.full[axes[:, 0]], self._block)
        outs = padded_outputs(sizes[axes[:, 1]], self._block)
        return np.asarray(np.where(self._blocked[terms], self.factors[terms] * ins * outs, plain))


def vector_channels() -> int:
    """Return the channels of a block of onnxruntime's convolutions on this processor."""
    flags = ""
    if platform.machine() in ("x86_64", "AMD64"):
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            flags = ""
    return 16 if "avx512f" in flags else 8
