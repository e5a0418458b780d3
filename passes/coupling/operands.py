"""How each operator's operands follow the shapes: sizes here, indices in the module beside."""

from __future__ import annotations

import onnx_ir as ir

from passes.coupling import indices
from passes.coupling.edit import Edit
from passes.coupling.sizes import Rule, Sizes, fitted, scaled
from passes.coupling.vectors import Entry, Old, write
from passes.rewriting.facts import Dims, Size
from passes.rewriting.movement import reshaped
from passes.rewriting.symbols import divide


def _reshape(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    if edit.opset < 5:
        _reshape_attribute(sizes, node)
        return
    wanted = sizes.required(node.outputs[0])
    if wanted is None:
        return
    given = sizes.new.of(node.inputs[0]).dims
    target = sizes.new.of(node.inputs[1]).content
    zero = bool(node.attributes.get_int("allowzero", 0))
    if target is not None and given is not None and reshaped(given, target, zero=zero) == wanted:
        return
    entries = _target(wanted, target, None if zero else given)
    for index, entry in enumerate(entries):
        if entry is not None:
            continue
        now = None if target is None else target[index]
        free = -1 not in entries and now != 0
        entries[index] = -1 if free else scaled(index, wanted[index], now)
    write(edit, node, 1, [entry for entry in entries if entry is not None])


def _target(wanted: Dims, target: Dims | None, given: Dims | None) -> list[Entry | None]:
    """Return entries that are certain; None where a size is not a number and no copy of one."""
    entries: list[Entry | None] = []
    for index, size in enumerate(wanted):
        now = None if target is None else target[index]
        copy = given is not None and index < len(given) and given[index] == size
        if now == -1 and isinstance(now, int):
            entries.append(-1)
        elif isinstance(size, int):
            entries.append(size)
        elif copy:
            entries.append(0)
        elif now is not None and now == size:
            entries.append(Old(index))
        else:
            entries.append(None)
    return entries


def _reshape_attribute(sizes: Sizes, node: ir.Node) -> None:
    wanted, shape = sizes.required(node.outputs[0]), node.attributes.get_ints("shape")
    if wanted is None or shape is None:
        return
    entries = [
        size if isinstance(size, int) and old > 0 else old
        for size, old in zip(wanted, shape, strict=True)
    ]
    node.attributes["shape"] = ir.AttrInt64s("shape", entries)


def _expand(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    wanted = sizes.required(node.outputs[0])
    rank = sizes.new.of(node.inputs[1]).dims
    if wanted is None or rank is None or not isinstance(rank[0], int):
        return
    given = sizes.new.of(node.inputs[1]).content
    skip = len(wanted) - rank[0]
    part = wanted[skip:]
    if given is not None:  # an entry of 1 leaves the size as it is
        part = tuple(1 if now == 1 else size for size, now in zip(part, given, strict=True))
    _write(edit, node, 1, fitted(part, given, lambda i: sizes.is_cut(node.outputs[0], i + skip)))


def _tile(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    wanted, given = sizes.required(node.outputs[0]), sizes.new.of(node.inputs[0]).dims
    repeats = sizes.new.of(node.inputs[1]).content
    if wanted is None or given is None or repeats is None:
        return
    part = tuple(
        now if times is None else times
        for times, now in zip(map(divide, wanted, given), repeats, strict=True)
    )
    _write(edit, node, 1, fitted(part, repeats, lambda _: False))


def _whole(position: int) -> Rule:
    """Return the rule of an input that holds the shape of the output."""

    def rule(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
        wanted = sizes.required(node.outputs[0])
        if wanted is None or position >= len(node.inputs) or node.inputs[position] is None:
            return
        given = sizes.new.of(node.inputs[position]).content
        cut = lambda i: sizes.is_cut(node.outputs[0], i)  # noqa: E731
        _write(edit, node, position, fitted(wanted, given, cut))

    return rule


def _resize(sizes: Sizes, edit: Edit, node: ir.Node) -> None:
    """Follow with the sizes; scales of the axes that are cut are 1 and stay."""
    wanted = sizes.required(node.outputs[0])
    if wanted is None or len(node.inputs) < 4 or node.inputs[3] is None:
        return
    axes = [a % len(wanted) for a in node.attributes.get_ints("axes", range(len(wanted)))]
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return
    given = sizes.new.of(node.inputs[3]).content
    # entries that are in force stay as they are: the sizes of images may be computed
    part: list[Size] = [wanted[axis] for axis in axes]
    if given is not None:
        part = [
            size if sizes.is_cut(node.outputs[0], axis) else now
            for size, now, axis in zip(part, given, axes, strict=True)
        ]
    cut = lambda i: sizes.is_cut(node.outputs[0], axes[i])  # noqa: E731
    _write(edit, node, 3, fitted(tuple(part), given, cut))


def _write(edit: Edit, node: ir.Node, position: int, entries: list[Entry] | None) -> None:
    if entries is not None:
        write(edit, node, position, entries)


RULES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _whole(0),
    "MaxUnpool": _whole(2),
    "Resize": _resize,
    "Slice": indices.slices,
    "Split": indices.splits,
    "Gather": indices.gathers,
    "Pad": indices.pads,
    "Squeeze": indices.squeezes,
}
"""By operator; each compares what an operand says now with what it must say."""
