"""The order in which layers are fitted: what a layer's output is added to comes before the layer.

A shortcut that is computed behind the layer in the file could otherwise not be taken into account.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from converter.core import graph as g
from passes.reconstruction.linear import Linear, linear_of
from passes.reconstruction.tail import tail_of

if TYPE_CHECKING:
    import onnx_ir as ir


def advanced(model: ir.Model, layers: Iterable[ir.Node]) -> list[ir.Node]:
    """Return the nodes of the main graph, every shortcut before the layer that it goes around.

    Args:
        model: Left as it is.
        layers: Nodes that will be fitted.
    """
    shortcuts = {}
    for node in layers:
        layer = linear_of(node)
        if isinstance(layer, Linear):
            shortcuts[node] = tail_of(layer).other
    position = {node: i for i, node in enumerate(model.graph)}
    order: dict[ir.Node, None] = {}
    for node in position:
        other = shortcuts.get(node)
        if other is not None and node not in order:
            before = _before(other, order, position)
            if node not in before:
                order.update(dict.fromkeys(before))
        order.setdefault(node)
    return list(order)


def rearrange(model: ir.Model, order: list[ir.Node]) -> None:
    """Bring the nodes of the main graph into another order."""
    if order != list(model.graph):
        model.graph.remove(order)
        model.graph.extend(order)


def _before(
    value: ir.Value, done: Iterable[ir.Node], position: dict[ir.Node, int]
) -> list[ir.Node]:
    """Return the nodes that a value needs and that are not done yet, in the order of the graph.

    Nothing when sub-graphs are among them.
    """
    found: set[ir.Node] = set()
    front = [value]
    finished = set(done)
    while front:
        node = front.pop().producer()
        if node is None or node in found or node in finished or node not in position:
            continue
        found.add(node)
        front += [v for v in node.inputs if v is not None]
        front += [
            v for inner in g.subgraphs(node) for n in inner for v in n.inputs if v is not None
        ]
    return sorted(found, key=position.__getitem__)
