"""Writing shape vectors: numbers where they are known, else elements of the vector before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.coupling.edit import Edit

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Old:
    """An element that the vector has now, times a fraction.

    Attributes:
        index: Which element.
        times: Factor.
        over: Divisor; the division leaves no rest.
    """

    index: int
    times: int = 1
    over: int = 1


Entry = int | Old


def write(edit: Edit, node: ir.Node, position: int, entries: Sequence[Entry]) -> None:
    """Let a node read a vector of these entries at one of its inputs.

    Args:
        edit: Of the model.
        node: The node that reads the vector.
        position: Of the input; it may have been absent if all entries are numbers.
        entries: The new elements.
    """
    value = node.inputs[position] if position < len(node.inputs) else None
    dtype = np.dtype(np.int64)
    like = node.inputs[1] if value is None and len(node.inputs) > 1 else value
    if like is not None and like.dtype is not None:  # all operands of Slice have one type
        dtype = like.dtype.numpy()
    numbers = [entry for entry in entries if isinstance(entry, int)]
    if len(numbers) == len(entries):
        edit.replace(node, position, np.array(numbers, dtype))
        return
    assert value is not None
    key = value, tuple(entries), dtype.str
    if key not in edit.vectors:  # nodes are rewritten in order: what was made comes before
        parts = _pieces(edit, node, value, entries, dtype) or [
            _part(edit, node, value, list(group), dtype) for _, group in groupby(entries, key=_kind)
        ]
        single = len(parts) == 1
        edit.vectors[key] = parts[0] if single else edit.before(node, "Concat", parts, {"axis": 0})
    edit.connect(node, position, edit.vectors[key])
    producer, unused = value.producer(), not value.uses() and not value.is_graph_output()
    if producer is not None and unused and g.is_op(producer, "Concat"):
        read = list(dict.fromkeys(each for each in producer.inputs if each is not None))
        edit.graph.remove(producer, safe=True)
        for each in read:
            named = each.is_graph_input() or each.is_graph_output()
            if each.is_initializer() and not each.uses() and not named:
                edit.graph.initializers.pop(each.name or "", None)


def _pieces(
    edit: Edit, node: ir.Node, value: ir.Value, entries: Sequence[Entry], dtype: np.dtype[Any]
) -> list[ir.Value]:
    """Return what a Concat of single elements puts together, with numbers where entries are some.

    Returns:
        An empty list where the vector is something else, or elements must be scaled.
    """
    producer = value.producer()
    if producer is None or not g.is_op(producer, "Concat") or len(producer.inputs) != len(entries):
        return []
    given = [each for each in producer.inputs if each is not None and _is_single(each)]
    plain = all(entry == Old(i) for i, entry in enumerate(entries) if isinstance(entry, Old))
    if len(given) != len(entries) or not plain:
        return []
    base = f"{node.name or node.op_type}_sizes"
    return [
        old if isinstance(entry, Old) else edit.constant(base, np.array([entry], dtype))
        for old, entry in zip(given, entries, strict=True)
    ]


def _is_single(value: ir.Value) -> bool:
    """Tell whether a vector certainly has one element."""
    tensor = g.constant(value)
    if tensor is not None:
        return tuple(tensor.shape.numpy()) == (1,)
    if g.is_op(value.producer(), "Unsqueeze"):  # Concat takes vectors, so of a single number
        return True
    return value.shape is not None and tuple(value.shape) == (1,)


def _kind(entry: Entry) -> tuple[int, int]:
    return (0, 0) if isinstance(entry, int) else (entry.times, entry.over)


def _part(
    edit: Edit, node: ir.Node, value: ir.Value, entries: list[Entry], dtype: np.dtype[np.generic]
) -> ir.Value:
    """Return a value with consecutive entries of one kind."""
    base = f"{node.name or node.op_type}_sizes"
    old = [entry for entry in entries if isinstance(entry, Old)]
    if not old:
        return edit.constant(base, np.array(entries, dtype))
    indices = edit.constant(base, np.array([entry.index for entry in old], np.int64))
    part = edit.before(node, "Gather", [value, indices], {"axis": 0})
    if old[0].times != 1:
        part = edit.before(
            node, "Mul", [part, edit.constant(base, np.array([old[0].times], dtype))]
        )
    if old[0].over != 1:
        part = edit.before(node, "Div", [part, edit.constant(base, np.array([old[0].over], dtype))])
    return part
