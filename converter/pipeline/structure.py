"""The structural check after every pass: the model is well formed, sorted and valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.core.graph import graphs, subgraphs
from converter.errors import InvalidModelError, ModelError, PostconditionError

if TYPE_CHECKING:
    import onnx_ir as ir


DEFECT = "this is a defect of the pass; leave it out or use --on-failure skip, and report it"


def check_structure(model: ir.Model, pass_name: str) -> None:
    """Sort the graphs where a pass left them unsorted, then validate the whole model.

    Raises:
        PostconditionError: The model is broken; names the pass.
    """
    from converter.io.skeleton import to_skeleton
    from converter.io.validate import validate

    try:
        for graph in graphs(model):
            _check_links(graph)
            if not _is_sorted(graph):
                graph.sort()
        proto, _ = to_skeleton(model)
        validate(proto)
    except (ModelError, ValueError) as error:
        detail = error.what if isinstance(error, ModelError) else str(error)
        raise PostconditionError(
            f"the pass left a broken model: {detail}",
            pass_name=pass_name,
            hint=DEFECT,
        ) from error


def _check_links(graph: ir.Graph) -> None:
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise InvalidModelError(f"initializer {name!r} has no tensor")
        if value.name != name:
            raise InvalidModelError(f"initializer {name!r} is registered under another name")


def _is_sorted(graph: ir.Graph) -> bool:
    """Tell whether every node comes after those that make its inputs, captured ones included."""
    seen: set[ir.Node] = set()
    for node in graph:
        for user in _with_inner(node):
            for value in user.inputs:
                producer = value.producer() if value is not None else None
                if producer is not None and producer.graph is graph and producer not in seen:
                    return False
        seen.add(node)
    return True


def _with_inner(node: ir.Node) -> list[ir.Node]:
    """Return the node and all nodes of its sub-graphs."""
    found = [node]
    for current in found:
        for graph in subgraphs(current):
            found.extend(graph)
    return found
