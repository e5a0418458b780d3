"""Dead code: nodes, initializers and model functions that nothing needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.core.graph import subgraphs
from passes.rewriting.work import Work, is_unused_initializer

if TYPE_CHECKING:
    import onnx_ir as ir


def remove_dead(work: Work) -> None:
    """Remove nodes whose outputs nobody uses and that have no other effect."""
    dead = [node for node in work.nodes() if work.removable(node)]
    before = work.removed
    for node in dead:
        if work.alive(node):
            work.discard(node)
    work.counts["dead_nodes_removed"] += work.removed - before
    work.finish()


def remove_unused_initializers(work: Work) -> None:
    """Remove initializers that are neither read nor public."""
    for graph in work.scopes:
        unused = [value for value in graph.initializers.values() if is_unused_initializer(value)]
        for value in unused:
            work.drop_initializer(value)
        work.counts["initializers_removed"] += len(unused)


def remove_unused_functions(work: Work) -> None:
    """Remove model functions that no node of the main graph calls, directly or through others."""
    functions = work.model.functions
    graphs: list[ir.Graph] = [work.model.graph]
    used: set[ir.OperatorIdentifier] = set()
    for graph in graphs:
        for node in graph:
            graphs.extend(subgraphs(node))
            key = node.op_identifier()
            if key in functions and key not in used:
                used.add(key)
                graphs.append(functions[key].graph)
    for key in [key for key in functions if key not in used]:
        del functions[key]
        work.edits += 1
        work.counts["functions_removed"] += 1
    work.__dict__.pop("scopes", None)
