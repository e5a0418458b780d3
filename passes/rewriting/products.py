"""Dimensions and types of what other operators compute: products, recurrences, look-ups, codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from passes.rewriting.contents import numbers
from passes.rewriting.facts import Dim, Dims, Fact, Size
from passes.rewriting.question import Question, Rule, axis_in, broadcast
from passes.rewriting.symbols import divide, multiply, unknown

_T = ir.DataType


def _matmul(q: Question, at: tuple[int, int] = (0, 1), dtype: _T | None = None) -> tuple[Fact, ...]:
    a, b = (q.input(index).dims for index in at)
    dtype = q.input(0).dtype if dtype is None else dtype
    if a is None or b is None or not a or not b:
        return (Fact(dtype),)
    outer = broadcast(a[:-2], b[:-2])
    if outer is None:
        return (Fact(dtype),)
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (Fact(dtype, (*outer, *rows, *columns)),)


def _attention(q: Question) -> tuple[Fact, ...]:
    x, v = q.input(0).dims, q.input(2).dims
    if x is None or v is None or len(x) != len(v):
        return (Fact(q.input(0).dtype),)
    if len(x) == 4:
        return (Fact(q.input(0).dtype, (*x[:3], v[3])),)
    heads, few = q.integer("q_num_heads"), q.integer("kv_num_heads")
    width = v[-1]
    if len(x) != 3 or not heads or not few or not isinstance(width, int) or width % few:
        return (Fact(q.input(0).dtype),)
    return (Fact(q.input(0).dtype, (*x[:2], width // few * heads)),)


def _gemm(q: Question) -> tuple[Fact, ...]:
    a, b = q.input(0).dims, q.input(1).dims
    dims: Dims | None = None
    if a is not None and b is not None and len(a) == len(b) == 2:
        dims = (a[1 if q.integer("transA", 0) else 0], b[0 if q.integer("transB", 0) else 1])
    return (Fact(q.input(0).dtype, dims),)


def _einsum(q: Question) -> tuple[Fact, ...]:
    attribute = q.node.attributes.get("equation")
    text = "" if attribute is None else attribute.as_string().replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    dtype = q.input(0).dtype
    if not arrow or "." in text or len(terms) != len(q.inputs):
        return (Fact(dtype),)
    sizes: dict[str, Size] = {}
    for term, fact in zip(terms, q.inputs, strict=True):
        if fact.dims is None or len(fact.dims) != len(term):
            return (Fact(dtype, tuple(Dim() for _ in right)),)
        for letter, size in zip(term, fact.dims, strict=True):
            # An axis of size 1 may be broadcast.
            known = sizes.get(letter, size)
            sizes[letter] = size if known is size else _wider(known, size)
    return (Fact(dtype, tuple(sizes.get(letter, Dim()) for letter in right)),)


def _wider(a: Size, b: Size) -> Size:
    wide = broadcast((a,), (b,))
    return Dim() if wide is None else wide[0]


def _top_k(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    if x.dims is None:
        return (Fact(x.dtype), Fact(_T.INT64))
    axis = axis_in(q.integer("axis", -1), len(x.dims))
    count = (q.integer("k"),) if q.version < 10 else q.input(1).content
    dims = list(x.dims)
    if axis is None:
        return (Fact(x.dtype), Fact(_T.INT64))
    size = count[0] if count and len(count) == 1 else None
    dims[axis] = Dim() if size is None else size
    return (Fact(x.dtype, tuple(dims)), Fact(_T.INT64, tuple(dims)))


def _one_hot(q: Question) -> tuple[Fact, ...]:
    indices, depth, dtype = q.input(0).dims, q.input(1).content, q.input(2).dtype
    if indices is None:
        return (Fact(dtype),)
    axis = axis_in(q.integer("axis", -1), len(indices) + 1)
    if axis is None:
        return (Fact(dtype),)
    size = depth[0] if depth is not None and len(depth) == 1 else Dim()
    return (Fact(dtype, (*indices[:axis], size, *indices[axis:])),)


def _depth_to_space(q: Question) -> tuple[Fact, ...]:
    x, block = q.input(0).dims, q.integer("blocksize")
    if x is None or len(x) != 4 or not block:
        return (Fact(q.input(0).dtype),)
    channels = divide(x[1], block * block)
    dims = (x[0], Dim() if channels is None else channels, *(multiply(s, block) for s in x[2:]))
    return (Fact(q.input(0).dtype, dims),)


def _space_to_depth(q: Question) -> tuple[Fact, ...]:
    x, block = q.input(0).dims, q.integer("blocksize")
    if x is None or len(x) != 4 or not block:
        return (Fact(q.input(0).dtype),)
    parts = tuple(divide(s, block) for s in x[2:])
    # The operator demands that blocks fit, so a size that may leave a rest is a size anyway.
    spatial = tuple(
        unknown("/", size, block) if part is None else part
        for part, size in zip(parts, x[2:], strict=True)
    )
    return (Fact(q.input(0).dtype, (x[0], multiply(x[1], block * block), *spatial)),)


def _recurrent(q: Question) -> tuple[Fact, ...]:
    x, r, dtype = q.input(0).dims, q.input(2).dims, q.input(0).dtype
    if x is None or r is None or len(x) != 3 or len(r) != 3:
        return (Fact(dtype), Fact(dtype), Fact(dtype))
    directions, hidden = r[0], r[2]
    if q.integer("layout", 0):
        state: Dims = (x[0], directions, hidden)
        return (
            Fact(dtype, (x[0], x[1], directions, hidden)),
            Fact(dtype, state),
            Fact(dtype, state),
        )
    state = (directions, x[1], hidden)
    return (Fact(dtype, (x[0], directions, x[1], hidden)), Fact(dtype, state), Fact(dtype, state))


def _quantize(q: Question) -> tuple[Fact, ...]:
    code = q.integer("output_dtype", 0)
    dtype = _T(code) if code else q.input(2).dtype if q.has(2) else _T.UINT8
    return (Fact(dtype, q.input(0).dims),)


def _dequantize(q: Question) -> tuple[Fact, ...]:
    code = q.integer("output_dtype", 0)
    return (Fact(_T(code) if code else q.input(1).dtype, q.input(0).dims),)


def _dynamic_quantize(q: Question) -> tuple[Fact, ...]:
    return (Fact(_T.UINT8, q.input(0).dims), Fact(_T.FLOAT, ()), Fact(_T.UINT8, ()))


def _non_zero(q: Question) -> tuple[Fact, ...]:
    dims = q.input(0).dims
    return (Fact(_T.INT64, None if dims is None else (max(1, len(dims)), Dim())),)


def _compress(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    axis = q.integer("axis")
    if axis is None:
        return (Fact(x.dtype, (Dim(),)),)
    place = None if x.dims is None else axis_in(axis, len(x.dims))
    if x.dims is None or place is None:
        return (Fact(x.dtype),)
    return (Fact(x.dtype, (*x.dims[:place], Dim(), *x.dims[place + 1 :])),)


def _gather_elements(q: Question) -> tuple[Fact, ...]:
    return (Fact(q.input(0).dtype, q.input(1).dims),)


def _gather_nd(q: Question) -> tuple[Fact, ...]:
    x, indices = q.input(0), q.input(1).dims
    batch = q.integer("batch_dims", 0) or 0
    if x.dims is None or not indices or not isinstance(indices[-1], int):
        return (Fact(x.dtype),)
    return (Fact(x.dtype, (*indices[:-1], *x.dims[batch + indices[-1] :])),)


def _layer_norm(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    stash = _T(q.integer("stash_type", 1) or 1)
    if x.dims is None:
        return (Fact(x.dtype), Fact(stash), Fact(stash))
    axis = axis_in(q.integer("axis", -1), len(x.dims))
    small = None if axis is None else (*x.dims[:axis], *(1 for _ in x.dims[axis:]))
    return (Fact(x.dtype, x.dims), Fact(stash, small), Fact(stash, small))


def _flags(q: Question) -> tuple[Fact, ...]:
    return (Fact(_T.BOOL, q.input(0).dims),)


def _cast_like(q: Question) -> tuple[Fact, ...]:
    return (Fact(q.input(1).dtype, q.input(0).dims),)


def _random_like(q: Question) -> tuple[Fact, ...]:
    code = q.integer("dtype")
    return (Fact(_T(code) if code else q.input(0).dtype, q.input(0).dims),)


def _range(q: Question) -> tuple[Fact, ...]:
    content = numbers(q)
    if content is not None:
        return (Fact(q.input(0).dtype, (len(content),), content),)
    parts = [q.input(index).content for index in range(3)]
    start, limit, step = (None if p is None or len(p) != 1 else p[0] for p in parts)
    counts = start == 0 and step == 1 and isinstance(limit, Dim) and limit.natural
    size = limit if counts and limit is not None else Dim()
    return (Fact(q.input(0).dtype, (size,)),)


def _resize(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    if x.dims is None:
        return (Fact(x.dtype),)
    policy = q.node.attributes.get("keep_aspect_ratio_policy")
    axes = q.integers("axes") or tuple(range(len(x.dims)))
    mode = q.node.attributes.get("coordinate_transformation_mode")
    cropped = mode is not None and mode.as_string() == "tf_crop_and_resize"
    plain = (policy is None or policy.as_string() == "stretch") and not cropped
    sizes = q.input(3).content if q.node.op_type == "Resize" and q.version >= 11 else None
    scales = _scales(q)
    count = len(sizes) if sizes is not None else len(scales or ())
    inside = all(-len(x.dims) <= axis < len(x.dims) for axis in axes)
    if count != len(axes) or not plain or not inside:
        return (Fact(x.dtype, tuple(Dim() for _ in x.dims)),)
    dims = list(x.dims)
    for place, axis in enumerate(axes):
        if sizes is not None:
            dims[axis] = sizes[place]
        elif scales is not None:
            dims[axis] = _scaled(dims[axis], scales[place])
    return (Fact(x.dtype, tuple(dims)),)


def _scales(q: Question) -> tuple[float, ...] | None:
    if q.node.op_type == "Upsample" and q.version < 9:
        attribute = q.node.attributes.get("scales")
        return None if attribute is None else tuple(attribute.as_floats())
    index = 1 if q.node.op_type == "Upsample" or q.version < 11 else 2
    tensor = constant(q.node.inputs[index]) if len(q.node.inputs) > index else None
    if tensor is None or not 0 < tensor.size <= 16:
        return None
    return tuple(float(scale) for scale in np.asarray(tensor.numpy()).reshape(-1))


def _scaled(size: Size, scale: float) -> Size:
    """Multiply as the runtime does, in float32, and round down."""
    if isinstance(size, int):
        return int(np.float32(scale) * np.float32(size))
    if float(scale).is_integer():
        return multiply(size, int(scale))
    return unknown("scaled", size, float(np.float32(scale)))


def _constant_shape(q: Question) -> tuple[Fact, ...]:
    """RandomNormal and RandomUniform."""
    shape = q.integers("shape")
    return (Fact(_T(q.integer("dtype", 1) or 1), shape),)


def _max_suppression(q: Question) -> tuple[Fact, ...]:
    return (Fact(_T.INT64, (Dim(), 3)),)


def _roi_align(q: Question) -> tuple[Fact, ...]:
    x, rois = q.input(0).dims, q.input(1).dims
    if x is None or rois is None or len(x) != 4 or not rois:
        return (Fact(q.input(0).dtype),)
    height, width = (q.integer(f"output_{name}", 1) or 1 for name in ("height", "width"))
    return (Fact(q.input(0).dtype, (rois[0], x[1], height, width)),)


def _grid_sample(q: Question) -> tuple[Fact, ...]:
    x, grid = q.input(0).dims, q.input(1).dims
    if x is None or grid is None or len(x) != len(grid):
        return (Fact(q.input(0).dtype),)
    return (Fact(q.input(0).dtype, (*x[:2], *grid[1:-1])),)


def _det(q: Question) -> tuple[Fact, ...]:
    x = q.input(0).dims
    return (Fact(q.input(0).dtype, None if x is None or len(x) < 2 else x[:-2]),)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("IsInf", "IsNaN"), _flags),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), _constant_shape),
    **dict.fromkeys(
        ("RandomNormalLike", "RandomUniformLike", "EyeLike", "Bernoulli"), _random_like
    ),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "CastLike": _cast_like,
    "Compress": _compress,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize,
    "Det": _det,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Einsum": _einsum,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "LayerNormalization": _layer_norm,
    "Attention": _attention,
    "MatMul": _matmul,
    "MatMulInteger": lambda q: _matmul(q, dtype=_T.INT32),
    "NonMaxSuppression": _max_suppression,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "QLinearMatMul": lambda q: _matmul(q, (0, 3), q.input(7).dtype),
    "QuantizeLinear": _quantize,
    "Range": _range,
    "RoiAlign": _roi_align,
    "SpaceToDepth": _space_to_depth,
    "TopK": _top_k,
}
"""One function per operator."""
