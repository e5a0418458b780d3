"""Values of very different ranges that are concatenated: one grid keeps few steps for the small.

A detection head joins coordinates of hundreds with shares of at most one: on one grid of 256 steps
the shares are gone. Where float operators read the result, it is joined in float, each part from
a grid of its own. Where integers read it there is one grid whatever one does, and it is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from converter.core import graph as g
from passes.affine.placement import Placement, Unit

if TYPE_CHECKING:
    import onnx_ir as ir

_FACTOR = 16.0
"""Ratio of ranges from which on the smaller one has at most 16 of 256 steps."""
Ranges = Mapping["ir.Value", tuple[float, float]]


def joined(plan: Placement) -> Iterator[ir.Value]:
    """Yield the values whose ranges matter here."""
    for unit in plan.units:
        if unit.row.joins:
            yield from unit.inputs


def uneven(plan: Placement, ranges: Ranges) -> dict[Unit, float]:
    """Return the units that join ranges of very different width, and the ratio."""
    found = {}
    for unit in plan.units:
        if not unit.row.joins:
            continue
        known = [ranges[v] for v in unit.inputs if v in ranges]
        widths = [max(high, 0.0) - min(low, 0.0) for low, high in known]
        widths = [width for width in widths if width > 0.0]
        if widths and max(widths) > _FACTOR * min(widths):
            found[unit] = max(widths) / min(widths)
    return found


def better_in_float(plan: Placement, ranges: Ranges) -> dict[ir.Node, str]:
    """Return the nodes that had better join in float, with the reason."""
    inside = {unit.node for unit in plan.units}
    found = {}
    for unit, ratio in uneven(plan, ranges).items():
        value = unit.outputs[0]
        if value.is_graph_output() or any(node not in inside for node in value.consumers()):
            found[unit.node] = f"joins ranges that differ {ratio:.0f}-fold, and float reads them"
    return found


def uneven_note(plan: Placement, ranges: Ranges) -> tuple[str, ...]:
    """Name the joins that lose steps because only integers read them."""
    found = uneven(plan, ranges)
    if not found:
        return ()
    worst = max(found, key=lambda unit: found[unit])
    return (
        f"{len(found)} Concat join ranges that differ more than {_FACTOR:.0f}-fold (most: "
        f"{g.label(worst.node)}, {found[worst]:.0f}-fold): the smaller ones keep few steps; "
        "exclude the nodes that read them where that hurts",
    )
