"""Labels that a node reads and that go nowhere from there stay: its row says nothing of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.propagate import Propagation
    from converter.ops.axes.site import Labels

_TAKE_PARTS = frozenset({"Gather", "Pad", "Shape", "Size", "Slice", "Split"})
"""Operators that may drop indices, and whose rows say which ones stay."""
_REASON = "the operator needs all of the axis"


def freeze_ends(walk: Propagation) -> None:
    """Freeze labels of inputs that are neither on an output of the node nor summed up in it."""
    sunk = _sunk(walk)
    uses: dict[ir.Node, list[Labels]] = {}
    for (node, _), axes in walk.uses.items():
        uses.setdefault(node, []).extend(axes)
    known = np.zeros(len(walk.union), bool)
    for node, given in uses.items():
        if node.op_type in _TAKE_PARTS:
            continue
        leaving = [axis for output in node.outputs for axis in walk.values.get(output, ())]
        leaving += sunk.get(node, [])
        roots = [walk.union.find(labels) for labels in leaving if labels is not None]
        for each in roots:
            known[each] = True
        for labels in given:
            if labels is not None:
                walk.union.freeze(labels[~known[walk.union.find(labels)]], node, _REASON)
        for each in roots:
            known[each] = False


def _sunk(walk: Propagation) -> dict[ir.Node, list[Labels]]:
    """Return the labels that each node sums up."""
    found: dict[ir.Node, list[Labels]] = {}
    for sink in walk.sinks:
        places = [(sink.position, sink.axis), (sink.weight, sink.weight_axis)]
        for position, axis in places:
            axes = walk.uses.get((sink.node, position)) if position is not None else None
            if axes and axis is not None:
                found.setdefault(sink.node, []).append(axes[axis])
    return found
