"""Indices into axes that have become shorter: Slice, Split, Gather, Pad, Squeeze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.coupling.kept import Axis
from passes.coupling.vectors import Entry, Old, write

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.coupling.edit import Edit
    from passes.coupling.sizes import Sizes
    from passes.rewriting.facts import Dims, Size

Array = np.ndarray[Any, Any]
_LEAST = -(1 << 31)
"""As the end of a slice that goes down to index 0; also fits in 32 bits."""


@dataclass(frozen=True)
class Range:
    """One axis of a Slice."""

    start: int
    end: int
    step: int


def slices(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    """Move the ends of a Slice to where the same indices are now."""
    operands = _operands(sizes, edit, node)
    if operands is None:
        return
    starts, ends, axes, steps = operands
    ranges: dict[int, Range] = {}
    for index, axis in enumerate(axes):
        numbers = (starts[index], ends[index], steps[index])
        left = _left(sizes, node, 0, axis)
        if left is None and not _moved(sizes, node):
            continue
        if not all(isinstance(number, int) for number in numbers):
            continue
        length = _length(sizes, node, axis)
        if length is None:
            continue
        picked = np.arange(length)[slice(*numbers)]
        out = _left_output(sizes, node, axis)
        picked = picked if out is None else picked[out]
        at = picked if left is None else _positions(left, picked)
        found = as_range(at)
        if found is None:
            _gather_before(edit, node, axis, at)
            found = Range(0, len(at), 1)
        ranges[index] = found
    if ranges:
        _write_slice(sizes, edit, node, ranges)


def as_range(at: Array) -> Range | None:
    """Return start, end and step that pick these indices, or None when there are none."""
    if len(at) == 1:
        return Range(int(at[0]), int(at[0]) + 1, 1)
    steps = np.diff(at)
    step = int(steps[0]) if len(steps) else 0
    if step == 0 or (steps != step).any():
        return None
    end = int(at[-1]) + (1 if step > 0 else -1)
    return Range(int(at[0]), _LEAST if end < 0 else end, step)


def _positions(left: Array, picked: Array) -> Array:
    """Return where indices are among those that are left."""
    at = np.searchsorted(left, picked)
    if (at >= len(left)).any() or (left[np.minimum(at, len(left) - 1)] != picked).any():
        raise ValueError("an index is read whose atom was removed")
    return at


def _gather_before(edit: Edit, node: ir.Node, axis: int, at: Array) -> None:
    """Pick indices that follow no pattern in front of the node."""
    indices = edit.constant(f"{node.name or node.op_type}_indices", at.astype(np.int64))
    assert node.inputs[0] is not None
    edit.connect(node, 0, edit.before(node, "Gather", [node.inputs[0], indices], {"axis": axis}))


_Operands = tuple[Sequence["Size"], Sequence["Size"], list[int], Sequence["Size"]]


def _operands(sizes: Sizes, edit: Edit, node: ir.Node) -> _Operands | None:
    """Return starts, ends, axes and steps as they were before the cut, or None."""
    dims = sizes.old.of(node.inputs[0]).dims
    if edit.opset < 10:
        starts, ends, axes = (_integers(node, name) for name in ("starts", "ends", "axes"))
        steps: Dims | None = None
    else:
        starts, ends = _before(sizes, node, 1), _before(sizes, node, 2)
        axes, steps = _before(sizes, node, 3), _before(sizes, node, 4)
    if dims is None or starts is None or ends is None:
        return None
    if axes is None:
        axes = tuple(range(len(starts)))
    known = [axis % len(dims) for axis in axes if isinstance(axis, int)]
    return starts, ends, known, steps or (1,) * len(starts)


def _before(sizes: Sizes, node: ir.Node, position: int) -> Dims | None:
    if position >= len(node.inputs) or node.inputs[position] is None:
        return None
    content = sizes.old_input(node, position).content
    if content is None:
        certain = sizes.keep.coupling.numbers.get(node.inputs[position])  # type: ignore[arg-type]
        return None if certain is None else tuple(certain.tolist())
    return content


def _moved(sizes: Sizes, node: ir.Node) -> bool:
    """Tell whether an operand has changed because it was computed from sizes."""
    return any(
        sizes.old_input(node, i).content != sizes.new.of(value).content
        for i, value in enumerate(node.inputs)
        if i and value is not None
    )


def _write_slice(sizes: Sizes, edit: Edit, node: ir.Node, ranges: dict[int, Range]) -> None:
    if edit.opset < 10:
        for name, part in (("starts", "start"), ("ends", "end")):
            numbers = list(node.attributes.get_ints(name) or ())
            for index, found in ranges.items():
                numbers[index] = getattr(found, part)
            _set_integers(node, name, numbers)
        return
    for position, part in ((1, "start"), (2, "end"), (4, "step")):
        now = _now(sizes, node, position)
        if now is None and all(found.step == 1 for found in ranges.values()):
            continue
        count = len(_before(sizes, node, 1) or ())
        before = now if now is not None else (1,) * count
        entries: list[Entry] = [
            size if isinstance(size, int) else Old(i) for i, size in enumerate(before)
        ]
        for index, found in ranges.items():
            entries[index] = getattr(found, part)
        if tuple(entries) != now:
            _give(edit, node, position, entries)


def _give(edit: Edit, node: ir.Node, position: int, entries: list[Entry]) -> None:
    """Write an operand of Slice; where there are steps there must be axes."""
    if position == 4 and (len(node.inputs) < 4 or node.inputs[3] is None):
        write(edit, node, 3, list(range(len(entries))))
    write(edit, node, position, entries)


def _now(sizes: Sizes, node: ir.Node, position: int) -> Dims | None:
    if position >= len(node.inputs) or node.inputs[position] is None:
        return None
    return sizes.new.of(node.inputs[position]).content


def _left(sizes: Sizes, node: ir.Node, position: int, axis: int) -> Axis:
    atoms = sizes.keep.coupling.uses.get((node, position))
    if not atoms and node.inputs[position] is not None:
        atoms = sizes.keep.coupling.values.get(node.inputs[position])  # type: ignore[arg-type]
    return sizes.keep.axis(atoms[axis]) if atoms else None


def _left_output(sizes: Sizes, node: ir.Node, axis: int) -> Axis:
    atoms = sizes.keep.coupling.values.get(node.outputs[0])
    return sizes.keep.axis(atoms[axis]) if atoms else None


def _length(sizes: Sizes, node: ir.Node, axis: int) -> int | None:
    """Return the size of an axis before the cut."""
    value = node.inputs[0]
    seen = sizes.keep.coupling.shapes.get((value.name if value is not None else "") or "")
    dims = sizes.old_input(node, 0).dims
    size = dims[axis] if dims is not None else None
    if isinstance(size, int):
        return size
    return seen[axis] if seen is not None and _left(sizes, node, 0, axis) is not None else None


def splits(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    """Write the sizes of the parts, also where they were equal and are no longer."""
    dims = sizes.old_input(node, 0).dims
    if dims is None:
        return
    axis = int(node.attributes.get_int("axis", 0)) % len(dims)
    moved = len(node.inputs) > 1 and _moved(sizes, node)
    if not moved and _left(sizes, node, 0, axis) is None:
        return
    parts = []
    for output in node.outputs:
        wanted = sizes.required(output)
        if wanted is None or not isinstance(wanted[axis], int):
            return
        parts.append(int(wanted[axis]))  # type: ignore[arg-type]
    node.attributes.pop("num_outputs", None)
    if edit.opset < 13:
        _set_integers(node, "split", parts)
    else:
        write(edit, node, 1, parts)


def gathers(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    """Point the indices at where the same entries are now; drop those that are gone."""
    dims, value = sizes.old_input(node, 0).dims, node.inputs[1]
    if dims is None or value is None:
        return
    axis = int(node.attributes.get_int("axis", 0)) % len(dims)
    left = _left(sizes, node, 0, axis)
    given = g.constant_array(value)
    if given is None:
        given = _known(sizes, node, 1)
    if given is None:
        return
    atoms = sizes.keep.coupling.values.get(node.outputs[0])
    indices = given
    for i in range(given.ndim):
        out = sizes.keep.axis(atoms[axis + i]) if atoms else None
        indices = indices if out is None else np.take(indices, out, axis=i)
    if left is not None:
        length = _length(sizes, node, axis)
        assert length is not None
        flat = np.where(indices < 0, indices + length, indices).reshape(-1)
        indices = _positions(left, flat).reshape(indices.shape).astype(given.dtype)
    moved = sizes.old_input(node, 1).content != sizes.new.of(value).content
    if moved or indices is not given:
        edit.replace(node, 1, indices)


def _known(sizes: Sizes, node: ir.Node, position: int) -> Array | None:
    """Return computed integers that are certain."""
    fact = sizes.old_input(node, position)
    if fact.content is None or fact.dtype is None or fact.dims is None:
        return None
    numbers = [size for size in fact.content if isinstance(size, int)]
    if len(numbers) < len(fact.content):
        return None
    array = np.array(numbers, fact.dtype.numpy())
    return array if fact.dims else array.reshape(())


def pads(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    """Pad or crop as many indices as are left of those that were padded or cropped."""
    old = edit.opset < 11
    before = _integers(node, "pads") if old else _before(sizes, node, 1)
    dims = sizes.old_input(node, 0).dims
    if before is None or dims is None:
        return
    given = (None if old else _before(sizes, node, 3)) or tuple(range(len(dims)))
    axes = [axis % len(dims) for axis in given if isinstance(axis, int)]
    entries: list[Entry] = [
        size if isinstance(size, int) else Old(i) for i, size in enumerate(before)
    ]
    same = list(entries)
    for i, axis in enumerate(axes):
        first, last = before[i], before[i + len(axes)]
        length = _length(sizes, node, axis)
        if length is None or not isinstance(first, int) or not isinstance(last, int):
            continue
        entries[i], entries[i + len(axes)] = _padding(sizes, node, axis, (first, last, length))
    if entries == same:
        return
    if old:
        _set_integers(node, "pads", [entry for entry in entries if isinstance(entry, int)])
    else:
        write(edit, node, 1, entries)


def _padding(sizes: Sizes, node: ir.Node, axis: int, was: tuple[int, int, int]) -> tuple[int, int]:
    """Return the padding of one axis; negative where it is cropped.

    Args:
        sizes: What is left.
        node: A Pad.
        axis: Of its input.
        was: Padding before and after, and the size of the input.
    """
    first, last, length = was
    inside, out = _left(sizes, node, 0, axis), _left_output(sizes, node, axis)
    if inside is not None and first < 0:
        first = -int(np.count_nonzero(inside < -first))
    elif out is not None and first > 0:
        first = int(np.count_nonzero(out < first))
    start = max(0, was[0]) + length + min(0, was[0]) + min(0, last)
    if inside is not None and last < 0:
        last = -int(np.count_nonzero(inside >= length + last))
    elif out is not None and last > 0:
        last = int(np.count_nonzero(out >= start))
    return first, last


def squeezes(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    """Name the axes of a Squeeze that would now take away one more axis of size 1."""
    named = len(node.inputs) > 1 and node.inputs[1] is not None
    if named or node.attributes.get("axes") is not None:
        return
    value = node.inputs[0]
    seen = sizes.keep.coupling.shapes.get((value.name if value is not None else "") or "")
    now = sizes.new.of(value).dims
    if seen is None or now is None or all(n != 1 or s == 1 for n, s in zip(now, seen, strict=True)):
        return
    axes = [axis for axis, size in enumerate(seen) if size == 1]
    if edit.opset < 13:
        _set_integers(node, "axes", axes)
    else:
        write(edit, node, 1, axes)


def _integers(node: ir.Node, name: str) -> Dims | None:
    found = node.attributes.get_ints(name)
    return None if found is None else tuple(found)


def _set_integers(node: ir.Node, name: str, numbers: Sequence[int]) -> None:
    import onnx_ir as ir

    node.attributes[name] = ir.AttrInt64s(name, numbers)
