"""Multiply-accumulates of operators, counted from the sizes of their inputs and outputs.

One multiply-accumulate is one product that is added to a sum: half of what is called FLOPs in most
papers. Only operators that sum products are counted; a MatMul of two activations counts like one
with a weight. Everything elementwise, reductions and pooling count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.ops.table import Entry, Table

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int, ...]
Sizes = Callable[["ir.Value"], Shape | None]
"""Gives the sizes of a value, or None where they are not known."""


class UnknownSizeError(LookupError):
    """The sizes of a value that decide the count are not known."""


@dataclass(frozen=True)
class Site:
    """One node with the sizes around it.

    Attributes:
        node: The node.
        sizes: Of values.
    """

    node: ir.Node
    sizes: Sizes

    def given(self, position: int) -> Shape:
        """Return the sizes of an input.

        Raises:
            UnknownSizeError: There is no such input, or its sizes are not known.
        """
        inputs = self.node.inputs
        return self._known(inputs[position] if position < len(inputs) else None)

    def has(self, position: int) -> bool:
        """Tell whether an input is there."""
        inputs = self.node.inputs
        return position < len(inputs) and inputs[position] is not None

    def made(self) -> Shape:
        """Return the sizes of the first output.

        Raises:
            UnknownSizeError: They are not known.
        """
        return self._known(self.node.outputs[0])

    def integer(self, name: str, default: int = 0) -> int:
        """Return an attribute."""
        found = self.node.attributes.get_int(name, default)
        return default if found is None else found

    def _known(self, value: ir.Value | None) -> Shape:
        shape = None if value is None else self.sizes(value)
        if shape is None:
            raise UnknownSizeError
        return shape


Count = Callable[[Site], int]


def macs(node: ir.Node, version: int, sizes: Sizes) -> int | None:
    """Count the multiply-accumulates of one node; nodes in its sub-graphs are not looked at.

    Args:
        node: Any node.
        version: Of its domain's operator set.
        sizes: Sizes of values.

    Returns:
        The number; 0 for an operator that sums no products or is unknown; None when sizes that
        decide it are not known.
    """
    row = WORK.find(node.domain, node.op_type, version)
    if row is None:
        return 0
    try:
        return row(Site(node, sizes))
    except (UnknownSizeError, IndexError):
        return None


def counted(node: ir.Node, version: int) -> bool:
    """Tell whether the operator sums products."""
    return WORK.find(node.domain, node.op_type, version) is not None


def _convolution(weight: int) -> Count:
    return lambda site: math.prod(site.made()) * math.prod(site.given(weight)[1:])


def _transposed_convolution(site: Site) -> int:
    return math.prod(site.given(0)) * math.prod(site.given(1)[1:])


def _gemm(site: Site) -> int:
    first = site.given(0)
    return math.prod(site.made()) * first[0 if site.integer("transA") else 1]


def _product(site: Site) -> int:
    return math.prod(site.made()) * site.given(0)[-1]


def _fused_product(site: Site) -> int:
    axis = -2 if site.integer("transA") else -1
    if site.integer("transBatchA"):
        axis = 0 if site.integer("transA") else -1
    return math.prod(site.made()) * site.given(0)[axis]


def _packed_product(site: Site) -> int:
    return math.prod(site.made()) * site.integer("K")


def _einsum(site: Site) -> int:
    """Multiply the sizes of all indices: what is summed without regard to clever orders."""
    equation = site.node.attributes.get_string("equation", "") or ""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2:
        return 0
    extents: dict[str, int] = {}
    for position, term in enumerate(terms):
        shape = site.given(position)
        front, dots, back = term.partition("...")
        wide = len(shape) - len(front) - len(back)
        names = [*front, *(f"...{i}" for i in range(wide, 0, -1) if dots), *back]
        for name, size in zip(names, shape, strict=False):
            extents[name] = max(size, extents.get(name, 1))
    return math.prod(extents.values())


def _recurrent(site: Site) -> int:
    """Count W and R at every step: X (steps, batch, inputs), W (directions, gates, inputs)."""
    steps = math.prod(site.given(0)[:2])
    return steps * (math.prod(site.given(1)) + math.prod(site.given(2)))


def _with_weights(site: Site) -> int:
    """Count com.microsoft Attention: one packed projection, then scores and mixture."""
    batch, length, width = site.given(0)
    packed = site.given(1)[1]
    values = site.made()[-1]
    keys = (packed - values) // 2
    return batch * length * (width * packed + length * (keys + values))


def _attention(site: Site) -> int:
    """Count scores and mixture of queries, keys and values: (batch, length, width), or by heads."""
    query, key = site.given(0), site.given(1)
    made = site.made()
    past = site.given(4)[-2] if len(query) == 4 and site.has(4) else 0
    return math.prod(query[:-1]) * (key[-2] + past) * (query[-1] + made[-1])


def _shared_attention(site: Site) -> int:
    """Count GroupQueryAttention and MultiHeadAttention, packed inputs included."""
    made = site.made()
    batch, length, width = made
    keys = site.given(1)[1] if site.has(1) and len(site.given(1)) == 3 else length
    return 2 * batch * length * keys * width


def _entries() -> list[Entry[Count]]:
    plain: dict[str, Count] = {
        "Attention": _attention,
        "Conv": _convolution(1),
        "ConvInteger": _convolution(1),
        "ConvTranspose": _transposed_convolution,
        "DeformConv": _convolution(1),
        "Einsum": _einsum,
        "GRU": _recurrent,
        "Gemm": _gemm,
        "LSTM": _recurrent,
        "MatMul": _product,
        "MatMulInteger": _product,
        "QLinearConv": _convolution(3),
        "QLinearMatMul": _product,
        "RNN": _recurrent,
    }
    contrib: dict[str, Count] = {
        "Attention": _with_weights,
        "DynamicQuantizeLSTM": _recurrent,
        "DynamicQuantizeMatMul": _product,
        "FusedConv": _convolution(1),
        "FusedGemm": _gemm,
        "FusedMatMul": _fused_product,
        "GroupQueryAttention": _shared_attention,
        "MatMulIntegerToFloat": _product,
        "MatMulNBits": _packed_product,
        "MultiHeadAttention": _shared_attention,
        "QAttention": _with_weights,
        "QGemm": _gemm,
        "TransposeMatMul": _fused_product,
    }
    return [
        *(Entry(op, row) for op, row in plain.items()),
        *(Entry(op, row, domain="com.microsoft") for op, row in contrib.items()),
    ]


WORK: Table[Count] = Table("multiply-accumulates", _entries())
"""How the multiply-accumulates of an operator are counted."""
