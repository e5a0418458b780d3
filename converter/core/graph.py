"""Walking, reading and editing an onnx_ir model: all scopes, values by identity, tensors immutable.

Every edit of a pass goes through a function of this module where there is one, because each of them
keeps the rules of docs/architecture.md, section 3: names of graph inputs and outputs never change,
a value's type and shape always fit its constant, and tensors that a clone shares are never written
into.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

META_PREFIX = "converter."
Array = np.ndarray[Any, Any]
DEFAULT_DOMAINS = ("", "ai.onnx")
_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS
_TENSOR, _TENSORS = ir.AttributeType.TENSOR, ir.AttributeType.TENSORS
OVERRIDABLE = "it is an input that callers may override (the pass freeze changes that)"
"""Why passes leave an initializer alone that is an input of the main graph too."""


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph, function bodies and all sub-graphs in them, outer first."""
    roots: list[ir.Graph] = [model.graph, *(f.graph for f in model.functions.values())]
    while roots:
        graph = roots.pop(0)
        yield graph
        inner = [g for node in graph if node.attributes for g in subgraphs(node)]
        roots[:0] = inner


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that are attributes of the node."""
    for attribute in node.attributes.data.values():  # the view of a UserDict is four times slower
        kind = attribute.type
        if kind is _GRAPH and not attribute.is_ref():
            yield attribute.value
        elif kind is _GRAPHS and not attribute.is_ref():
            yield from attribute.value


def walk(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of every scope."""
    for graph in graphs(model):
        yield from graph


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Tell whether the node is one of these operators of the default ONNX domain."""
    return node is not None and node.domain in DEFAULT_DOMAINS and node.op_type in op_types


def label(node: ir.Node) -> str:
    """Name the node for people: its name, else its first output, with the operator type."""
    name = node.name or next((o.name for o in node.outputs if o.name), "") or "?"
    return f"{name} ({node.op_type})"


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of a value that no caller of the model can change, else None.

    That is an initializer which is not also a graph input, or the output of a Constant node with a
    tensor.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    producer = value.producer()
    if is_op(producer, "Constant"):
        attribute = producer.attributes.get("value") if producer is not None else None
        if attribute is not None and attribute.type is _TENSOR and not attribute.is_ref():
            # ``as_tensor`` would check a protocol each time, which takes longer than all the rest
            tensor: ir.TensorProtocol = attribute.value
            return tensor
    return None


def constant_array(value: ir.Value | None) -> Array | None:
    """Return :func:`constant` as an array that must not be written to, or None."""
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def add_initializer(graph: ir.Graph, name: str, data: Array | ir.TensorProtocol) -> ir.Value:
    """Register a new initializer under a name not used yet and return its value."""
    unique = fresh_name(graph, name)
    tensor = ir.tensor(data, name=unique) if isinstance(data, np.ndarray) else data
    tensor.name = unique
    value = ir.Value(
        name=unique,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, data: Array | ir.TensorProtocol) -> None:
    """Give an initializer a new tensor; type and shape of the value follow."""
    tensor = ir.tensor(data, name=value.name) if isinstance(data, np.ndarray) else data
    tensor.name = value.name
    value.const_value = tensor
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(tensor.shape.numpy())


def replace_tensor(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Give a constant, initializer or output of a Constant node, another tensor of its shape."""
    producer = value.producer()
    if producer is None:
        set_constant(value, tensor)
        return
    producer.attributes["value"] = ir.AttrTensor("value", tensor)
    if value.const_value is not None:
        value.const_value = tensor


class Names:
    """Names used anywhere in a model; hands out new ones. Make one per run: it costs a walk."""

    def __init__(self, model: ir.Model) -> None:
        self._used: set[str] = set()
        for graph in graphs(model):
            self._used.update(v.name for v in graph.inputs if v.name)
            self._used.update(graph.initializers)
            for node in graph:
                self._used.update(v.name for v in node.outputs if v.name)
                if node.name:
                    self._used.add(node.name)

    def fresh(self, base: str) -> str:
        """Return ``base``, or ``base_1`` and so on, and remember it."""
        name, count = base, 0
        while name in self._used:
            count += 1
            name = f"{base}_{count}"
        self._used.add(name)
        return name


def fresh_name(graph: ir.Graph, base: str) -> str:
    """Return a name that is no initializer and no input of ``graph``; see :class:`Names`."""
    taken = {v.name for v in graph.inputs} if base not in graph.initializers else set()
    name, count = base, 0
    while name in graph.initializers or name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def redirect(old: ir.Value, new: ir.Value) -> bool:
    """Let every user of ``old`` use ``new`` instead, in all scopes.

    A graph output keeps its name: when ``old`` is one, ``new`` takes over its name and place, which
    is possible only if ``new`` is made by a node of the same graph and is no graph output itself.

    Returns:
        False when that is not possible; then nothing was changed.
    """
    if old is new:
        return True
    if old.is_graph_output():
        producer, owner = new.producer(), old.producer()
        if producer is None or owner is None or producer.graph is not owner.graph:
            return False
        if new.is_graph_output():
            return False
        graph = owner.graph
        assert graph is not None
        name = old.name
        positions = [i for i, value in enumerate(graph.outputs) if value is old]
        _inherit(new, old)
        for position in positions:
            graph.outputs[position] = new
        old.name = f"{name}_replaced"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new)
    return True


def _inherit(new: ir.Value, old: ir.Value) -> None:
    """Move type, shape and metadata of a graph output along: they are part of the signature."""
    new.type = old.type
    new.shape = old.shape
    new.doc_string = old.doc_string or new.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)


def opset(model: ir.Model, graph: ir.Graph | None = None) -> int:
    """Return the version of the default operator set in force for the graph (default: main)."""
    imports = (graph.opset_imports if graph is not None else None) or model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 0))


@dataclass(frozen=True)
class Footprint:
    """Size of a model in countable things.

    Attributes:
        nodes: Nodes of all scopes.
        parameters: Elements of all constant tensors of numeric type.
        tensor_bytes: Bytes of all constant tensors, each shared tensor counted once.
    """

    nodes: int
    parameters: int
    tensor_bytes: int


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every constant tensor once: initializers and tensor attributes of all scopes."""
    seen: set[int] = set()
    for graph in graphs(model):
        found = [v.const_value for v in graph.initializers.values() if v.const_value is not None]
        for node in graph:
            for attribute in node.attributes.data.values():
                if attribute.type is _TENSOR and not attribute.is_ref():
                    found.append(attribute.value)
                elif attribute.type is _TENSORS and not attribute.is_ref():
                    found.extend(attribute.value)
        for tensor in found:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def footprint(model: ir.Model) -> Footprint:
    """Count nodes, parameters and tensor bytes without reading any tensor."""
    nodes = sum(1 for _ in walk(model))
    parameters = nbytes = 0
    for tensor in tensors(model):
        if tensor.dtype == ir.DataType.STRING:
            nbytes += tensor.nbytes
            continue
        # The number of bytes would count the elements once more.
        size = tensor.size
        parameters += size
        nbytes += math.ceil(tensor.dtype.itemsize * size)
    return Footprint(nodes, parameters, nbytes)
