"""Dimensions, element types and shape-vector elements of outputs, one small function per operator.

A function answers only what holds for every valid run of the operator. An operator that is not in
the table has unknown outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from passes.rewriting import movement
from passes.rewriting.facts import Dim, Dims, Fact, Size, static
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
    both = {dtype, first.dtype} <= {ir.DataType.INT64}
    return (Fact(dtype, first.dims, first.content if both else None),)


def _elementwise(q: Question) -> tuple[Fact, ...]:
    # Before operator set 7, broadcasting was one-sided and asked for by an attribute.
    dims = broadcast(*(f.dims for f in q.inputs)) if q.version >= 7 else None
    content = None
    fold = _ARITHMETIC.get(q.node.op_type)
    if fold is not None and len(q.inputs) == 2:
        content = _arithmetic(fold, q.input(0), q.input(1))
    return (Fact(q.input(0).dtype, dims, content),)


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
}


def _arithmetic(fold: Callable[[int, int], int], a: Fact, b: Fact) -> Dims | None:
    """Compute with shape vectors; a product with 1 keeps an unknown size."""
    if a.dtype != ir.DataType.INT64 or b.dtype != ir.DataType.INT64:
        return None
    if a.content is None or b.content is None or a.dims is None or b.dims is None:
        return None
    left, right = a.content, b.content
    if len(left) != len(right):
        if 1 not in (len(left), len(right)):
            return None
        left, right = left * max(1, len(right)), right * max(1, len(left))
        left, right = left[: len(right)], right[: len(left)]
    result = tuple(_number(fold, x, y) for x, y in zip(left, right, strict=False))
    known = tuple(size for size in result if size is not None)
    return known if len(known) == len(result) else None


def _number(fold: Callable[[int, int], int], x: Size, y: Size) -> Size | None:
    """Compute one element; sums and products of sizes are sizes again, differences need not be."""
    if isinstance(x, int) and isinstance(y, int):
        number = fold(x, y)
        return number if abs(number) < 1 << 62 else None
    if fold is _ARITHMETIC["Sub"] or any(isinstance(s, int) and s < 0 for s in (x, y)):
        return None
    neutral = fold(0, 1) ^ 1  # 1 for products, 0 for sums
    if x == neutral:
        return y
    return x if y == neutral else Dim()


def _compare(q: Question) -> tuple[Fact, ...]:
    dims = broadcast(*(f.dims for f in q.inputs)) if q.version >= 7 else None
    return (Fact(ir.DataType.BOOL, dims),)


def _where(q: Question) -> tuple[Fact, ...]:
    return (Fact(q.input(1).dtype, broadcast(*(f.dims for f in q.inputs))),)


def _matmul(q: Question) -> tuple[Fact, ...]:
    a, b = q.input(0).dims, q.input(1).dims
    dims: Dims | None = None
    if a is not None and b is not None and len(a) >= 2 and len(b) >= 2:
        outer = broadcast(a[:-2], b[:-2])
        dims = None if outer is None else (*outer, a[-2], b[-1])
    return (Fact(q.input(0).dtype, dims),)


def _gemm(q: Question) -> tuple[Fact, ...]:
    a, b = q.input(0).dims, q.input(1).dims
    dims: Dims | None = None
    if a is not None and b is not None and len(a) == len(b) == 2:
        dims = (a[1 if q.integer("transA", 0) else 0], b[0 if q.integer("transB", 0) else 1])
    return (Fact(q.input(0).dtype, dims),)


def _conv(q: Question) -> tuple[Fact, ...]:
    x, w = q.input(0).dims, q.input(1).dims
    if x is None or w is None or len(x) != len(w) or len(x) < 3:
        return (Fact(q.input(0).dtype),)
    spatial = _windows(q, x[2:], static(w[2:]))
    return (Fact(q.input(0).dtype, (x[0], w[0], *spatial)),)


def _windows(q: Question, sizes: Dims, kernel: tuple[int, ...] | None) -> Dims:
    """Return the spatial sizes after a sliding window; unknown where padding is automatic."""
    count = len(sizes)
    unknown = tuple(Dim() for _ in sizes)
    auto = q.node.attributes.get("auto_pad")
    if kernel is None or q.integer("ceil_mode", 0):
        return unknown
    if auto is not None and auto.as_string() not in {"NOTSET", ""}:
        return unknown
    pads = q.integers("pads") or (0,) * (2 * count)
    strides = q.integers("strides") or (1,) * count
    dilations = q.integers("dilations") or (1,) * count
    if len(pads) != 2 * count or len(strides) != count or len(dilations) != count:
        return unknown
    out: list[Size] = []
    for i, size in enumerate(sizes):
        reach = dilations[i] * (kernel[i] - 1) + 1
        room = size + pads[i] + pads[i + count] - reach if isinstance(size, int) else None
        out.append(room // strides[i] + 1 if room is not None and strides[i] > 0 else Dim())
    return tuple(out)


def _pool(q: Question) -> tuple[Fact, ...]:
    x, kernel = q.input(0).dims, q.integers("kernel_shape")
    if x is None or kernel is None or len(x) != len(kernel) + 2:
        return (Fact(q.input(0).dtype),)
    return (Fact(q.input(0).dtype, (*x[:2], *_windows(q, x[2:], kernel))),)


def _global_pool(q: Question) -> tuple[Fact, ...]:
    x = q.input(0).dims
    dims = None if x is None or len(x) < 2 else (*x[:2], *(1 for _ in x[2:]))
    return (Fact(q.input(0).dtype, dims),)


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
    return (Fact(dtype, dims),)


def _dropout(q: Question) -> tuple[Fact, ...]:
    first = q.input(0)
    return (Fact(first.dtype, first.dims), Fact(None, first.dims))


_SAME = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Ceil Celu Clip Cos Cosh "
    "CumSum Elu Erf Exp Floor Gelu HardSigmoid HardSwish Hardmax InstanceNormalization LRN "
    "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish "
    "Neg Not PRelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu GroupNormalization RMSNormalization Trilu"
)
_ELEMENTWISE = "Add Sub Mul Div Mod Pow Max Min Mean Sum BitwiseAnd BitwiseOr BitwiseXor BitShift"
_COMPARE = "Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor"
_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare ArgMax ArgMin"
)

RULES: dict[str, Rule] = {
    **movement.RULES,
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_COMPARE.split(), _compare),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    "Cast": _cast,
    "Constant": _constant,
    "Conv": _conv,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "Identity": _identity,
    "MatMul": _matmul,
    "Where": _where,
}
"""What each operator says about its outputs."""
