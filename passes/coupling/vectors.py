"""Writing shape vectors: numbers where they are known, else elements of the vector before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

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
    parts = []
    for _, group in groupby(entries, key=_kind):
        parts.append(_part(edit, node, value, list(group), dtype))
    joined = parts[0] if len(parts) == 1 else edit.before(node, "Concat", parts, {"axis": 0})
    edit.connect(node, position, joined)


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
