"""What the builders of the masked original share: masks, element types and ranks of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.rewriting.facts import Facts
from passes.rewriting.shapes import answer

if TYPE_CHECKING:
    from converter.coupling.structure import Coupling
    from passes.coupling.edit import Edit

Array = np.ndarray[Any, Any]
_OPSET_OF_WHERE = 9
_FAR = 100
_SHORT = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class Masked:
    """A model that is being masked.

    Args:
        edit: Of the model.
        coupling: Its atoms, from before the first edit.
        alive: bool (atoms + 1,), the last True.
    """

    def __init__(self, edit: Edit, coupling: Coupling, alive: Array) -> None:
        self.edit = edit
        self.coupling = coupling
        self._alive = alive
        self._facts: Facts | None = None

    def stays(self, node: ir.Node, position: int, axis: int) -> Array | None:
        """Return which indices of an axis of an input stay; None: all."""
        atoms = (self.coupling.uses.get((node, position)) or {axis: None})[axis]
        if atoms is None or self._alive[atoms].all():
            return None
        stays: Array = self._alive[atoms]
        return stays

    def sizes(self, value: ir.Value | None) -> tuple[int, ...]:
        """Return the observed sizes of a value."""
        assert value is not None
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        return tuple(self.coupling.shapes[value.name or ""])

    def rank(self, value: ir.Value) -> int:
        """Return the number of axes of a value; a value that masks inserted has its input's."""
        while value.name not in self.coupling.shapes and value.const_value is None:
            producer = value.producer()
            assert producer is not None
            source = producer.inputs[1 if producer.op_type == "Where" else 0]
            assert source is not None
            value = source
        return len(self.sizes(value))

    def dtype(self, value: ir.Value | None) -> ir.DataType:
        """Return the element type of a value; float where nothing tells it."""
        if value is None:
            return ir.DataType.FLOAT
        if value.dtype is not None:
            return value.dtype
        if self._facts is None:
            graph = self.edit.graph
            self._facts = Facts(set(graph.inputs), {graph: self.edit.opset}, answer)
        return self._facts.of(value).dtype or self._like(value)

    def _like(self, value: ir.Value) -> ir.DataType:
        """Take the type of what an unknown operator reads: nearly all keep it."""
        assert self._facts is not None
        for _ in range(_FAR):
            producer = value.producer()
            inputs = [v for v in producer.inputs if v is not None] if producer is not None else []
            for each in inputs:
                found = each.dtype or self._facts.of(each).dtype
                if found is not None and found.is_floating_point():
                    return found
            if not inputs:
                break
            value = inputs[0]
        return ir.DataType.FLOAT

    def is_float(self, value: ir.Value | None) -> bool:
        """Tell whether a value holds floating-point numbers."""
        return self.dtype(value).is_floating_point()

    def fill(self, node: ir.Node, value: ir.Value, stays: Array, number: float) -> ir.Value:
        """Return a value in front of ``node`` with a number in place of what is gone.

        Args:
            node: In front of which the nodes are put.
            value: Any.
            stays: bool, of the value's rank.
            number: May be infinite.
        """
        dtype, edit = self.dtype(value), self.edit
        if edit.opset < _OPSET_OF_WHERE or dtype in _SHORT:
            if number == 0:
                ones = edit.constant("mask", stays.astype(dtype.numpy()))
                made = edit.before(node, "Mul", [value, ones])
            else:
                limit = ir.tensor([0.0], dtype=dtype).numpy().dtype
                large = np.finfo(np.float32).max if dtype not in _SHORT else 6e4
                shift = np.where(stays, 0, np.sign(number) * large).astype(limit)
                made = edit.before(node, "Add", [value, edit.constant("mask", shift)])
        else:
            other = edit.constant("filling", np.array(number).astype(dtype.numpy()))
            made = edit.before(node, "Where", [edit.constant("mask", stays), value, other])
        made.type = ir.TensorType(dtype)
        return made

    def sum_over(self, node: ir.Node, value: ir.Value, axes: list[int]) -> ir.Value:
        """Return the sum over axes, which stay with size 1."""
        edit = self.edit
        if edit.opset < 13:
            return edit.before(node, "ReduceSum", [value], {"axes": axes, "keepdims": 1})
        given = edit.constant("axes", np.array(axes, np.int64))
        return edit.before(node, "ReduceSum", [value, given], {"keepdims": 1})

    def mean_over(self, node: ir.Node, value: ir.Value, axes: list[int]) -> ir.Value:
        """Return the mean over axes, which stay with size 1."""
        edit = self.edit
        if edit.opset < 18:
            return edit.before(node, "ReduceMean", [value], {"axes": axes, "keepdims": 1})
        given = edit.constant("axes", np.array(axes, np.int64))
        return edit.before(node, "ReduceMean", [value, given], {"keepdims": 1})

    def put(self, node: ir.Node, new: ir.Value, index: int = 0) -> None:
        """Let ``new`` take the place and the name of an output of a node."""
        old = node.outputs[index]
        name = old.name
        new.type, new.shape = old.type, old.shape
        if old.is_graph_output():
            g.redirect(old, new)
            return
        ir.convenience.replace_all_uses_with(old, new)
        old.name = self.edit.name(f"{name}_unmasked")
        new.name = name
