"""The graphs of a model and what holds in each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.core.graph import subgraphs

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Scope:
    """A graph and what holds in it.

    Attributes:
        graph: The graph.
        opset: Version of the default operator set.
        parents: Graphs around it, outermost first.
        in_function: It belongs to a model function, which cannot have initializers.
    """

    graph: ir.Graph
    opset: int
    parents: tuple[ir.Graph, ...]
    in_function: bool


def scopes_of(model: ir.Model) -> list[Scope]:
    """Return all graphs of the model, outer before inner."""
    roots: list[tuple[ir.Graph, bool]] = [(model.graph, False)]
    roots += [(function.graph, True) for function in model.functions.values()]
    found: list[Scope] = []
    for root, in_function in roots:
        opsets = root.opset_imports or model.graph.opset_imports
        version = opsets.get("", opsets.get("ai.onnx", 0))
        stack: list[tuple[ir.Graph, tuple[ir.Graph, ...]]] = [(root, ())]
        while stack:
            graph, parents = stack.pop()
            found.append(Scope(graph, version, parents, in_function))
            inner = [g for node in graph for g in subgraphs(node)]
            stack.extend((g, (*parents, graph)) for g in reversed(inner))
    return found
