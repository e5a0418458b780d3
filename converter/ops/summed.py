"""Which axis of a weight its products are summed over, by operator and input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.ops.table import Entry, Table

if TYPE_CHECKING:
    import onnx_ir as ir

Dims = tuple[int, ...]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class View:
    """A weight seen as (outer, summed, inner): its products are summed over the middle axis.

    Rows, the outputs of the layer, lie along outer for Conv (out, in x kernel, 1) and along inner
    for MatMul (1, in, out).
    """

    outer: int
    summed: int
    inner: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.outer * self.summed * self.inner


def _all_but_first(shape: Dims) -> tuple[View, ...]:
    """View a kernel by all that one output sums up; then by input channel, as tensor cores do."""
    whole = View(shape[0], math.prod(shape[1:]), 1)
    kernel = math.prod(shape[2:])
    return (whole,) if kernel == 1 else (whole, View(shape[0], shape[1], kernel))


def _first(shape: Dims) -> tuple[View, ...]:
    return (View(1, shape[0], math.prod(shape[1:])),)


def _last(shape: Dims) -> tuple[View, ...]:
    return (View(math.prod(shape[:-1]), shape[-1], 1),)


def _second_to_last(shape: Dims) -> tuple[View, ...]:
    return (View(math.prod(shape[:-2]), shape[-2], shape[-1]),)


_Ports = Mapping[int, Callable[["ir.Node", Dims], tuple[View, ...]]]


def _fixed(view: Callable[[Dims], tuple[View, ...]], *ports: int) -> _Ports:
    return dict.fromkeys(ports, lambda _, shape: view(shape))


_MATMUL: _Ports = {**_fixed(_last, 0), **_fixed(_second_to_last, 1)}
_GEMM: _Ports = {
    0: lambda node, s: (_first if node.attributes.get_int("transA", 0) else _last)(s),
    1: lambda node, s: (_last if node.attributes.get_int("transB", 0) else _first)(s),
}
_CONV = _fixed(_all_but_first, 1)
_RECURRENT = _fixed(_last, 1, 2)

VIEWS: Table[_Ports] = Table(
    "summed axes",
    [
        Entry("Conv", _CONV),
        Entry("ConvInteger", _CONV),
        Entry("QLinearConv", _fixed(_all_but_first, 3)),
        Entry("ConvTranspose", _fixed(_first, 1)),
        Entry("Gemm", _GEMM),
        Entry("MatMul", _MATMUL),
        Entry("MatMulInteger", _MATMUL),
        Entry("QLinearMatMul", {**_fixed(_last, 0), **_fixed(_second_to_last, 3)}),
        Entry("LSTM", _RECURRENT),
        Entry("GRU", _RECURRENT),
        Entry("RNN", _RECURRENT),
        Entry("Gather", _fixed(_all_but_first, 0)),
        Entry("FusedConv", _CONV, MICROSOFT),
        Entry("FusedGemm", _GEMM, MICROSOFT),
        Entry("FusedMatMul", _fixed(_second_to_last, 1), MICROSOFT),
        Entry("QGemm", {3: _GEMM[1]}, MICROSOFT),
        Entry("DynamicQuantizeMatMul", _fixed(_second_to_last, 1), MICROSOFT),
        Entry("Attention", _fixed(_first, 1), MICROSOFT),
    ],
)
"""Operator -> input -> how the weight there is seen, the usual way first."""


def views_of(node: ir.Node, port: int, shape: Dims) -> tuple[View, ...]:
    """Return how an operator sees a weight; empty where that is not known.

    Args:
        node: The operator.
        port: Index of the input.
        shape: Of the weight.
    """
    ports = VIEWS.find(node.domain, node.op_type, 1)
    if ports is None or port not in ports or len(shape) < 2:
        return ()
    return ports[port](node, shape)
