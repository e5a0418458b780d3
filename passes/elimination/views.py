"""Reshape and its like: the order of elements stays, only their arrangement has a new name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from converter.core.graph import is_op
from passes.elimination.look import (
    MOST_USERS,
    ask,
    bypass,
    integers,
    is_sole,
    made_by,
    skip_over,
    stand_in,
)
from passes.elimination.transposes import keeps_order, permutation
from passes.rewriting import sizes
from passes.rewriting.facts import Dims, static
from passes.rewriting.rule import Result, Rule
from passes.rewriting.targets import target_of
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_LONGEST_CHAIN = 8  # views looked through; a bound keeps the pass linear
_AXES_SINCE = 13  # axes of Squeeze and Unsqueeze are an input from this operator set on
_BIGGER = "one Reshape instead would make the file bigger"


def _view(node: ir.Node, work: Work) -> Result:
    """Try from the cheapest: nothing at all, one view instead of two, a simpler view."""
    source = node.inputs[0]
    if source is None:
        return None
    return (
        _unchanged(node, work)
        or _undo(node, work)
        or _merge_axes(node, work)
        or _skip_view_before(node, work)
        or _one_reshape(node, work)
    )


def _unchanged(node: ir.Node, work: Work) -> Result:
    """Equal dimensions mean equal tensors, here or some views ago."""
    after = work.facts.of(node.outputs[0]).dims
    origin = node.inputs[0]
    for _ in range(_LONGEST_CHAIN):
        if origin is None or after is None:
            break
        if work.facts.of(origin).dims == after:
            return bypass(node, work, origin)
        producer = origin.producer()
        origin = producer.inputs[0] if producer is not None and is_view(producer, work) else None
    return None


def is_view(node: ir.Node, work: Work) -> bool:
    """Tell whether the node keeps the order of elements; a Transpose may do so, too."""
    if is_op(node, *VIEWS):
        return True
    if not is_op(node, "Transpose"):
        return False
    perm = permutation(node, work)
    return perm is not None and keeps_order(perm, work.facts.of(node.inputs[0]).dims)


def _undo(node: ir.Node, work: Work) -> Result:
    """Squeeze after Unsqueeze of the same axes, or the other way round, of unknown rank."""
    opposite = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}.get(node.op_type)
    before = made_by(node.inputs[0], node, work, opposite) if opposite is not None else None
    if before is None:
        return None
    axes, others = _axes(node, work), _axes(before, work)
    if not axes or not others or sorted(axes) != sorted(others) or min(axes) < 0:
        return None
    return bypass(node, work, before.inputs[0])


def _axes(node: ir.Node, work: Work) -> tuple[int, ...] | None:
    return static(ask(node, work).vector("axes", 1, _AXES_SINCE))


def _merge_axes(node: ir.Node, work: Work) -> Result:
    """Two Squeezes or two Unsqueezes become one."""
    if node.op_type not in {"Squeeze", "Unsqueeze"} or not is_sole(node.inputs[0]):
        return None
    before = made_by(node.inputs[0], node, work, node.op_type)
    if before is None or before.inputs[0] is None:
        return None
    first, second = _axes(before, work), _axes(node, work)
    if not first or not second or min(*first, *second) < 0:
        return None
    merge = _squeezed if node.op_type == "Squeeze" else _unsqueezed
    merged = merge(first, second)
    if work.opset(node) < _AXES_SINCE:
        integers(node, "axes", merged)
        return skip_over(node, work)
    if not work.affords(sizes.new_constant_bytes(8 * len(merged), 1, "axes") - _room(node, work)):
        return _BIGGER
    axes = work.new_constant(node, "axes", np.array(merged, np.int64))
    work.set_input(node, 1, axes)
    return skip_over(node, work)


def _squeezed(first: tuple[int, ...], second: tuple[int, ...]) -> list[int]:
    """Return the axes of the original that are gone after both."""
    gone = sorted(first)
    for axis in sorted(second):
        place = axis
        for one in sorted(first):
            place += one <= place
        gone.append(place)
    return sorted(gone)


def _unsqueezed(first: tuple[int, ...], second: tuple[int, ...]) -> list[int]:
    """Return the axes of the result that both have added."""
    added = set(second)
    for axis in sorted(first):
        # The place of the axis among those that the second node did not add.
        place, seen = -1, -1
        while seen < axis:
            place += 1
            seen += place not in second
        added.add(place)
    return sorted(added)


def _room(node: ir.Node, work: Work) -> int:
    """Return the bytes that go away with the view before the node and both their arguments."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert before is not None
    gone = {node, before}
    arguments = dict.fromkeys((*node.inputs[1:], *before.inputs[1:]))
    return sizes.node_bytes(before) + sum(work.constant_saving(v, gone) for v in arguments)


def _skip_view_before(node: ir.Node, work: Work) -> Result:
    """Reshape to sizes that do not refer to the input's: what shape it had does not matter."""
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    if before is None or before.graph is not node.graph or not is_view(before, work):
        return None
    if before.inputs[0] is None or not _read_by_reshapes(source, node, work):
        return None
    if not _refers_to_nothing(node, work):
        return None
    return skip_over(node, work)


def _refers_to_nothing(node: ir.Node, work: Work) -> bool:
    if node.op_type != "Reshape" or work.opset(node) < 5:
        return False
    target = static(ask(node, work).vector("shape", 1, 5))
    return target is not None and 0 not in target


def _read_by_reshapes(source: ir.Value | None, node: ir.Node, work: Work) -> bool:
    """Tell whether all that read the value can do without it, so that a node goes away."""
    if source is None or source.is_graph_output() or len(source.uses()) > MOST_USERS:
        return False
    users = source.consumers()
    return all(
        user is node
        or (user.graph is node.graph and is_op(user, "Reshape") and _refers_to_nothing(user, work))
        for user in users
    )


def _one_reshape(node: ir.Node, work: Work) -> Result:
    """Replace two views by one Reshape whose target can be written down."""
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    if before is None or before.graph is not node.graph or not is_view(before, work):
        return None
    origin = before.inputs[0]
    if origin is None or not is_sole(source) or work.opset(node) < 5:
        return None
    after, dims = work.facts.of(node.outputs[0]).dims, work.facts.of(origin).dims
    target = _target(after, dims)
    if target is None:
        return None
    cost = sizes.new_constant_bytes(8 * len(target), 1, "shape")
    if not work.affords(cost - _room(node, work)):
        return _BIGGER
    shape = work.new_constant(node, "shape", np.array(target, np.int64))
    if node.op_type == "Reshape":
        node.attributes.pop("allowzero", None)
        work.set_input(node, 1, shape)
        return skip_over(node, work)
    return stand_in(node, work, [origin, shape], {}, op_type="Reshape")


def _target(after: Dims | None, dims: Dims | None) -> list[int] | None:
    # A certain size of 0 would be read as the size of the input.
    return None if after is None or 0 in after else target_of(after, dims)


RULES = (Rule("reshapes_removed", VIEWS, _view),)
"""Views without effect, and one view instead of several."""
