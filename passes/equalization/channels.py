"""Following the channels of all layers of a graph from where they are made to where they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from passes.equalization.flow import Channels, Flow, Side
from passes.equalization.layers import Array, Layer, layer_of
from passes.equalization.operators import rule_of

if TYPE_CHECKING:
    import onnx_ir as ir

_HINTS = {"BatchNormalization": " (simplify folds it)"}


def trace(graph: ir.Graph, selected: Callable[[ir.Node], bool]) -> Flow:
    """Follow the channels of all layers of a graph from where they are made to where they end.

    Args:
        graph: Sorted; left as it is.
        selected: Layers that may be changed.
    """
    flow = Flow()
    for node in graph:
        layer = layer_of(node)
        if isinstance(layer, Layer) and not selected(node):
            layer = "not selected by include and exclude"
        if isinstance(layer, str):
            flow.refused.append((node, layer))
            _freeze_inputs(flow, node, f"read by a layer that cannot be changed: {layer}")
        elif layer is not None:
            _through_layer(flow, layer)
        elif not (rule := rule_of(node)) or not rule(flow, node):
            hint = _HINTS.get(node.op_type, "")
            _freeze_inputs(flow, node, f"read by {node.op_type}{hint}")
    for value in flow.channels:
        if value.is_graph_output():
            flow.freeze(value, "an output of the graph")
        elif any(use.node.graph is not graph for use in value.uses()):
            flow.freeze(value, "read inside a sub-graph")
    flow.settle()
    return flow


def _freeze_inputs(flow: Flow, node: ir.Node, reason: str) -> None:
    for value in node.inputs:
        flow.freeze(value, reason)


def _through_layer(flow: Flow, layer: Layer) -> None:
    x, y = layer.node.inputs[0], layer.node.outputs[0]
    found = None if x is None else flow.channels.get(x)
    if x is not None and found is not None:
        ids = _as_read(found, layer)
        if ids is None:
            flow.freeze(x, f"its channels are not those of {layer.node.op_type}")
        else:
            flow.readers.append(Side(layer, x, ids))
    ids = flow.new(layer.outputs)
    rank = layer.rank
    flow.channels[y] = Channels(ids, layer.axis, rank, single=layer.node.op_type == "Gemm")
    flow.writers.append(Side(layer, y, ids))


def _as_read(found: Channels, layer: Layer) -> Array | None:
    """Return the class of each input channel of the layer, or None where they do not fit."""
    if found.axis != layer.axis or (layer.rank is not None and found.rank != layer.rank):
        return None
    if found.flat and found.ids.size and layer.inputs % found.ids.size == 0:
        return np.repeat(found.ids, layer.inputs // found.ids.size)
    return found.ids if found.ids.size == layer.inputs and not found.flat else None
