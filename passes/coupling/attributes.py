"""Attributes that follow the sizes of axes: one function per operator.

A function reads the sizes that are left and returns the attributes that change with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.ops.table import Entry, Table
from passes.coupling.attributes_fused import ENTRIES as FUSED
from passes.coupling.kept import Axis, Keep

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.structure import Atoms

Attributes = dict[str, Any]


class Call:
    """A node whose inputs and outputs are about to lose indices.

    Args:
        node: The node, before anything was changed.
        keep: What is left.
    """

    def __init__(self, node: ir.Node, keep: Keep) -> None:
        self.node = node
        self._keep = keep

    def old(self, position: int, axis: int) -> int:
        """Return the size of an axis of an input before the cut."""
        value = self.node.inputs[position]
        assert value is not None
        return self._shape(value)[axis]

    def left(self, position: int, axis: int) -> Axis:
        """Return what is left of an axis of an input; None: everything."""
        return self._keep.axis(_at(self._keep.coupling.uses.get((self.node, position)), axis))

    def size(self, position: int, axis: int) -> int:
        """Return the size of an axis of an input after the cut."""
        left = self.left(position, axis)
        return self.old(position, axis) if left is None else len(left)

    def output_size(self, axis: int, index: int = 0) -> int:
        """Return the size of an axis of an output after the cut."""
        output = self.node.outputs[index]
        left = self._keep.axis(_at(self._keep.coupling.values.get(output), axis))
        return self._shape(output)[axis] if left is None else len(left)

    def output_rank(self) -> int:
        """Return the number of axes of the first output."""
        return len(self._shape(self.node.outputs[0]))

    def old_output_size(self, axis: int) -> int:
        """Return the size of an axis of the first output before the cut."""
        return self._shape(self.node.outputs[0])[axis]

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None or attribute.is_ref() else attribute.as_int()

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        seen = self._keep.coupling.shapes.get(value.name or "")
        if seen is not None:
            return tuple(seen)
        assert value.const_value is not None
        return tuple(int(size) for size in value.const_value.shape.numpy())


def _at(atoms: tuple[Atoms, ...] | None, axis: int) -> Atoms:
    return atoms[axis] if atoms else None


Rule = Callable[[Call], Attributes]


def _conv(call: Call) -> Attributes:
    return {"group": call.size(0, 1) // max(1, call.size(1, 1))}


def _conv_integer(position: int) -> Rule:
    return lambda call: {"group": call.size(0, 1) // max(1, call.size(position, 1))}


def _conv_transpose(call: Call) -> Attributes:
    return {"group": call.output_size(1) // max(1, call.size(1, 1))}


def _group_norm(call: Call) -> Attributes:
    groups, left = call.integer("num_groups"), call.left(0, 1)
    if left is None or not groups:
        return {}
    counts = np.bincount(left * groups // call.old(0, 1), minlength=groups)
    return {"num_groups": int(np.count_nonzero(counts))}


ENTRIES: list[Entry[Rule]] = [
    Entry("Conv", _conv),
    Entry("ConvTranspose", _conv_transpose),
    Entry("ConvInteger", _conv),
    Entry("QLinearConv", _conv_integer(3)),
    Entry("DeformConv", _conv),
    Entry("GroupNormalization", _group_norm),
    Entry("FusedConv", _conv, "com.microsoft"),
    *FUSED,
]


def _table() -> Table[Rule]:
    return Table("attributes", ENTRIES)


TABLE = _table()


def update(nodes: Iterable[ir.Node], keep: Keep, opset: Callable[[str], int]) -> None:
    """Change the attributes of all nodes whose axes lose indices; call it before the constants.

    Args:
        nodes: Of the main graph.
        keep: What is left.
        opset: Version of an operator set.
    """
    import onnx_ir as ir

    for node in nodes:
        rule = TABLE.find(node.domain, node.op_type, opset(node.domain))
        if rule is None or not _touched(node, keep):
            continue
        call = Call(node, keep)
        for name, value in rule(call).items():
            if name in node.attributes or value != 1:
                node.attributes[name] = ir.convenience.convert_attribute(name, value)


def _touched(node: ir.Node, keep: Keep) -> bool:
    coupling = keep.coupling
    sides = [coupling.uses.get((node, i)) for i in range(len(node.inputs))]
    sides += [coupling.values.get(output) for output in node.outputs]
    return any(keep.axis(atoms) is not None for side in sides for atoms in side or ())
