"""Putting converted nodes where the old ones were; names, documentation and metadata stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from converter.core.graph import subgraphs
from passes.inlining.instance import Taken, fit


@dataclass(frozen=True)
class Place:
    """A node and where it is.

    Attributes:
        node: The node.
        as_nodes: Constants beside it have to be nodes.
    """

    node: ir.Node
    as_nodes: bool


def places(graph: ir.Graph, *, as_nodes: bool) -> Iterator[Place]:
    """Yield the nodes in the order of :func:`passes.opset.fragments.walk`."""
    for node in list(graph):
        yield Place(node, as_nodes)
        for inner in subgraphs(node):
            yield from places(inner, as_nodes=as_nodes)


class Splicer:
    """Replaces nodes of one root graph."""

    def __init__(self, root: ir.Graph) -> None:
        self._taken = Taken(root)
        self._constants: dict[tuple[ir.Graph, str, tuple[int, ...], bytes], ir.Value] = {}

    def replace(self, place: Place, data: bytes) -> None:
        """Replace a node by the nodes of a converted fragment."""
        node, graph = place.node, place.node.graph
        assert isinstance(graph, ir.Graph)
        body = ir.from_proto(onnx.ModelProto.FromString(data)).graph
        actuals: dict[ir.Value, ir.Value | None] = {
            value: self._actual(node, value, place) for value in body.inputs
        }
        for name, value in list(body.initializers.items()):
            if value not in actuals:
                del body.initializers[name]
                actuals[value] = self._actual(node, value, place)
        self._lift_constants(body, place, actuals)
        made = {output.name: output for inner in body for output in inner.outputs}
        made |= {value.name: value for value in actuals}
        results = [made.get(f"o{index}") for index in range(len(node.outputs))]
        present = [value for value in results if value is not None]
        assert len(present) == len(results) or not any(
            o.uses() or o.is_graph_output()
            for o, value in zip(node.outputs, results, strict=True)
            if value is None
        )
        _describe(body, node)
        self._taken.nodes.discard(node.name or "")
        filler = ir.Value()
        instance = fit(node, body, actuals, [v or filler for v in results], self._taken)
        graph.insert_before(node, instance.nodes)
        for old, new in zip(node.outputs, instance.outputs, strict=True):
            if new is not filler and (old.uses() or old.is_graph_output()):
                _declare(new, old)
                old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)

    def _actual(self, node: ir.Node, value: ir.Value, place: Place) -> ir.Value | None:
        """Return what a value from outside stands for: an input of the node, or a constant."""
        name = value.name or ""
        if name.startswith("i") and name[1:].isdecimal() and int(name[1:]) < len(node.inputs):
            return node.inputs[int(name[1:])]
        assert value.const_value is not None
        return self._constant(value.const_value, place)

    def _lift_constants(
        self, body: ir.Graph, place: Place, actuals: dict[ir.Value, ir.Value | None]
    ) -> None:
        for node in list(body):
            attribute = node.attributes.get("value")
            if node.op_type != "Constant" or attribute is None:
                continue
            if node.outputs[0].name in {f"o{i}" for i in range(len(place.node.outputs))}:
                continue
            actuals[node.outputs[0]] = self._constant(attribute.as_tensor(), place)
            body.remove(node)

    def _constant(self, tensor: ir.TensorProtocol, place: Place) -> ir.Value:
        """Make a constant, or take one that was made before."""
        graph = place.node.graph
        assert isinstance(graph, ir.Graph)
        array = np.asarray(tensor.numpy())
        key = (graph, str(tensor.dtype), array.shape, tensor.tobytes())
        if key in self._constants:
            return self._constants[key]
        name = self._taken.value(f"{place.node.outputs[0].name or 'value'}_{_purpose(array)}")
        twin = ir.Tensor(array, dtype=tensor.dtype, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(array.shape))
        )
        if place.as_nodes:
            made = ir.Node("", "Constant", [], [ir.AttrTensor("value", twin)], outputs=[value])
            graph.insert_before(place.node, made)
            return value  # a later node may stand before this one
        value.const_value = twin
        graph.register_initializer(value)
        self._constants[key] = value
        return value


def _declare(new: ir.Value, old: ir.Value) -> None:
    """Leave the declaration of an output as it was: it is part of the signature."""
    if not old.is_graph_output():
        return
    new.type, new.shape, new.doc_string = old.type or new.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)


def _purpose(array: np.ndarray) -> str:
    return "axes" if array.dtype == np.int64 and array.ndim == 1 else "constant"


def _describe(body: ir.Graph, node: ir.Node) -> None:
    """The node that does the work is called like the old one, the others after it."""
    nodes = list(body)
    main = next((n for n in nodes if n.op_type == node.op_type), nodes[-1] if nodes else None)
    for inner in nodes:
        inner.name = f"{node.name}_{inner.op_type}" if node.name else None
    if main is not None:
        main.name, main.doc_string = node.name, node.doc_string
        main.metadata_props.update(node.metadata_props)
        main.meta.update(node.meta)
