"""What operators bear in 16 bits, one row each.

An operator without a row stays in float32. Rows hold what the schemas of ONNX do not say: which
operators are the reason to convert at all, which only move elements, and which lose more than one
rounding step when ranges are unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.core.graph import is_op
from converter.ops.table import Entry, Table

if TYPE_CHECKING:
    import onnx_ir as ir


def _none(_: ir.Node) -> str:
    return ""


class Role(enum.Enum):
    """Why an operator would run in 16 bits."""

    HEAVY = "heavy"
    """Multiplies matrices: the reason to convert at all."""
    LIGHT = "light"
    """Computes element by element, or little; follows its neighbours."""
    MOVE = "move"
    """Moves, selects or compares elements and rounds nothing; follows its neighbours."""


@dataclass(frozen=True)
class HalfOp:
    """Facts about one operator.

    Attributes:
        role: See :class:`Role`.
        blind: Why it stays in float32 when nothing is known of the ranges; "" when it need not.
        fixed: Inputs that keep their type although a type variable of their own would allow it.
        saturates: Inputs that are bounds: a constant beyond the range may be cut off to it.
        small: Inputs that must not come near zero, since the operator divides by them or takes
            their logarithm.
        sums: Adds up that kind of term over many elements: "" (no), "linear" or "square".
        never: Why it stays in float32 in any case; "" when it need not.
        obstacle: Says why a certain node stays; "" when it need not.
        cpu_bfloat16: onnxruntime's CPU provider has a kernel for bfloat16.
    """

    role: Role
    blind: str = ""
    fixed: tuple[int, ...] = ()
    saturates: tuple[int, ...] = ()
    small: tuple[int, ...] = ()
    sums: str = ""
    never: str = ""
    obstacle: Callable[[ir.Node], str] = _none
    cpu_bfloat16: bool = False


_GROWS = "its results can leave the range of 16 bits, and no data says whether they do"
_DIVIDES = "it may divide by values that 16 bits round to zero, and no data says whether it does"
_SUMS = "it adds up many values, and no data says how large they are"
_STATE = "it adds to one state over many steps, and so would its rounding errors"
_CONTROL = "it makes its values from sizes and positions, which must stay exact"
_COMPARES = "it compares values, and rounding moves those close to each other"


def _moves_batch(node: ir.Node) -> str:
    """Find a Transpose that onnxruntime 1.31 merges with a MatMul, and then crashes in float16.

    It does so when the first axis becomes the last or last but one and the others stay in order,
    and looks through a Cast between the two.
    """
    perm = list(node.attributes.get_ints("perm", ()))
    rank = len(perm)
    moved = rank > 2 and perm[:-2] == list(range(1, rank - 1)) and 0 in perm[-2:]
    users = [use.node for use in node.outputs[0].uses()]
    users += [use.node for n in users if is_op(n, "Cast") for use in n.outputs[0].uses()]
    if moved and any(is_op(user, "MatMul") for user in users):
        return "onnxruntime crashes on it in float16 before a MatMul"
    return ""


_HEAVY = HalfOp(Role.HEAVY)
_SAFE = HalfOp(Role.LIGHT)
_MOVE = HalfOp(Role.MOVE)
_NATIVE = HalfOp(Role.MOVE, cpu_bfloat16=True)


def _rows(row: HalfOp, *op_types: str) -> list[Entry[HalfOp]]:
    return [Entry(op_type, row) for op_type in op_types]


HALF: Table[HalfOp] = Table(
    "half",
    [
        *_rows(_HEAVY, "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"),
        *_rows(_SAFE, "Add", "Sub", "Mul", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu"),
        *_rows(_SAFE, "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu", "Mish"),
        *_rows(_SAFE, "Softsign", "ThresholdedRelu", "AveragePool", "Swish"),
        *_rows(_NATIVE, "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
        Entry("Transpose", HalfOp(Role.MOVE, obstacle=_moves_batch, cpu_bfloat16=True)),
        *_rows(_NATIVE, "Slice", "Gather", "GatherElements", "Concat", "ScatterND"),
        *_rows(_MOVE, "GatherND", "ScatterElements", "Split", "Expand", "Tile", "Where"),
        *_rows(_MOVE, "DepthToSpace", "SpaceToDepth", "Trilu", "ReverseSequence", "Compress"),
        *_rows(_MOVE, "Pad", "MaxPool", "GlobalMaxPool", "Relu", "Neg", "Abs", "Sign"),
        *_rows(_MOVE, "Max", "Min", "ReduceMax", "ReduceMin", "Upsample", "CastLike"),
        Entry("Clip", HalfOp(Role.MOVE, saturates=(1, 2), cpu_bfloat16=True)),
        Entry("Resize", HalfOp(Role.MOVE, fixed=(1, 2))),
        Entry("Dropout", HalfOp(Role.MOVE, fixed=(1,))),
        *_rows(HalfOp(Role.MOVE, blind=_COMPARES), "ArgMax", "ArgMin", "TopK"),
        *_rows(HalfOp(Role.MOVE, blind=_COMPARES), "Less", "LessOrEqual", "Greater"),
        *_rows(HalfOp(Role.MOVE, blind=_COMPARES), "GreaterOrEqual"),
        *_rows(HalfOp(Role.LIGHT, blind=_GROWS), "Exp", "Softplus", "Sin", "Cos"),
        Entry("Div", HalfOp(Role.LIGHT, blind=_DIVIDES, small=(1,))),
        *_rows(HalfOp(Role.LIGHT, blind=_DIVIDES, small=(0,)), "Reciprocal", "Log"),
        Entry("Sqrt", HalfOp(Role.LIGHT, blind=_DIVIDES)),
        Entry("Pow", HalfOp(Role.LIGHT, blind=_GROWS)),
        *_rows(HalfOp(Role.LIGHT, blind=_GROWS), "Softmax", "LogSoftmax"),
        *_rows(
            HalfOp(Role.LIGHT, blind=_SUMS, sums="linear"),
            *("ReduceMean", "ReduceSum", "GlobalAveragePool", "Sum", "Mean", "ReduceL1"),
        ),
        *_rows(
            HalfOp(Role.LIGHT, blind=_SUMS, sums="square"),
            *("ReduceL2", "ReduceSumSquare", "InstanceNormalization", "LpNormalization", "LRN"),
            *("GroupNormalization", "MeanVarianceNormalization"),
        ),
        # their schemas let the inner sums be made in float32 whatever the type of the input
        *_rows(HalfOp(Role.LIGHT, blind=_SUMS), "LayerNormalization", "RMSNormalization"),
        # its variance is constant and has epsilon added, so small channels are no matter
        Entry("BatchNormalization", HalfOp(Role.LIGHT)),
        *_rows(HalfOp(Role.LIGHT, never=_STATE), "RNN", "GRU", "LSTM", "CumSum"),
        *_rows(HalfOp(Role.LIGHT, never=_CONTROL), "OneHot", "Range", "EyeLike"),
        *_rows(HalfOp(Role.MOVE), "ConstantOfShape"),
    ],
)

READERS = frozenset({"Shape", "Size", "Cast", "IsNaN", "IsInf", "NonZero"})
"""Operators that take what is there: they need no float32 and give none."""

QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Operators whose float ports are part of a quantized region, which stays as it is."""

INDEXES = {
    "Resize": (2,),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "NonMaxSuppression": (0, 1, 2, 3, 4),
}
"""Float inputs that sizes, positions or boxes are made of: what computes them stays exact."""
