"""Models below IR version 4, where every initializer had to be listed as an input of the graph.

Nobody could override those: onnxruntime takes them for constants. In memory they are off the list,
so that passes need not know about old versions; writing lists them again, in the old order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.io import meta

if TYPE_CHECKING:
    import onnx_ir as ir

FREE_INITIALIZERS = 4
"""First IR version whose initializers need not be inputs, and whose listed ones are defaults."""


def hide_defaults(model: ir.Model) -> None:
    """Take initializers off the list of inputs of a model below IR version 4."""
    graph = model.graph
    if model.ir_version >= FREE_INITIALIZERS:
        return
    if meta.INPUT_ORDER not in graph.meta:
        order = tuple(value.name for value in graph.inputs)
        graph.meta[meta.INPUT_ORDER] = order
        graph.meta[meta.LISTS_ALL] = graph.initializers.keys() <= set(order)
    kept = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(kept) < len(graph.inputs):
        graph.inputs[:] = kept


def listed_inputs(model: ir.Model) -> list[ir.Value]:
    """Return what a document has to list as inputs of the main graph."""
    graph = model.graph
    if model.ir_version >= FREE_INITIALIZERS:
        return list(graph.inputs)
    known = {v.name: v for v in (*graph.inputs, *graph.initializers.values())}
    order = [name for name in graph.meta.get(meta.INPUT_ORDER, ()) if name in known]
    listed = [known.pop(name) for name in order]
    if graph.meta.get(meta.LISTS_ALL, True):
        return listed + list(known.values())
    return listed  # the document did not keep the rule, and onnxruntime does not insist on it
