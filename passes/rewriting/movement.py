"""Dimensions of what operators that move or view data return, and what they do to shape vectors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from passes.rewriting.facts import Dim, Dims, Fact, Size, static
from passes.rewriting.question import Question, Rule, axis_in, broadcast
from passes.rewriting.symbols import add, divide, multiply, product, unknown, vanishes_with

_LONGEST = 64
_FOLLOWED = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


def _transpose(q: Question) -> tuple[Fact, ...]:
    x = q.input(0).dims
    if x is None:
        perm = q.integers("perm")
        return (Fact(q.input(0).dtype, None if perm is None else tuple(Dim() for _ in perm)),)
    perm = q.integers("perm") or tuple(range(len(x)))[::-1]
    ok = sorted(perm) == list(range(len(x)))
    content = q.input(0).content if len(x) <= 1 else None
    return (Fact(q.input(0).dtype, tuple(x[p] for p in perm) if ok else None, content),)


def _shape(q: Question) -> tuple[Fact, ...]:
    x = q.input(0).dims
    if x is None:
        return (Fact(ir.DataType.INT64, (Dim(),)),)
    start, end = q.integer("start", 0), q.integer("end")
    # Numpy clamps both ends exactly as the specification says.
    content = x[start:] if end is None else x[start:end]
    return (Fact(ir.DataType.INT64, (len(content),), content),)


def _size(q: Question) -> tuple[Fact, ...]:
    dims = q.input(0).dims
    return (Fact(ir.DataType.INT64, (), None if dims is None else (product(dims),)),)


def _gather(q: Question) -> tuple[Fact, ...]:
    x, indices = q.input(0), q.input(1)
    if x.dims is None or indices.dims is None:
        return (Fact(x.dtype),)
    axis = axis_in(q.integer("axis", 0), len(x.dims))
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
    axis = axis_in(q.integer("axis", 1 if q.version < 4 else None), len(shapes[0]))
    if axis is None:
        return (Fact(dtype),)
    total: Size = 0
    for shape in shapes:
        total = add(total, shape[axis])
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
    axis = None if x.dims is None else axis_in(q.integer("axis", 0), len(x.dims))
    if x.dims is None or axis is None:
        return tuple(Fact(x.dtype) for _ in range(count))
    given = q.vector("split", 1, 13)
    sizes: Sequence[Size] = [Dim() for _ in range(count)]
    if given is not None and len(given) == count:
        sizes = given
    if given is None and not q.has(1):
        sizes = _equal_parts(x.dims[axis], count)
    return tuple(Fact(x.dtype, (*x.dims[:axis], s, *x.dims[axis + 1 :])) for s in sizes)


def _equal_parts(size: Size, count: int) -> Sequence[Size]:
    """Return the sizes of equal parts; a rest makes the last one smaller."""
    part = divide(size, count)
    if part is not None:
        return [part] * count
    if isinstance(size, int):
        most = -(-size // count)
        return [most] * (count - 1) + [size - most * (count - 1)]
    return [unknown("part", size, count, int(last)) for last in range(count)]


def _reshape(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    target = q.vector("shape", 1, 5)
    if target is None:
        rank = q.input(1).static
        dims = None if rank is None or len(rank) != 1 else tuple(Dim() for _ in range(rank[0]))
        return (Fact(x.dtype, dims),)
    after = reshaped(x.dims, target, zero=bool(q.integer("allowzero", 0)))
    return (Fact(x.dtype, after, x.content if len(after) <= 1 else None),)


def reshaped(dims: Dims | None, target: Dims, *, zero: bool) -> Dims:
    """Return the shape after Reshape; ``zero``: a 0 in the target means a size of 0."""
    out: list[Size] = []
    for index, size in enumerate(target):
        if size == 0 and not zero:
            out.append(dims[index] if dims is not None and index < len(dims) else Dim())
        elif isinstance(size, Dim):
            out.append(_asked(size, dims, index, zero=zero))
        else:
            out.append(size)
    if -1 in target and dims is not None:
        out[target.index(-1)] = _remainder(dims, [s for s in out if s != -1])
    return tuple(Dim() if size == -1 else size for size in out)


def _asked(size: Dim, dims: Dims | None, index: int, *, zero: bool) -> Size:
    """Return the size that an unknown number in a target stands for.

    It may turn out to be 0, which means the size of that axis of the input.
    """
    if not size.natural:
        return Dim()
    if zero or (dims is not None and index >= len(dims)):
        return size
    if dims is None:
        return Dim()
    return size if vanishes_with(size, dims[index]) else unknown("or", size, dims[index])


def _remainder(whole: Dims, parts: list[Size]) -> Size:
    """Return the inferred size; the runtime refuses to infer one beside a size of 0."""
    total, known = product(whole), product(parts)
    exact = divide(total, known)
    if exact is None:
        return Dim() if known == 0 else unknown("rest", total, known)
    return exact


def _flatten(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    axis = q.integer("axis", 1)
    if x.dims is None or axis is None or not -len(x.dims) <= axis <= len(x.dims):
        return (Fact(x.dtype, (Dim(), Dim())),)
    axis = axis + len(x.dims) if axis < 0 else axis
    return (Fact(x.dtype, (product(x.dims[:axis]), product(x.dims[axis:]))),)


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
    x, target = q.input(0), _sizes(q.input(1))
    dims = broadcast(x.dims, target)
    content = None
    if x.content is not None and len(x.content) == 1 and dims is not None:
        content = _repeated(x.content[0], dims)
    return (Fact(x.dtype, dims, content),)


def _repeated(size: Size, dims: Dims) -> Dims | None:
    """Return the elements of a short vector of equal numbers."""
    known = static(dims)
    if known is None or len(known) > 1 or prod(known) > _LONGEST:
        return None
    return (size,) * prod(known)


def _constant_of_shape(q: Question) -> tuple[Fact, ...]:
    attribute = q.node.attributes.get("value")
    if attribute is None:
        return (Fact(ir.DataType.FLOAT, _sizes(q.input(0))),)
    tensor, dims = attribute.as_tensor(), _sizes(q.input(0))
    content = None
    if dims is not None and tensor.dtype in _FOLLOWED and tensor.size == 1:
        content = _repeated(int(tensor.numpy().reshape(-1)[0]), dims)
    return (Fact(tensor.dtype, dims, content),)


def _tile(q: Question) -> tuple[Fact, ...]:
    x, repeats = q.input(0), _sizes(q.input(1))
    if x.dims is None or repeats is None or len(repeats) != len(x.dims):
        return (Fact(x.dtype),)
    pairs = zip(x.dims, repeats, strict=True)
    dims = tuple(multiply(size, repeat) for size, repeat in pairs)
    return (Fact(x.dtype, dims),)


def _pad(q: Question) -> tuple[Fact, ...]:
    x = q.input(0)
    pads = static(q.vector("pads", 1, 11))
    if x.dims is None or pads is None or len(pads) != 2 * len(x.dims) or q.has(3):
        return (Fact(x.dtype),)
    rank = len(x.dims)
    added = [pads[i] + pads[i + rank] for i in range(rank)]
    dims = tuple(
        add(size, extra) if extra >= 0 or isinstance(size, int) else unknown("cut", size, extra)
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
            dims[axis] = unknown("slice", size, start, end, step)
    content: Dims | None = None
    if x.content is not None and len(x.dims) == 1 and ranges.get(0, (0, 0, 1))[2] > 0:
        start, end, step = ranges.get(0, (0, len(x.content), 1))
        content = x.content[start:end:step]
    return (Fact(x.dtype, tuple(dims), content),)


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
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
}
"""One function per operator."""
