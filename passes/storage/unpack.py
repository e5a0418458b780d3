"""Turning constants that a model computes from smaller ones back into plain constants.

What :mod:`passes.pack` writes is recognised by the names of its nodes, what other tools write by
its operators: nothing but constants goes in, and something that multiplies elements is among them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Outcome, Skip
from converter.core.packed import DECODER, is_decoder
from converter.errors import ConverterError
from passes.encoding.build import drop
from passes.rewriting.purity import is_repeatable
from passes.storage.part import WIDER, Part

if TYPE_CHECKING:
    from converter.core.context import Context

Array = np.ndarray[Any, Any]

_EXPANDING = frozenset(
    {
        *("CumSum", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"),
        *("Scatter", "Where", "BitShift", "BitwiseAnd", "Floor"),
    }
)
"""Operators that decoders are made of, and that no mere conversion of a weight has."""
_DEQUANTIZING = frozenset({"DequantizeLinear"})
_RUN_BYTES = 256 << 20
"""Bytes of results that one run in the child process brings back, as far as sizes are known."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_LEAST_FRONT = 64
_WIDEST = 64.0
"""Elements of a result per byte it is computed from, above which it is a pattern, not a weight."""
_Chain = list[ir.Node]


def unpack(
    model: ir.Model,
    context: Context,
    *,
    ours: bool = False,
    only: Collection[str] | None = None,
) -> Outcome:
    """Replace computed constants by their values; the model computes the same as before.

    Values come from onnxruntime, which runs in the child process. Integers in front of a
    DequantizeLinear stay integers.

    Args:
        model: Edited in place.
        context: Says how models are run.
        ours: Take only what ``pack`` wrote, not what other tools did.
        only: Names of values that :func:`converted` found: take those instead.
    """
    if only is None:
        fronts = _fronts(model, ours=ours)
    else:
        fronts = {v: chain for v, chain in converted(model).items() if v.name in only}
    skipped: list[Skip] = []
    count = size = 0
    for group in _groups(fronts):
        try:
            arrays = _evaluate(model, {front: fronts[front] for front in group}, context)
        except ConverterError as error:
            skipped += [Skip(f.name or "?", f"it cannot be computed: {error.what}") for f in group]
            continue
        for front, array in arrays.items():
            if front.dtype is None and array.dtype.kind != "f" and not _is_dequantized(front):
                continue
            count, size = count + 1, size + array.nbytes
            _put(front, array, fronts[front])
    if not count:
        return Outcome(modified=False, skipped=tuple(skipped))
    counts = {"constants_unpacked": count, "bytes_unpacked": size}
    note = "packed constants are plain again; the pass pack makes the file small at the end"
    return Outcome(modified=True, counts=counts, skipped=tuple(skipped), notes=(note,))


