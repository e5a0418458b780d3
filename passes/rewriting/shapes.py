"""Dimensions, element types and shape-vector elements of outputs, one small function per operator.

A function answers only what holds for every valid run of the operator. An operator that is not in
the table has unknown outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod

import onnx_ir as ir

from passes.rewriting.facts import UNKNOWN, Dim, Dims, Fact, Size, static


@dataclass(frozen=True, slots=True)
class Question:
    """A node and what is certain about its inputs.

    Attributes:
        node: The node.
        inputs: One fact per input.
        version: Default operator set in force.
    """

    node: ir.Node
    inputs: tuple[Fact, ...]
    version: int

    def input(self, index: int) -> Fact:
        """Return the fact of an input; unknown when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else UNKNOWN

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def integer(self, name: str, default: int | None = None) -> int | None:
        """Return an integer attribute."""
        attribute = self.node.attributes.get(name)
        if attribute is None or attribute.type != ir.AttributeType.INT:
            return default
        return attribute.as_int()

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute with integers."""
        attribute = self.node.attributes.get(name)
        if attribute is None or attribute.type != ir.AttributeType.INTS:
            return None
        return tuple(attribute.as_ints())

    def vector(self, name: str, index: int, since: int) -> Dims | None:
        """Return integers that are an input from operator set ``since`` on, an attribute before."""
        return self.input(index).content if self.version >= since else self.integers(name)


Rule = Callable[[Question], tuple[Fact, ...]]


def broadcast(*shapes: Dims | None) -> Dims | None:
    """Return the shape that results from numpy broadcasting."""
    result: Dims | None = ()
    for shape in shapes:
        if result is None or shape is None:
            return None
        pairs = zip_longest(reversed(result), reversed(shape), fillvalue=1)
        result = tuple(_widest(a, b) for a, b in pairs)[::-1]
    return result


def _widest(a: Size, b: Size) -> Size:
    """Return the size of an axis after broadcasting; a fixed size above 1 always wins."""
    if b in (a, 1):
        return a
    if a == 1:
        return b
    for size in (a, b):
        if isinstance(size, int):
            return size
    return Dim()


def _axis(axis: int | None, rank: int) -> int | None:
    if axis is None or not -rank <= axis < rank:
        return None
    return axis % rank


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


def _transpose(q: Question) -> tuple[Fact, ...]:
    x = q.input(0).dims
    if x is None:
        perm = q.integers("perm")
        return (Fact(q.input(0).dtype, None if perm is None else tuple(Dim() for _ in perm)),)
    perm = q.integers("perm") or tuple(range(len(x)))[::-1]
    ok = sorted(perm) == list(range(len(x)))
    return (Fact(q.input(0).dtype, tuple(x[p] for p in perm) if ok else None),)


def _shape(q: Question) -> tuple[Fact, ...]:
    x = q.input(0).dims
    if x is None:
        return (Fact(ir.DataType.INT64, (Dim(),)),)
    start, end = q.integer("start", 0), q.integer("end")
    # Numpy clamps both ends exactly as the specification says.
    content = x[start:] if end is None else x[start:end]
    return (Fact(ir.DataType.INT64, (len(content),), content),)


def _size(q: Question) -> tuple[Fact, ...]:
    known = q.input(0).static
    content: Dims | None = None if known is None else (prod(known),)
    return (Fact(ir.DataType.INT64, (), content),)


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


def _gather(q: Question) -> tuple[Fact, ...]:
    x, indices = q.input(0), q.input(1)
    if x.dims is None or indices.dims is None:
        return (Fact(x.dtype),)
    axis = _axis(q.integer("axis", 0), len(x.dims))
    if axis is None:
        return (Fact(x.dtype),)
    dims = (*x.dims[:axis], *indices.dims, *x.dims[axis + 1 :])
    content: Dims | None = None
    if x.content is not None and len(x.dims) == 1:
        picked = static(indices.content)
        if picked is not None and all(-len(x.content) <= i < len(x.content) for i in picked):
            content = tuple(x.content[i] for i in picked)
    return (Fact(x.dtype, dims, content if len(dims) <= 1 else None),)


def _concat(q: Question) -> tuple[Fact, ...]:
    dtype = q.input(0).dtype
    shapes = [f.dims for f in q.inputs if f.dims is not None]
    if not shapes or len(shapes) != len(q.inputs) or len({len(s) for s in shapes}) != 1:
        return (Fact(dtype),)
    axis = _axis(q.integer("axis", 1 if q.version < 4 else None), len(shapes[0]))
    if axis is None:
        return (Fact(dtype),)
    sizes = static(tuple(s[axis] for s in shapes))
    total: Size = Dim() if sizes is None else sum(sizes)
    # The other axes are equal in all inputs, so the most certain one of them may speak.
    other = [
        next((s[i] for s in shapes if isinstance(s[i], int)), shapes[0][i])
        for i in range(len(shapes[0]))
    ]
    other[axis] = total
    parts = [f.content for f in q.inputs if f.content is not None]
    whole = len(parts) == len(q.inputs) and len(other) == 1
    content = tuple(size for part in parts for size in part) if whole else None
    return (Fact(dtype, tuple(other), content),)


def _split(q: Question) -> tuple[Fact, ...]:
    x, count = q.input(0), len(q.node.outputs)
    axis = None if x.dims is None else _axis(q.integer("axis", 0), len(x.dims))
    if x.dims is None or axis is None:
        return tuple(Fact(x.dtype) for _ in range(count))
    given = q.vector("split", 1, 13)
    sizes: Sequence[Size] = [Dim() for _ in range(count)]
    if given is not None and len(given) == count:
        sizes = given
    return tuple(Fact(x.dtype, (*x.dims[:axis], s, *x.dims[axis + 1 :])) for s in sizes)


def _reshape(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    target = q.vector("shape", 1, 5)
    if target is None:
        rank = q.input(1).static
        dims = None if rank is None or len(rank) != 1 else tuple(Dim() for _ in range(rank[0]))
        return (Fact(x.dtype, dims),)
    return (Fact(x.dtype, reshaped(x.dims, target, zero=bool(q.integer("allowzero", 0)))),)


def reshaped(dims: Dims | None, target: Dims, *, zero: bool) -> Dims:
    """Return the shape after Reshape; ``zero``: a 0 in the target means a size of 0.

    Unknown sizes in the target are those of a tensor, hence never -1. One that turns out to be 0
    means 0 in both readings only if it stands for the same axis of the input.
    """
    out: list[Size] = []
    for index, size in enumerate(target):
        if size == 0 and not zero:
            out.append(dims[index] if dims is not None and index < len(dims) else Dim())
        elif isinstance(size, Dim) and not zero:
            same = dims is not None and index < len(dims) and dims[index] is size
            out.append(size if same else Dim())
        else:
            out.append(size)
    if -1 in target and dims is not None:
        out[target.index(-1)] = _remainder(list(dims), [s for s in out if s != -1])
    return tuple(Dim() if size == -1 else size for size in out)


def _remainder(whole: list[Size], parts: list[Size]) -> Size:
    """Divide the product of ``whole`` by that of ``parts``, cancelling equal unknown sizes."""
    left = list(whole)
    for part in [p for p in parts if isinstance(p, Dim)]:
        if not any(part is size for size in left):
            return Dim()
        left.remove(part)
    divisor = prod(p for p in parts if isinstance(p, int))
    known = prod(s for s in left if isinstance(s, int))
    unknown = [s for s in left if isinstance(s, Dim)]
    if divisor == 0 or known % divisor:
        return Dim()
    if not unknown:
        return known // divisor
    return unknown[0] if len(unknown) == 1 and known == divisor else Dim()


def _flatten(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    axis = q.integer("axis", 1)
    if x.dims is None or axis is None or not -len(x.dims) <= axis <= len(x.dims):
        return (Fact(x.dtype, (Dim(), Dim())),)
    axis = axis + len(x.dims) if axis < 0 else axis
    return (Fact(x.dtype, (_product(x.dims[:axis]), _product(x.dims[axis:]))),)


def _product(sizes: Dims) -> Size:
    known = prod(s for s in sizes if isinstance(s, int))
    unknown = [s for s in sizes if isinstance(s, Dim)]
    if not unknown or known == 0:
        return known
    return unknown[0] if len(unknown) == 1 and known == 1 else Dim()


def _squeeze(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    axes = static(q.vector("axes", 1, 13))
    if x.dims is None or axes is None:
        return (Fact(x.dtype, None, x.content if x.dims == (1,) else None),)
    rank = len(x.dims)
    gone = {axis % rank for axis in axes} if rank else set()
    dims = tuple(s for i, s in enumerate(x.dims) if i not in gone)
    return (Fact(x.dtype, dims, x.content if rank == 1 else None),)


def _unsqueeze(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    axes = static(q.vector("axes", 1, 13))
    if x.dims is None or axes is None:
        return (Fact(x.dtype),)
    rank = len(x.dims) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(x.dims)
    if len(new) != len(axes):
        return (Fact(x.dtype),)
    dims = tuple(1 if i in new else next(rest) for i in range(rank))
    return (Fact(x.dtype, dims, x.content if rank == 1 else None),)


def _sizes(fact: Fact) -> Dims | None:
    """Return the elements of a shape vector unless one of them cannot be a size."""
    if fact.content is None or any(isinstance(s, int) and s < 0 for s in fact.content):
        return None
    return fact.content


def _expand(q: Question) -> tuple[Fact, ...]:
    return (Fact(q.input(0).dtype, broadcast(q.input(0).dims, _sizes(q.input(1)))),)


def _constant_of_shape(q: Question) -> tuple[Fact, ...]:
    attribute = q.node.attributes.get("value")
    dtype = ir.DataType.FLOAT if attribute is None else attribute.as_tensor().dtype
    return (Fact(dtype, _sizes(q.input(0))),)


def _tile(q: Question) -> tuple[Fact, ...]:
    x, repeats = q.input(0), _sizes(q.input(1))
    if x.dims is None or repeats is None or len(repeats) != len(x.dims):
        return (Fact(x.dtype),)
    pairs = zip(x.dims, repeats, strict=True)
    dims = tuple(_product((size, repeat)) for size, repeat in pairs)
    return (Fact(x.dtype, dims),)


def _pad(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    pads = static(q.vector("pads", 1, 11))
    if x.dims is None or pads is None or len(pads) != 2 * len(x.dims) or q.has(3):
        return (Fact(x.dtype),)
    rank = len(x.dims)
    added = [pads[i] + pads[i + rank] for i in range(rank)]
    dims = tuple(
        size if not extra else (size + extra if isinstance(size, int) else Dim())
        for size, extra in zip(x.dims, added, strict=True)
    )
    return (Fact(x.dtype, dims),)


def slice_ranges(q: Question) -> dict[int, tuple[int, int, int]] | None:
    """Return (start, end, step) by axis for a Slice whose ranges are all known."""
    x = q.input(0).dims
    starts = static(q.vector("starts", 1, 10))
    ends = static(q.vector("ends", 2, 10))
    if x is None or starts is None or ends is None or len(starts) != len(ends):
        return None
    given = static(q.vector("axes", 3, 10))
    if given is None and (q.has(3) or "axes" in q.node.attributes):
        return None
    axes = range(len(starts)) if given is None else given
    steps = static(q.input(4).content) if q.has(4) else (1,) * len(starts)
    if steps is None or len(steps) != len(starts) or len(axes) != len(starts):
        return None
    found: dict[int, tuple[int, int, int]] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not -len(x) <= axis < len(x) or axis % len(x) in found or step == 0:
            return None
        found[axis % len(x)] = (start, end, step)
    return found


def _slice(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    ranges = slice_ranges(q)
    if x.dims is None or ranges is None:
        return (Fact(x.dtype, None if x.dims is None else tuple(Dim() for _ in x.dims)),)
    dims = list(x.dims)
    for axis, (start, end, step) in ranges.items():
        size = dims[axis]
        if isinstance(size, int):
            dims[axis] = len(range(size)[slice(start, end, step)]) if step > 0 else Dim()
        elif not (start == 0 and end >= (1 << 31) - 1 and step == 1):
            dims[axis] = Dim()
    content: Dims | None = None
    if x.content is not None and len(x.dims) == 1 and ranges.get(0, (0, 0, 1))[2] > 0:
        start, end, step = ranges.get(0, (0, len(x.content), 1))
        content = x.content[start:end:step]
    return (Fact(x.dtype, tuple(dims), content),)


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
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_COMPARE.split(), _compare),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": _identity,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""What each operator says about its outputs."""
