"""Which constants of a model could be stored in another form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.select import Selection
from passes.encoding.weights import View
from passes.encoding.weights import find as find_weights
from passes.sparsity.layers import find as find_layers
from passes.storage.form import Constant

Array = np.ndarray[Any, Any]

LEAST_BYTES = 64
"""Smaller constants are not worth a word."""
_LEAST_SIZES = 2048
"""Bytes below which integers are sizes, axes and the like, read before anything is folded."""
_SIZES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
_LEFT_ALONE = frozenset({ir.DataType.STRING, ir.DataType.UNDEFINED})
_LARGEST = 1 << 31


@dataclass(frozen=True, eq=False)
class Place:
    """A constant that may be stored in another form.

    Attributes:
        value: Initializer, or output of a Constant node.
        graph: The graph that it lives in.
        rows: Number of channels, for weights whose operators say what a channel is; else 1.
        label: The first operator that uses it, for the report.
        view: Which axes the channels are; None when unknown.
        multiplied: All that reads it are products, for which zeros have no sign.
    """

    value: ir.Value
    graph: ir.Graph
    rows: int
    label: str
    view: View | None = None
    multiplied: bool = False

    @property
    def name(self) -> str:
        """Name for people."""
        return self.value.name or self.label

    @property
    def tensor(self) -> ir.TensorProtocol:
        """Its elements, not read yet."""
        tensor = g.constant(self.value)
        assert tensor is not None
        return tensor

    def constant(self) -> Constant:
        """Read the elements; negative zeros of weights, which add up to the same, become zeros."""
        array = self.tensor.numpy()
        if self.multiplied and has_negative_zeros(array):
            array = array + array.dtype.type(0)
        return Constant(self.value, array, self.rows, _blank(array), self.view)


def has_negative_zeros(array: Array) -> bool:
    """Tell whether a zero has a sign: what multiplies weights by a mask leaves many."""
    if array.dtype not in (np.float32, np.float16, np.float64):
        return False
    return bool((np.signbit(array) & (array == 0)).any())


def find(model: ir.Model, selection: Selection) -> tuple[list[Place], list[Skip]]:
    """Return what could be stored in another form, in the order of the model.

    Bodies of model functions are left alone: they have no initializers, and a Constant node in
    them stands for as many constants as the function has callers.
    """
    inside = {id(function.graph) for function in model.functions.values()}
    views, multiplied = _views(model)
    found: list[Place] = []
    skipped: list[Skip] = []
    nodes: list[ir.Node] = []
    for graph in _graphs(model, inside):
        nodes.extend(graph)
        for value in _constants(graph):
            tensor = g.constant(value) or value.const_value
            if tensor is None or tensor.nbytes < LEAST_BYTES or tensor.dtype in _LEFT_ALONE:
                continue
            users = [use.node for use in value.uses()]
            if not users:
                continue
            reason = _obstacle(value, tensor, users, selection)
            if reason:
                skipped.append(Skip(value.name or g.label(users[0]), reason))
            elif not _sizes(tensor):
                view = views.get(id(value))
                rows = 1 if view is None else view.rows
                signless = id(value) in multiplied
                found.append(Place(value, graph, rows, g.label(users[0]), view, signless))
    held = sum(_function_bytes(f.graph) for f in model.functions.values())
    if held >= LEAST_BYTES:
        skipped.append(Skip("model functions", "constants in functions stay: inline them first"))
    return found, [*selection.misses(nodes), *skipped]


def _views(model: ir.Model) -> tuple[dict[int, View], set[int]]:
    """Return how weights form channels, and those that are only multiplied with, by identity.

    Channels are along the first axis where views lie between.
    """
    found = {id(weight.value): weight.view for weight in find_weights(model, Selection())[0]}
    layers = find_layers(model, Selection())[0]
    for layer in layers:
        shape = tuple(int(size) for size in layer.tensor.shape.numpy())
        found.setdefault(id(layer.value), View(shape[0], math.prod(shape[1:]), 1))
    return found, {id(layer.value) for layer in layers}


def _graphs(model: ir.Model, inside: set[int]) -> Iterator[ir.Graph]:
    """Yield the main graph and what is in it; what is in a function counts as the function."""
    roots: list[ir.Graph] = [model.graph]
    while roots:
        graph = roots.pop(0)
        if id(graph) in inside:
            continue
        yield graph
        roots[:0] = [inner for node in graph for inner in g.subgraphs(node)]


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    for node in graph:
        if g.is_op(node, "Constant") and g.constant(node.outputs[0]) is not None:
            yield node.outputs[0]


def _function_bytes(graph: ir.Graph) -> int:
    found = (g.constant(node.outputs[0]) for node in graph if g.is_op(node, "Constant"))
    return sum(tensor.nbytes for tensor in found if tensor is not None and not _sizes(tensor))


def _sizes(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in _SIZES and tensor.nbytes < _LEAST_SIZES


def _obstacle(
    value: ir.Value, tensor: ir.TensorProtocol, users: list[ir.Node], selection: Selection
) -> str:
    """Return why the constant must be left alone, or an empty text."""
    if value.is_graph_input():
        return g.OVERRIDABLE
    if value.is_graph_output():
        return "also an output of the graph"
    if any(node not in selection for node in users):
        return "not selected by include and exclude"
    if tensor.size >= _LARGEST:
        return "more than 2^31 elements: positions in it do not fit into 32 bits"
    return ""


def _blank(array: Array) -> int:
    """Return the element that most of an array of integers is; 0 for other types and on ties."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 1 or array.size == 0:
        return 0
    bytes_ = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    counts = np.bincount(bytes_, minlength=256)
    if counts[0] == counts.max():
        return 0
    most = np.uint8(counts.argmax())
    return int(np.asarray(most).view(array.dtype))
