"""Dimensions of what operators that move or view data return, and what they do to shape vectors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from passes.rewriting.facts import Dim, Dims, Fact, Size, static
from passes.rewriting.question import Question, Rule, axis_in, broadcast


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
    axis = None if x.dims is None else axis_in(q.integer("axis", 0), len(x.dims))
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
