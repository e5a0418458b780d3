"""Slices: of everything, two in a row, and Gather after Slice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from passes.elimination.look import ask, bypass, integers, is_sole, made_by, skip_over, stand_in
from passes.rewriting import sizes
from passes.rewriting.facts import Dims, Size
from passes.rewriting.movement import slice_ranges
from passes.rewriting.question import axis_in
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

TO_THE_END = (1 << 31) - 1
_INPUTS_SINCE = 10  # starts, ends, axes and steps are attributes before this operator set
Range = tuple[int, int, int]


def _slice(node: ir.Node, work: Work) -> Result:
    question = ask(node, work)
    ranges = slice_ranges(question)
    dims = question.input(0).dims
    if ranges is None or dims is None:
        return None
    if all(_takes_all(dims[axis], taken) for axis, taken in ranges.items()):
        return bypass(node, work, node.inputs[0])
    return _merge(node, work, ranges)


def _takes_all(size: Size, taken: Range) -> bool:
    start, end, step = taken
    if step != 1:
        return False
    if isinstance(size, int):
        return (start == 0 or start <= -size) and end >= size
    return start == 0 and end >= TO_THE_END


def _merge(node: ir.Node, work: Work, second: dict[int, Range]) -> Result:
    before = made_by(node.inputs[0], node, work, "Slice")
    if before is None or before.inputs[0] is None or not is_sole(node.inputs[0]):
        return None
    question = ask(before, work)
    first, dims = slice_ranges(question), question.input(0).dims
    if first is None or dims is None:
        return None
    merged = dict(first)
    for axis, taken in second.items():
        both = taken if axis not in first else compose(dims[axis], first[axis], taken)
        if both is None:
            return "the two ranges cannot be joined without knowing the size"
        merged[axis] = both
    axes = sorted(merged)
    columns = [[merged[axis][part] for axis in axes] for part in range(3)]
    if work.opset(node) < _INPUTS_SINCE:
        for name, numbers in (("starts", columns[0]), ("ends", columns[1]), ("axes", axes)):
            integers(node, name, numbers)
        return skip_over(node, work)
    return _write(node, before, work, [columns[0], columns[1], axes, columns[2]])


def compose(size: Size, first: Range, second: Range) -> Range | None:
    """Return one range that takes what the second takes of what the first takes."""
    if isinstance(size, int):
        taken = range(size)[slice(*first)][slice(*second)] if _forward(first, second) else None
        if taken is None:
            return None
        return (taken.start, max(taken.stop, taken.start), taken.step)
    (start, end, step), (start2, end2, step2) = first, second
    if not _forward(first, second) or min(start, end, start2, end2) < 0 or step != 1:
        return None
    return (start + start2, min(end, start + end2), step2)


def _forward(first: Range, second: Range) -> bool:
    return first[2] > 0 and second[2] > 0


def _write(node: ir.Node, before: ir.Node, work: Work, columns: list[list[int]]) -> Result:
    """Give the node new ranges; unused arguments of both nodes pay for them."""
    if all(step == 1 for step in columns[3]):
        columns.pop()
    gone = {node, before}
    old = dict.fromkeys((*node.inputs[1:], *before.inputs[1:]))
    room = sizes.node_bytes(before) + sum(work.constant_saving(v, gone) for v in old)
    reused = [_find(numbers, (*node.inputs[1:], *before.inputs[1:]), node) for numbers in columns]
    cost = sum(
        sizes.new_constant_bytes(8 * len(numbers), 1, "range")
        for numbers, value in zip(columns, reused, strict=True)
        if value is None
    )
    kept = dict.fromkeys(value for value in reused if value is not None)
    room -= sum(work.constant_saving(value, gone) for value in kept)
    if not work.affords(cost - room):
        return "one Slice instead would make the file bigger"
    inputs = [before.inputs[0]] + [
        value or work.new_constant(node, "range", np.array(numbers, np.int64))
        for numbers, value in zip(columns, reused, strict=True)
    ]
    return stand_in(node, work, inputs, {})


def _find(
    numbers: list[int], values: tuple[ir.Value | None, ...], node: ir.Node
) -> ir.Value | None:
    """Return a constant of the same graph with these numbers."""
    for value in values:
        tensor = constant(value)
        if tensor is None or value is None or value.graph is not node.graph:
            continue
        if tensor.dtype == ir.DataType.INT64 and tensor.numpy().tolist() == numbers:
            return value
    return None


def _gather(node: ir.Node, work: Work) -> Result:
    """Gather of constant indices from a Slice: from the original instead."""
    before = made_by(node.inputs[0], node, work, "Slice")
    if before is None or not is_sole(node.inputs[0]):
        return None
    question, sliced = ask(node, work), ask(before, work)
    tensor, ranges, dims = constant(node.inputs[1]), slice_ranges(sliced), sliced.input(0).dims
    if tensor is None or ranges is None or dims is None or len(ranges) != 1 or tensor.size > 64:
        return None
    ((axis, taken),) = ranges.items()
    if axis_in(question.integer("axis", 0), len(dims)) != axis:
        return None
    array = tensor.numpy()
    picked = _picked(dims, axis, taken, [int(i) for i in array.reshape(-1)])
    if picked is None:
        return "which indices remain is not certain"
    data = np.array(picked, np.int64).reshape(array.shape)
    cost = sizes.new_constant_bytes(data.nbytes, data.ndim, "indices")
    if not work.affords(cost - sizes.node_bytes(before)):
        return "other indices would make the file bigger"
    work.set_input(node, 1, work.new_constant(node, "indices", data))
    return skip_over(node, work)


def _picked(dims: Dims, axis: int, taken: Range, indices: list[int]) -> list[int] | None:
    size, (start, _, step) = dims[axis], taken
    if isinstance(size, int):
        positions = range(size)[slice(*taken)] if step > 0 else range(0)
        fits = all(-len(positions) <= i < len(positions) for i in indices)
        return [positions[i] for i in indices] if fits else None
    # An index behind the end of the slice is an error in either form.
    if start < 0 or step < 1 or min(indices, default=0) < 0:
        return None
    return [start + step * i for i in indices]


RULES = (
    Rule("slices_removed", ("Slice",), _slice),
    Rule("gathers_merged", ("Gather",), _gather),
)
"""Slices that take everything or can be joined with what follows."""
