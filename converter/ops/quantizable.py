"""How each operator runs on 8-bit integers in onnxruntime's CPU provider.

A row states what was observed by building the quantize/dequantize form of the operator and looking
at the graph that onnxruntime makes of it (version 1.31): :mod:`converter.execution.fusion_probe`
repeats the observation for every row, so a runtime that fuses differently is noticed. Operators
that are not fused have no row and stay in float; among them are Sub, Div, Pad, ConvTranspose,
ReduceMean, Tanh, PRelu and HardSwish. Softmax is fused but has no row: on integers it takes two to
six times as long, and 8 bits are few for shares.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.ops.table import Entry, Table

if TYPE_CHECKING:
    import onnx_ir as ir


class Role(enum.Enum):
    """What an operator does to the integer grids of its tensors."""

    WEIGHTED = "weighted"
    """Multiplies by a constant weight: the reason to quantize at all."""
    GRID = "grid"
    """Computes on integers; every input and the output have grids of their own."""
    SHARED = "shared"
    """Only moves or selects elements; the outputs keep the grid of the input."""


def _always(_: ir.Node) -> bool:
    return True


@dataclass(frozen=True)
class QuantizableOp:
    """Facts about one operator.

    Attributes:
        role: See :class:`Role`.
        fused: Name of the integer operator in the optimised graph; "" when the operator itself then
            works on integers.
        activations: Positions of the inputs that carry activations; None: all inputs.
        weight: Position of the weight.
        channel_axis: Axis of the weight's output channels for a node; negative from the end.
        weight_ranks: Ranks of the weight that are fused; empty: any.
        bias: Position of the bias, int32 on the grid (input scale x weight scale).
        float_output: The fused operator can also give float, so that a result which only float
            operators read is never rounded to 8 bits.
        constant_input: One of the activations may be a constant.
        shrinks: The output is much smaller than the input and exact, so running it on integers pays
            even when only float operators follow. An average is not exact: rounded to 8 bits at
            the end of SqueezeNet it made a quarter of all error (KL 0.0139, in float 0.0106).
        joins: The inputs may lie on the grid of the output, which then is not rounded again.
        output_range: Range of the output known without data.
        accepts: Further condition on the node's attributes and ports.
    """

    role: Role
    fused: str = ""
    activations: tuple[int, ...] | None = (0,)
    weight: int | None = None
    channel_axis: Callable[[ir.Node], int] | None = None
    weight_ranks: tuple[int, ...] = ()
    bias: int | None = None
    float_output: bool = False
    constant_input: bool = False
    shrinks: bool = False
    joins: bool = False
    output_range: tuple[float, float] | None = None
    accepts: Callable[[ir.Node], bool] = _always


def _first_axis(_: ir.Node) -> int:
    return 0


def _last_axis(_: ir.Node) -> int:
    return -1


def _gemm_axis(node: ir.Node) -> int:
    return 0 if node.attributes.get_int("transB", 0) else 1


def _gemm_accepts(node: ir.Node) -> bool:
    """QGemm has no beta, and int32 bias times another alpha is no longer on its grid."""
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    return not node.attributes.get_int("transA", 0) and (not biased or alpha == beta == 1.0)


def _single_output(node: ir.Node) -> bool:
    return sum(1 for value in node.outputs if value.name) == 1


def _undilated(node: ir.Node) -> bool:
    return all(d == 1 for d in node.attributes.get_ints("dilations", ()))


def _nearest(node: ir.Node) -> bool:
    return node.attributes.get_string("mode", "nearest") == "nearest" and len(node.outputs) == 1


_CONV = QuantizableOp(
    Role.WEIGHTED, "QLinearConv", weight=1, channel_axis=_first_axis, weight_ranks=(3, 4, 5), bias=2
)
_GEMM = QuantizableOp(
    Role.WEIGHTED,
    "QGemm",
    weight=1,
    channel_axis=_gemm_axis,
    weight_ranks=(2,),
    bias=2,
    float_output=True,
    accepts=_gemm_accepts,
)
_MATMUL = QuantizableOp(
    Role.WEIGHTED,
    "QLinearMatMul",
    weight=1,
    channel_axis=_last_axis,
    weight_ranks=(2,),
    float_output=True,
)
_WHERE = QuantizableOp(Role.GRID, "QLinearWhere", activations=(1, 2))
_MOVE = QuantizableOp(Role.SHARED)
_MAXPOOL = QuantizableOp(Role.SHARED, shrinks=True, accepts=_single_output)
_RESIZE = QuantizableOp(Role.SHARED, accepts=_nearest)


def _binary(fused: str) -> QuantizableOp:
    return QuantizableOp(Role.GRID, fused, activations=(0, 1), constant_input=True)


def _unary(fused: str, output_range: tuple[float, float] | None = None) -> QuantizableOp:
    return QuantizableOp(Role.GRID, fused, output_range=output_range)


QUANTIZABLE: Table[QuantizableOp] = Table(
    "quantizable",
    (
        Entry("Conv", _CONV, since=10),
        Entry("Gemm", _GEMM, since=10),
        Entry("MatMul", _MATMUL, since=10),
        Entry("Add", _binary("QLinearAdd"), since=10),
        Entry("Mul", _binary("QLinearMul"), since=10),
        Entry(
            "Concat",
            QuantizableOp(Role.GRID, "QLinearConcat", activations=None, joins=True),
            since=10,
        ),
        Entry(
            "AveragePool",
            QuantizableOp(Role.GRID, "QLinearAveragePool", accepts=_undilated),
            since=10,
        ),
        Entry(
            "GlobalAveragePool",
            _unary("QLinearGlobalAveragePool"),
            since=10,
        ),
        Entry("LeakyRelu", _unary("QLinearLeakyRelu"), since=10),
        Entry("Sigmoid", _unary("QLinearSigmoid", (0.0, 1.0)), since=10),
        Entry("Where", _WHERE, since=10),
        Entry("MaxPool", _MAXPOOL, since=12),
        Entry("Resize", _RESIZE, since=13),
        Entry("Reshape", _MOVE, since=10),
        Entry("Transpose", _MOVE, since=10),
        Entry("Flatten", _MOVE, since=10),
        Entry("Squeeze", _MOVE, since=10),
        Entry("Unsqueeze", _MOVE, since=10),
        Entry("Slice", _MOVE, since=10),
        Entry("Gather", _MOVE, since=10),
        Entry("Expand", _MOVE, since=10),
        Entry("Tile", _MOVE, since=10),
        Entry("DepthToSpace", _MOVE, since=13),
        Entry("Split", _MOVE, since=13),
    ),
)

WITHOUT_INTEGER_FORM = ("ConvTranspose",)
"""Operators with weights that onnxruntime's CPU provider has no integer form of."""

ABSORBED_ACTIVATIONS = ("Relu", "Clip")
"""Cut off by the range of the grid of the operator before them, so they need no node."""

QUANTIZING_OPS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
)
"""Operators that show that a part of a model is quantized already."""
