"""Which constants of a model are weights, and how they look as rows of one channel each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.select import Selection
from converter.ops.quantizable import QUANTIZING_OPS

Array = np.ndarray[Any, Any]
Dims = tuple[int, ...]

_MICROSOFT = "com.microsoft"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class View:
    """A weight seen as (outer, summed, inner): its products are summed over the middle axis.

    Attributes:
        outer: Product of the sizes before the summed axis.
        summed: Size of the summed axis or axes.
        inner: Product of the sizes after it.
    """

    outer: int
    summed: int
    inner: int

    @property
    def rows(self) -> int:
        """Number of channels, one row each."""
        return self.outer * self.inner

    def to_rows(self, array: Array) -> Array:
        """Return the weight as (rows, summed); a view where memory allows it."""
        cube = array.reshape(self.outer, self.summed, self.inner)
        return np.moveaxis(cube, 1, 2).reshape(self.rows, self.summed)

    def to_cube(self, rows: Array) -> Array:
        """Turn (rows, anything) back into (outer, anything, inner)."""
        return np.moveaxis(rows.reshape(self.outer, self.inner, -1), 2, 1)


def _last(shape: Dims) -> View:
    return View(math.prod(shape[:-1]), shape[-1], 1)


def _all_but_first(shape: Dims) -> View:
    return View(shape[0], math.prod(shape[1:]), 1)


def _first(shape: Dims) -> View:
    return View(1, shape[0], math.prod(shape[1:]))


def _second_to_last(shape: Dims) -> View:
    return View(math.prod(shape[:-2]), shape[-2], shape[-1])


def _gemm(node: ir.Node, port: int) -> Callable[[Dims], View]:
    if port == 0:
        return _first if node.attributes.get_int("transA", 0) else _last
    return _last if node.attributes.get_int("transB", 0) else _first


def _matmul(_: ir.Node, port: int) -> Callable[[Dims], View]:
    return _last if port == 0 else _second_to_last


def _fixed(view: Callable[[Dims], View]) -> Callable[[ir.Node, int], Callable[[Dims], View]]:
    return lambda _node, _port: view


_Ports = tuple[tuple[int, ...], Callable[[ir.Node, int], Callable[[Dims], View]]]
_WEIGHTED: dict[tuple[str, str], _Ports] = {
    ("", "Conv"): ((1,), _fixed(_all_but_first)),
    ("", "ConvTranspose"): ((1,), _fixed(_first)),
    ("", "Gemm"): ((0, 1), _gemm),
    ("", "MatMul"): ((0, 1), _matmul),
    ("", "LSTM"): ((1, 2), _fixed(_last)),
    ("", "GRU"): ((1, 2), _fixed(_last)),
    ("", "RNN"): ((1, 2), _fixed(_last)),
    ("", "Gather"): ((0,), _fixed(_all_but_first)),
    (_MICROSOFT, "FusedConv"): ((1,), _fixed(_all_but_first)),
    (_MICROSOFT, "FusedGemm"): ((0, 1), _gemm),
    (_MICROSOFT, "FusedMatMul"): ((1,), _matmul),
    (_MICROSOFT, "Attention"): ((1,), _fixed(_first)),
}


@dataclass(eq=False)
class Weight:
    """A constant that at least one operator multiplies with, or looks up rows in.

    Attributes:
        value: The constant.
        tensor: Its elements.
        view: How they form rows.
        uses: The operators and the ports they read it at.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    view: View
    uses: list[tuple[ir.Node, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name for people and for new values."""
        return self.value.name or g.label(self.uses[0][0])

    @property
    def shape(self) -> Dims:
        """Sizes of the weight."""
        return tuple(int(d) for d in self.tensor.shape.numpy())

    @property
    def single(self) -> bool:
        """True for float32, False for float16."""
        return self.tensor.dtype == ir.DataType.FLOAT

    @property
    def embedding(self) -> bool:
        """True when every user looks up rows."""
        users = {use.node for use in self.value.uses()}
        return all(
            g.is_op(node, "Gather") and node.attributes.get_int("axis", 0) == 0 for node in users
        ) and all(use.idx == 0 for use in self.value.uses())

    def matrices(self) -> bool:
        """True when every use is the right-hand matrix of a product of onnx's own domain."""
        users = list(self.value.uses())
        return len(self.shape) == 2 and all(
            use.idx == 1 and g.is_op(use.node, "MatMul", "Gemm") for use in users
        )

    def rows(self) -> Array:
        """Return the weight as float (rows, summed), not to be written to."""
        return self.view.to_rows(self.tensor.numpy())

    @property
    def label(self) -> str:
        """The first operator that uses it, for the report."""
        return g.label(self.uses[0][0])


def find(model: ir.Model, selection: Selection) -> tuple[list[Weight], list[Skip]]:
    """Return the weights that may be stored in another form, in the order of the model.

    Model functions are left alone: their nodes belong to no one place.
    """
    found: dict[ir.Value, Weight] = {}
    skipped: dict[str, Skip] = {}
    nodes = [node for graph in _graphs(model) for node in graph]
    for node in nodes:
        for port, value, view in _ports(node):
            if _is_quantized(value):
                skipped.setdefault(g.label(node), Skip(g.label(node), "already quantized"))
                continue
            tensor = g.constant(value)
            if tensor is None:
                if value.is_initializer() and value.is_graph_input():
                    skipped.setdefault(g.label(node), Skip(g.label(node), g.OVERRIDABLE))
                continue
            shape = tuple(int(d) for d in tensor.shape.numpy())
            if len(shape) < 2 or tensor.size == 0 or tensor.dtype not in _FLOATS:
                _refuse_type(node, tensor, skipped)
                continue
            weight = found.setdefault(value, Weight(value, tensor, view(shape)))
            weight.uses.append((node, port))
    kept = []
    for weight in found.values():
        reason = _obstacle(weight, selection)
        if reason:
            skipped[weight.label] = Skip(weight.label, reason)
        else:
            kept.append(weight)
    unmatched = selection.misses(nodes)
    return kept, [*unmatched, *skipped.values()]


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    inside = {id(f.graph) for f in model.functions.values()}
    for graph in g.graphs(model):
        if id(graph) not in inside:
            yield graph


def _ports(node: ir.Node) -> Iterator[tuple[int, ir.Value, Callable[[Dims], View]]]:
    domain = "" if node.domain in g.DEFAULT_DOMAINS else node.domain
    ports, layout = _WEIGHTED.get((domain, node.op_type), ((), None))
    if layout is None or (node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0):
        return
    for port in ports:
        if port < len(node.inputs):
            value = node.inputs[port]
            if value is not None:
                yield port, value, layout(node, port)


def _is_quantized(value: ir.Value) -> bool:
    return (
        g.is_op(value.producer(), *QUANTIZING_OPS)
        and g.constant(
            value.producer().inputs[0]  # type: ignore[union-attr]
        )
        is not None
    )


def _refuse_type(node: ir.Node, tensor: ir.TensorProtocol, skipped: dict[str, Skip]) -> None:
    """Say so where a matrix has another float type; integers and vectors are no weights."""
    if len(tensor.shape) >= 2 and tensor.dtype in {ir.DataType.DOUBLE, ir.DataType.BFLOAT16}:
        kind = tensor.dtype.name.lower()
        skipped.setdefault(g.label(node), Skip(g.label(node), f"the weight is {kind}"))


def _obstacle(weight: Weight, selection: Selection) -> str:
    """Return why the weight must be left alone, or an empty text."""
    if any(node not in selection for node, _ in weight.uses):
        return "not selected by include and exclude"
    if weight.value.is_graph_output():
        return "also an output of the graph"
    return ""