def converted(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """Return all floats that are computed from constants, each with the nodes that compute it.

    Integers that a Cast and a Mul turn into a weight are among them, which need no decoder.
    """
    found = _fronts(model, ours=False, converted=True)
    return {v: chain for v, chain in found.items() if v.dtype in {None, *_FLOATS}}


def _fronts(model: ir.Model, *, ours: bool, converted: bool = False) -> dict[ir.Value, _Chain]:
    """Return the values to replace, each with the nodes that compute it, in their order."""
    functions = {id(node) for f in model.functions.values() for node in f.graph}
    order: dict[ir.Node, int] = {}
    computed: set[ir.Value] = set()
    found: list[ir.Value] = []
    for graph in g.graphs(model):
        for node in graph:
            if id(node) in functions or not _is_computed(node, computed):
                continue
            order[node] = len(order)
            if is_decoder(node):
                found.extend(node.outputs)  # constants from here on: nothing is computed twice
            else:
                computed.update(node.outputs)
    if not ours:
        ends = [v for v in computed if any(use.node not in order for use in v.uses())]
        chains = ((v, _chain(v, order)) for v in ends)
        found.extend(v for v, chain in chains if _is_foreign(v, chain, converted=converted))
    found.sort(key=lambda v: order[_producer(v)])
    return {v: _chain(v, order) for v in found if not v.is_graph_output() and v.uses()}


def _producer(value: ir.Value) -> ir.Node:
    producer = value.producer()
    assert producer is not None
    return producer


def _chain(value: ir.Value, order: Mapping[ir.Node, int]) -> _Chain:
    """Return the nodes that compute a value, in their order."""
    found = {_producer(value)}
    stack = list(found)
    while stack:
        for read in stack.pop().inputs:
            node = read.producer() if read is not None else None
            if node in order and node not in found and node is not None:
                found.add(node)
                stack.append(node)
    return sorted(found, key=lambda node: order[node])


def _is_computed(node: ir.Node, computed: set[ir.Value]) -> bool:
    if g.is_op(node, "Constant", *_DEQUANTIZING) or not node.inputs:
        return False
    if any(True for _ in g.subgraphs(node)) or not is_repeatable(node):
        return False
    return all(v is None or v in computed or g.constant(v) is not None for v in node.inputs)


def _is_foreign(value: ir.Value, chain: _Chain, *, converted: bool) -> bool:
    """Tell whether a value is the end of somebody else's decoder, or a mere conversion."""
    if not converted and not any(g.is_op(node, *_EXPANDING) for node in chain):
        return False
    if value.dtype not in {None, *_FLOATS} and not _is_dequantized(value):
        return False
    held = sum(t.nbytes for t in map(g.constant, _read(chain)) if t is not None)
    return held >= _LEAST_FRONT and max(0, _size(value)) <= _WIDEST * held


def _is_dequantized(value: ir.Value) -> bool:
    return all(g.is_op(use.node, *_DEQUANTIZING) for use in value.uses())


def _size(value: ir.Value) -> int:
    """Return the number of elements; -1 when it is not known."""
    static = value.shape is not None and value.shape.is_static()
    return math.prod(value.shape.numpy()) if static and value.shape is not None else -1


def _read(chain: _Chain) -> list[ir.Value]:
    """Return the constants that nodes read."""
    values = dict.fromkeys(v for node in chain for v in node.inputs if v is not None)
    return [value for value in values if g.constant(value) is not None]


def _groups(fronts: Mapping[ir.Value, _Chain]) -> list[list[ir.Value]]:
    """Divide values so that each group's results fit into memory; unknown sizes count as large."""
    groups: list[list[ir.Value]] = []
    room = 0
    for front in fronts:
        cost = _RUN_BYTES
        if _size(front) >= 0 and front.dtype is not None:
            cost = math.ceil(_size(front) * front.dtype.itemsize)
        if not groups or cost > room:
            groups.append([])
            room = _RUN_BYTES
        groups[-1].append(front)
        room -= cost
    return groups


def _evaluate(
    model: ir.Model, fronts: Mapping[ir.Value, _Chain], context: Context
) -> dict[ir.Value, Array]:
    """Compute values from constants, in a model of their own."""
    from converter.execution.runner import run_model

    part = Part(model)
    for front, chain in fronts.items():
        part.add(front, chain)
    (found,) = run_model(part.model(), [{}], list(part.fronts), settings=context.settings)
    values = {front: np.asarray(found[name]) for name, front in part.fronts.items()}
    return {v: a.astype(v.dtype.numpy()) if v.dtype in WIDER else a for v, a in values.items()}


def _put(front: ir.Value, array: Array, chain: _Chain) -> None:
    """Let an initializer take the place and the name of a value, and drop what computed it."""
    producer = front.producer()
    assert producer is not None
    graph = producer.graph
    assert isinstance(graph, ir.Graph)
    name, kind = front.name or DECODER, front.dtype
    front.name = None
    new = g.add_initializer(graph, name, ir.tensor(array, dtype=kind))
    new.metadata_props.update(front.metadata_props)
    ir.convenience.replace_all_uses_with(front, new)
    for node in reversed(chain):
        if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        read = [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        for value in dict.fromkeys(read):
            if g.constant(value) is not None:
                drop(value)
