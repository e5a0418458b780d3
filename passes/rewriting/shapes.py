"""Dimensions, element types and shape-vector elements of outputs, one small function per operator.

A function answers only what holds for every valid run of the operator. An operator that is not in
the table has unknown outputs.
"""

from __future__ import annotations

import onnx_ir as ir

from passes.rewriting import contents, movement, products, windows
from passes.rewriting.facts import Dims, Fact, static
from passes.rewriting.question import Question, Rule, broadcast


def _same(q: Question) -> tuple[Fact, ...]:
    first = q.input(0)
    return (Fact(first.dtype, first.dims),)


def _identity(q: Question) -> tuple[Fact, ...]:
    return (q.input(0),)


def _cast(q: Question) -> tuple[Fact, ...]:
    to = q.integer("to")
    if to is None:
        return ()
    dtype, first = ir.DataType(to), q.input(0)
    return (Fact(dtype, first.dims, contents.cast(first.content, first.dtype, dtype)),)


def _elementwise(q: Question) -> tuple[Fact, ...]:
    # Before operator set 7, broadcasting was one-sided and asked for by an attribute.
    dims = broadcast(*(f.dims for f in q.inputs)) if q.version >= 7 else None
    return (Fact(q.input(0).dtype, dims, _content(q, dims)),)


def _content(q: Question, dims: Dims | None) -> Dims | None:
    return contents.elementwise(q) if dims is not None and len(dims) <= 1 else None


def _compare(q: Question) -> tuple[Fact, ...]:
    dims = broadcast(*(f.dims for f in q.inputs)) if q.version >= 7 else None
    return (Fact(ir.DataType.BOOL, dims, _content(q, dims)),)


def _where(q: Question) -> tuple[Fact, ...]:
    dims = broadcast(*(f.dims for f in q.inputs))
    return (Fact(q.input(1).dtype, dims, _content(q, dims)),)


def _unary(q: Question) -> tuple[Fact, ...]:
    first = q.input(0)
    return (Fact(first.dtype, first.dims, _content(q, first.dims)),)


def _constant(q: Question) -> tuple[Fact, ...]:
    for name, dtype in (("value_int", ir.DataType.INT64), ("value_ints", ir.DataType.INT64)):
        attribute = q.node.attributes.get(name)
        if attribute is not None:
            one = name == "value_int"
            content = (attribute.as_int(),) if one else tuple(attribute.as_ints())
            return (Fact(dtype, () if one else (len(content),), content),)
    for name in ("value_float", "value_floats"):
        attribute = q.node.attributes.get(name)
        if attribute is not None:
            dims = () if name == "value_float" else (len(attribute.as_floats()),)
            return (Fact(ir.DataType.FLOAT, dims),)
    return ()


def _reduce(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    dtype = ir.DataType.INT64 if q.node.op_type.startswith("Arg") else x.dtype
    if x.dims is None:
        return (Fact(dtype),)
    rank, keep = len(x.dims), bool(q.integer("keepdims", 1))
    axes: tuple[int, ...] | None
    if q.node.op_type.startswith("Arg"):
        axes = (q.integer("axis", 0) or 0,)
    else:
        since = 13 if q.node.op_type == "ReduceSum" else 18
        axes = static(q.vector("axes", 1, since))
        if axes is None and q.version >= since and q.has(1):
            return (Fact(dtype),)
        if not axes:
            axes = () if q.integer("noop_with_empty_axes", 0) else tuple(range(rank))
    gone = {axis % rank for axis in axes} if rank else set()
    dims = tuple(1 if i in gone else s for i, s in enumerate(x.dims) if keep or i not in gone)
    whole = x.content is not None and rank == 1 and len(gone) == 1
    content = contents.reduce(q, x.content) if whole and x.content is not None else None
    return (Fact(dtype, dims, content),)


def _dropout(q: Question) -> tuple[Fact, ...]:
    first = q.input(0)
    return (Fact(first.dtype, first.dims), Fact(None, first.dims))


_SAME = (
    "Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Ceil Celu Clip Cos Cosh "
    "CumSum Elu Erf Exp Floor Gelu HardSigmoid HardSwish Hardmax InstanceNormalization LRN "
    "LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish "
    "PRelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu GroupNormalization RMSNormalization Trilu "
    "ReverseSequence ScatterElements Scatter ScatterND TensorScatter RotaryEmbedding"
)
_ELEMENTWISE = "Add Sub Mul Div Mod Pow Max Min Mean Sum BitwiseAnd BitwiseOr BitwiseXor BitShift"
_COMPARE = "Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor"
_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare ArgMax ArgMin"
)

RULES: dict[str, Rule] = {
    **movement.RULES,
    **products.RULES,
    **windows.RULES,
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_COMPARE.split(), _compare),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    **dict.fromkeys(("Abs", "Neg", "Not"), _unary),
    "Cast": _cast,
    "Constant": _constant,
    "Dropout": _dropout,
    "Identity": _identity,
    "Where": _where,
}
"""What each operator says about its outputs."""


def answer(node: ir.Node, inputs: tuple[Fact, ...], version: int) -> tuple[Fact, ...]:
    """Return what is certain about the outputs of an operator of the default domain."""
    rule = RULES.get(node.op_type)
    return () if rule is None else rule(Question(node, inputs, version))
