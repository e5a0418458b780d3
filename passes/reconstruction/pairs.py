"""Which layers of two models are the same, in an order that both have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.core import graph as g
from converter.core.contract import Skip
from passes.reconstruction.linear import Linear, linear_of
from passes.reconstruction.recurrent import Recurrent, recurrent_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.select import Selection


@dataclass(frozen=True, eq=False)
class Pair:
    """One layer in both models.

    Attributes:
        name: For people.
        student: In the changed model.
        teacher: In the original.
        shared: Other nodes read its weight too, so it stays; the bias is its own.
    """

    name: str
    student: ir.Node
    teacher: ir.Node
    shared: bool = False


def pairs_of(
    teacher: ir.Model, student: ir.Model, selection: Selection
) -> tuple[list[Pair], list[Skip]]:
    """Match layers by the names of their outputs, in an order that both models have."""
    theirs = {_key(n): (i, n) for i, n in enumerate(teacher.graph) if n.outputs}
    pairs: list[Pair] = []
    skipped: list[Skip] = []
    last = -1
    for node in student.graph:
        layer = _layer_of(node)
        if layer is None or node not in selection:
            continue
        found = theirs.get(_key(node))
        reason = layer if isinstance(layer, str) else _obstacle(node, found)
        if not reason and found is not None and found[0] <= last:
            reason = "it comes in another order than in the original"
        if reason or found is None:
            skipped.append(Skip(g.label(node), reason))
            continue
        last = found[0]
        pairs.append(Pair(g.label(node), node, found[1], _shared(node, layer)))
    return pairs, [*skipped, *_inside(student, selection)]


def _inside(student: ir.Model, selection: Selection) -> list[Skip]:
    """Name the layers that are not in the main graph: models are cut between its nodes alone."""
    main = set(student.graph)
    return [
        Skip(g.label(node), "it lies in a sub-graph")
        for node in g.walk(student)
        if node not in main
        and node in selection
        and isinstance(_layer_of(node), (Linear, Recurrent))
    ]


def _key(node: ir.Node) -> str:
    """Return the name of the first output that has one."""
    return next((value.name for value in node.outputs if value.name), "")


def _obstacle(node: ir.Node, found: tuple[int, ir.Node] | None) -> str:
    if found is None or found[1].op_type != node.op_type:
        return "the original has no such layer"
    layer = _layer_of(found[1])
    if not isinstance(layer, (Linear, Recurrent)):
        return "the original has no constant weight there"
    if _shared(node, layer) and (isinstance(layer, Recurrent) or layer.home is None):
        return "its weight is used elsewhere too, and there is no bias that could move"
    return ""


def _shared(node: ir.Node, layer: Linear | Recurrent | str) -> bool:
    weights = node.inputs[1:3] if isinstance(layer, Recurrent) else node.inputs[1:2]
    return any(weight is None or len(tuple(weight.uses())) > 1 for weight in weights)


def _layer_of(node: ir.Node) -> Linear | Recurrent | str | None:
    layer = linear_of(node)
    return recurrent_of(node) if layer is None else layer
