"""A placement carried over to a clone of the model it was made for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from passes.affine.placement import Placement, Unit

if TYPE_CHECKING:
    import onnx_ir as ir


def transferred(plan: Placement, model: ir.Model, clone: ir.Model) -> Placement:
    """Return the same plan for a clone.

    Args:
        plan: Made for ``model``, which has not been changed since.
        model: The model of the plan.
        clone: Has the same nodes in the same order, and the same names.
    """
    nodes = dict(zip(model.graph, clone.graph, strict=True))
    values: dict[ir.Value, ir.Value] = {}
    for old, new in nodes.items():
        values.update(zip(old.outputs, new.outputs, strict=True))
    values.update(zip(model.graph.inputs, clone.graph.inputs, strict=True))
    for name, value in model.graph.initializers.items():
        values[value] = clone.graph.initializers[name]

    def moved(unit: Unit) -> Unit:
        use = unit.bias_use
        return replace(
            unit,
            node=nodes[unit.node],
            inputs=tuple(values[v] for v in unit.inputs),
            outputs=tuple(values[v] for v in unit.outputs),
            bias=None if unit.bias is None else values[unit.bias],
            bias_use=None if use is None else (nodes[use[0]], use[1]),
            absorbed=tuple(nodes[node] for node in unit.absorbed),
        )

    return Placement([moved(unit) for unit in plan.units], list(plan.skipped))
