"""Parts of a shape: the operator Shape cuts them out itself from operator set 15 on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.elimination.look import ask, is_sole, made_by, stand_in
from passes.rewriting import sizes
from passes.rewriting.facts import static
from passes.rewriting.movement import slice_ranges
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_RANGE_SINCE = 15
_TO_THE_END = (1 << 31) - 1


@dataclass(frozen=True)
class _Part:
    """Dimensions ``start`` to ``end`` of a value, as numpy counts them; None: to the last."""

    value: ir.Value
    start: int
    end: int | None


def _part(node: ir.Node | None, work: Work) -> _Part | None:
    if node is None or node.op_type != "Shape" or node.inputs[0] is None:
        return None
    question = ask(node, work)
    return _Part(node.inputs[0], question.integer("start", 0) or 0, question.integer("end"))


def _unsqueeze(node: ir.Node, work: Work) -> Result:
    """One dimension as a vector: Unsqueeze of Gather of Shape."""
    gather = made_by(node.inputs[0], node, work, "Gather")
    if gather is None or not is_sole(node.inputs[0]) or work.opset(node) < _RANGE_SINCE:
        return None
    part = _part(made_by(gather.inputs[0], node, work, "Shape"), work)
    index = ask(gather, work).input(1)
    if part is None or index.dims != () or static(index.content) is None:
        return None
    if static(ask(node, work).input(1).content) not in {(0,), (-1,)}:
        return None
    (place,) = static(index.content) or (0,)
    inside = _inside(part, place, place + 1 or None)
    return None if inside is None else _write(node, work, inside, gather)


def _cut(node: ir.Node, work: Work) -> Result:
    """A range of dimensions: Slice or Gather of a Shape that nothing else reads."""
    shape = made_by(node.inputs[0], node, work, "Shape")
    part = _part(shape, work)
    if part is None or shape is None or work.opset(node) < _RANGE_SINCE:
        return None
    if not is_sole(node.inputs[0]):
        return None
    taken = _taken(node, work)
    inside = _inside(part, *taken) if taken is not None else None
    return None if inside is None else _write(node, work, inside, shape)


def _taken(node: ir.Node, work: Work) -> tuple[int, int | None] | None:
    question = ask(node, work)
    if node.op_type == "Slice":
        start, end, step = (slice_ranges(question) or {}).get(0, (0, 0, 0))
        return (start, None if end >= _TO_THE_END else end) if step == 1 else None
    indices = static(question.input(1).content)
    if indices is None or question.input(1).dims == () or not indices:
        return None
    first, last = indices[0], indices[-1]
    if indices != tuple(range(first, last + 1)) or first < 0 <= last:
        return None
    return first, last + 1 or None


def _inside(part: _Part, start: int, end: int | None) -> _Part | None:
    """Return a range inside a range, if no unknown rank is needed for that."""
    if part.start == 0 and part.end is None:
        return _Part(part.value, start, end)
    if part.start < 0 or start < 0 or end is None or end < 0:
        return None
    if part.end is not None and not 0 <= part.start + end <= part.end:
        return None
    return _Part(part.value, part.start + start, part.start + end)


def _write(node: ir.Node, work: Work, part: _Part, before: ir.Node) -> Result:
    attributes = {name: n for name, n in (("start", part.start), ("end", part.end)) if n}
    if part.end == 0:
        return None
    cost = sum(sizes.attribute_bytes(name, n) for name, n in attributes.items())
    freed = sizes.node_bytes(before) + len(node.op_type) - len("Shape")
    freed += sum(len(value.name or "") for value in node.inputs[1:] if value is not None)
    if not work.affords(cost - freed):
        return "the longer Shape would make the file bigger"
    return stand_in(node, work, [part.value], attributes, op_type="Shape")


def _neighbours(node: ir.Node, work: Work) -> Result:
    """Concat of ranges of one shape that follow each other: one range."""
    if work.opset(node) < _RANGE_SINCE or len(node.inputs) < 2:
        return None
    for index in range(len(node.inputs) - 1):
        left, right = (_own_part(node, work, index + step) for step in (0, 1))
        if left is None or right is None or left.value is not right.value:
            continue
        if left.end != right.start or left.end == 0:
            continue
        if left.start < 0 <= right.start or (left.start >= 0 and right.start < 0):
            continue
        return _join(node, work, index, _Part(left.value, left.start, right.end))
    return None


def _own_part(node: ir.Node, work: Work, index: int) -> _Part | None:
    """Return the part of a shape that one input of the node is, if only the node reads it."""
    value = node.inputs[index]
    return _part(made_by(value, node, work, "Shape"), work) if is_sole(value) else None


def _join(node: ir.Node, work: Work, index: int, part: _Part) -> Result:
    attributes = {name: n for name, n in (("start", part.start), ("end", part.end)) if n}
    joined = work.new_node(node, "Shape", [part.value], attributes)
    inputs = [*node.inputs[:index], joined, *node.inputs[index + 2 :]]
    return stand_in(node, work, inputs, node.attributes)


RULES = (
    Rule("shapes_cut", ("Unsqueeze",), _unsqueeze),
    Rule("shapes_cut", ("Slice", "Gather"), _cut),
    Rule("shapes_joined", ("Concat",), _neighbours),
)
"""Shape with a range instead of Shape and something that cuts."""
