"""Steps that only move elements, reduce them, or compute with shapes."""

from __future__ import annotations

import numpy as np
from properties.random_models.builder import (
    F32,
    I64,
    Builder,
    Dims,
    Tensor,
    broadcast,
    is_static,
)

_MAX, _MIN = (1 << 63) - 1, -(1 << 63)


def transpose(b: Builder) -> None:
    """One to three in a row; often the second undoes the first."""
    x = b.pick(lambda v: v.rank >= 1 or b.chance(0.2))
    if x is None:
        return
    perm = list(range(x.rank))
    b.random.shuffle(perm)
    for _ in range(b.choose((1, 2, 3))):
        dims = tuple(x.dims[p] for p in perm)
        default = (perm == list(range(x.rank))[::-1] and b.chance(0.5)) or not perm
        x = b.node("Transpose", [x], (x.dtype, dims), **({} if default else {"perm": perm}))
        if b.chance(0.3) and x.dtype == F32:
            x = b.node(b.choose(("Relu", "Tanh", "Identity")), [x], x)
        if b.chance(0.6):
            perm = [perm.index(i) for i in range(len(perm))]
        else:
            b.random.shuffle(perm)


def reshape(b: Builder) -> None:
    x = b.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    symbols = [d for d in x.dims if isinstance(d, str)]
    known = int(np.prod([d for d in x.dims if isinstance(d, int)], dtype=np.int64))
    if len(symbols) > 1 or known == 0:
        _same_rank(b, x)
        return
    split = b.choose([d for d in (1, 2, 3, 4, 6) if known % d == 0])
    target: list[int] = [split, known // split]
    dims: Dims = tuple(target)
    if symbols and x.dims[0] == symbols[0] and b.chance(0.5):
        target, dims = [0, *target], (symbols[0], *dims)
    elif symbols:
        target, dims = [-1, *target], (symbols[0], *dims)
    elif b.chance(0.5):
        target[0] = -1
    x = b.node("Reshape", [x, b.ints(*target)], (x.dtype, dims))
    if b.chance(0.4):
        _same_rank(b, x)


def _same_rank(b: Builder, x: Tensor) -> None:
    """Reshape to its own or to another value's computed shape."""
    shape = b.node("Shape", [x], (I64, (x.rank,)))
    if b.chance(0.5):
        shape = b.node("Identity", [shape], shape)
    b.node(b.choose(("Reshape", "Expand")), [x, shape], x)


def flatten(b: Builder) -> None:
    x = b.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    axis = b.random.randrange(x.rank + 1)
    parts: list[int | str] = []
    for part in (x.dims[:axis], x.dims[axis:]):
        known = is_static(part)
        whole = [d for d in part if d != 1]
        single: int | str = whole[0] if len(whole) == 1 else b.symbol()
        parts.append(int(np.prod(part, dtype=np.int64)) if known else single)
    negative = axis - x.rank if axis < x.rank and b.opset >= 11 and b.chance(0.3) else axis
    b.node("Flatten", [x], (x.dtype, tuple(parts)), axis=negative)


def squeeze(b: Builder) -> None:
    """Unsqueeze, often squeezed again, by the same or by other axes, or by none."""
    x = b.pick(lambda v: v.rank <= 3)
    if x is None:
        return
    axis = b.random.randrange(x.rank + 1)
    dims = (*x.dims[:axis], 1, *x.dims[axis:])
    negative = axis - x.rank - 1 if b.chance(0.3) else axis
    y = b.with_axes("Unsqueeze", x, [negative], dims)
    if b.chance(0.6):
        ones = [i for i, d in enumerate(y.dims) if d == 1]
        chosen = b.choose(ones)
        again = tuple(d for i, d in enumerate(y.dims) if i != chosen)
        b.with_axes("Squeeze", y, [chosen if b.chance(0.6) else chosen - y.rank], again)
    elif is_static(y.dims) and b.chance(0.5):
        b.node("Squeeze", [y], (y.dtype, tuple(d for d in y.dims if d != 1)))


def slices(b: Builder) -> None:
    x = b.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    for _ in range(b.choose((1, 2))):
        axis = b.random.randrange(x.rank)
        size = x.dims[axis]
        start, end, step = b.choose(
            (
                (0, _MAX, 1), (1, _MAX, 1), (0, -1, 1), (-1, _MIN, -1), (0, 2, 1), (-2, _MAX, 1),
                (_MAX, _MIN, -1), (0, _MAX, 2), (_MIN, _MAX, 1), (1, 1, 1), (0, 1, 1), (5, 1, 1),
            )
        )  # fmt: skip
        after: int | str = (
            len(range(size)[slice(start, end, step)]) if isinstance(size, int) else ""
        )
        if isinstance(size, str):
            after = size if (start, end, step) in ((0, _MAX, 1), (_MIN, _MAX, 1)) else b.symbol()
        dims = (*x.dims[:axis], after, *x.dims[axis + 1 :])
        shown = axis - x.rank if b.chance(0.3) else axis
        inputs = [x, b.ints(start), b.ints(end), b.ints(shown)]
        if step != 1 or b.chance(0.5):
            inputs.append(b.ints(step))
        elif axis == 0 and b.chance(0.3):
            inputs.pop()
        x = b.node("Slice", inputs, (x.dtype, dims))


def concat(b: Builder) -> None:
    x = b.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    axis = b.random.randrange(x.rank)

    def fits(v: Tensor) -> bool:
        return (
            v.dtype == x.dtype
            and v.rank == x.rank
            and v.dims[:axis] == x.dims[:axis]
            and (v.dims[axis + 1 :] == x.dims[axis + 1 :])
        )

    parts = [x]
    for _ in range(b.choose((0, 1, 1, 2))):
        other = b.pick(fits)
        assert other is not None
        parts.append(other)
    sizes = [p.dims[axis] for p in parts]
    whole: int | str = sizes[0] if len(parts) == 1 else b.symbol()
    if is_static(tuple(sizes)):
        whole = sum(int(s) for s in sizes)
    dims = (*x.dims[:axis], whole, *x.dims[axis + 1 :])
    shown = axis - x.rank if b.chance(0.3) else axis
    y = b.node("Concat", parts, (x.dtype, dims), axis=shown)
    if b.chance(0.5) and is_static(tuple(sizes)) and b.opset >= 13 and len(parts) > 1:
        outs = [(p.dtype, p.dims) for p in parts]
        b.many("Split", [y, b.ints(*[int(s) for s in sizes])], outs, axis=axis)


def gather(b: Builder) -> None:
    x = b.pick(lambda v: v.rank >= 1 and v.dims[0] != 0)
    if x is None:
        return
    axis = b.random.randrange(x.rank)
    size = x.dims[axis]
    if not isinstance(size, int) or size == 0:
        return
    scalar = b.chance(0.4)
    indices = b.random.randrange(-size, size) if scalar else [b.random.randrange(-size, size)] * 2
    middle = () if scalar else (2,)
    dims = (*x.dims[:axis], *middle, *x.dims[axis + 1 :])
    b.node("Gather", [x, b.constant(indices, np.int64)], (x.dtype, dims), axis=axis)


def pad(b: Builder) -> None:
    x = b.floats(1, 4)
    if x is None:
        return
    pads = [b.choose((0, 0, 0, 1, -1)) if isinstance(d, int) and d > 2 else 0 for d in x.dims * 2]
    dims = tuple(
        d + pads[i] + pads[i + x.rank] if isinstance(d, int) else d for i, d in enumerate(x.dims)
    )
    inputs = [x, b.ints(*pads)]
    if b.chance(0.5):
        inputs.append(b.constant(b.choose((0.0, -0.0, 1.5))))
    y = b.node("Pad", inputs, (F32, dims))
    if b.chance(0.3):
        b.node("Pad", [y, b.ints(*([0] * 2 * x.rank))], y, mode=b.choose(("constant", "reflect")))


def tile(b: Builder) -> None:
    x = b.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    repeats = [b.choose((1, 1, 1, 2)) if isinstance(d, int) else 1 for d in x.dims]
    dims = tuple(d * r if isinstance(d, int) else d for d, r in zip(x.dims, repeats, strict=True))
    if b.chance(0.5):
        b.node("Tile", [x, b.ints(*repeats)], (x.dtype, dims))
        return
    target = [d if isinstance(d, int) else 1 for d in x.dims]
    wider = [b.choose((1, 2)), *target] if b.chance(0.4) else target
    out = broadcast(x.dims, tuple(wider))
    assert out is not None
    b.node("Expand", [x, b.ints(*wider)], (x.dtype, out))


def reduce(b: Builder) -> None:
    x = b.floats(1)
    if x is None:
        return
    op = b.choose(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"))
    axes = sorted({b.random.randrange(x.rank) for _ in range(b.choose((1, 1, 2)))})
    keep = b.chance(0.5)
    dims = tuple(1 if i in axes else d for i, d in enumerate(x.dims) if keep or i not in axes)
    shown = [a - x.rank if b.chance(0.3) else a for a in axes]
    if b.chance(0.15):
        everything = (1,) * x.rank if keep else ()
        b.node(op, [x], (F32, everything), keepdims=int(keep))
    elif b.chance(0.1) and b.opset >= 18:
        b.node(op, [x], x, keepdims=int(keep), noop_with_empty_axes=1)
    else:
        b.with_axes(op, x, shown, dims, keepdims=int(keep))


def trivial(b: Builder) -> None:
    """Pieces that are whole, parts that are empty, and two steps where one would do."""
    x = b.floats(1, 4)
    if x is None or not isinstance(x.dims[0], int) or not x.dims[0]:
        return
    size, kind = x.dims[0], b.random.randrange(7)
    rest = x.dims[1:]
    if kind == 0:
        every = list(range(size))
        x = b.node("Gather", [x, b.ints(*every)], x)
        b.node("Gather", [x, b.ints(0, -1)], (F32, (2, *rest)))
    elif kind == 1 and is_static(rest):
        empty = b.constant(np.zeros((0, *rest)))
        b.node("Concat", [empty, x] if b.chance(0.5) else [x, empty, x], _longer(b, x), axis=0)
    elif kind == 2 and b.opset >= 13:
        b.many("Split", [x, b.ints(size)], [(F32, x.dims)], axis=0)
        if size > 1:
            forms = [(F32, (1, *rest)), (F32, (size - 1, *rest))]
            parts = b.many("Split", [x, b.ints(1, size - 1)], forms)
            b.node("Concat", parts, x, axis=0)
    elif kind == 3:
        y = b.node("Gather", [x, b.ints(0, -1)], (F32, (2, *rest)))
        b.node("Gather", [y, b.constant(b.choose((0, 1, -1)), np.int64)], (F32, rest))
    elif kind == 4:
        zeros = [0] * (2 * x.rank)
        pads = [1, *zeros[1:]]
        value = [b.constant(b.choose((0.0, 0.0, 2.0)))] if b.chance(0.7) else []
        y = b.node("Pad", [x, b.ints(*pads), *value], (F32, (size + 1, *rest)))
        b.node(
            "Pad",
            [y, b.ints(*zeros[: x.rank], 1, *zeros[x.rank + 1 :]), *value],
            (F32, (size + 2, *rest)),
        )
    elif kind == 5:
        y = b.with_axes("Unsqueeze", x, [0], (1, *x.dims))
        op = b.choose(("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL1", "ReduceLogSumExp"))
        b.with_axes(op, y, [0], x.dims, keepdims=0)
    else:
        y = b.node("Concat", [x, x], (F32, (2 * size, *rest)), axis=0)
        b.node("Concat", [y, x], (F32, (3 * size, *rest)), axis=0)


def _longer(b: Builder, x: Tensor) -> Tensor | tuple[int, Dims]:
    return (F32, (b.symbol(), *x.dims[1:]))


def blocks(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype == F32 and v.rank == 4 and isinstance(v.dims[1], int))
    if x is None or int(x.dims[1]) % 4 or not is_static(x.dims[2:]):
        return
    n, c, h, w = x.dims
    y = b.node(
        "DepthToSpace",
        [x],
        (F32, (n, int(c) // 4, int(h) * 2, int(w) * 2)),
        blocksize=2,
        mode=b.choose(("DCR", "CRD")),
    )
    b.node("SpaceToDepth", [y], x, blocksize=2)


def top(b: Builder) -> None:
    x = b.floats(1)
    if x is None or not isinstance(x.dims[-1], int) or x.dims[-1] < 1:
        return
    if b.chance(0.5):
        b.node("ArgMax", [x], (I64, (*x.dims[:-1], 1)), axis=-1)
        return
    dims = (*x.dims[:-1], 1)
    b.many("TopK", [x, b.ints(1)], [(F32, dims), (I64, dims)], axis=-1)


def shape_chain(b: Builder) -> None:
    """Shape, pieces of it, arithmetic, and together again as the target of a view."""
    x = b.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    shape = b.node("Shape", [x], (I64, (x.rank,)))
    pieces: list[Tensor | str] = []
    for axis in range(x.rank):
        kind = b.random.random()
        if kind < 0.35:
            size = b.node("Gather", [shape, b.constant(axis, np.int64)], (I64, ()))
            pieces.append(b.with_axes("Unsqueeze", size, [0], (1,)))
        elif kind < 0.6:
            ends = [b.ints(axis), b.ints(axis + 1), b.ints(0)]
            pieces.append(b.node("Slice", [shape, *ends], (I64, (1,))))
        elif kind < 0.75 and b.opset >= 15:
            pieces.append(b.node("Shape", [x], (I64, (1,)), start=axis, end=axis + 1))
        elif isinstance(x.dims[axis], int):
            pieces.append(b.ints(int(x.dims[axis])))
        else:
            pieces.append(b.node("Gather", [shape, b.ints(axis - x.rank)], (I64, (1,))))
    _use_of_sizes(b, x, pieces)


def _use_of_sizes(b: Builder, x: Tensor, pieces: list[Tensor | str]) -> None:
    kind = b.random.random()
    if kind < 0.4:
        target = b.node("Concat", pieces, (I64, (x.rank,)), axis=0)
        b.node(b.choose(("Reshape", "Expand")), [x, target], x)
    elif kind < 0.7:
        product = pieces[0]
        for piece in pieces[1:-1]:
            product = b.node("Mul", [product, piece], (I64, (1,)))
        target = b.node("Concat", [product, pieces[-1]], (I64, (2,)), axis=0)
        first: int | str = x.dims[0] if x.rank == 2 else b.symbol()
        if is_static(x.dims[:-1]):
            first = int(np.prod([int(d) for d in x.dims[:-1]]))
        b.node("Reshape", [x, target], (x.dtype, (first, x.dims[-1])))
    elif kind < 0.85:
        target = b.node("Concat", pieces, (I64, (x.rank,)), axis=0)
        zeros = b.node("ConstantOfShape", [target], (F32, x.dims))
        if x.dtype == F32:
            b.node(b.choose(("Add", "Sub", "Mul")), [x, zeros], x)
    else:
        size = b.node("Size", [x], (I64, ()))
        half = b.node("Div", [size, b.constant(2, np.int64)], (I64, ()))
        b.node("Cast", [half], (F32, ()), to=F32)


STEPS = (
    (transpose, 6),
    (reshape, 5),
    (flatten, 2),
    (squeeze, 4),
    (slices, 4),
    (concat, 4),
    (gather, 3),
    (pad, 2),
    (tile, 2),
    (reduce, 4),
    (top, 1),
    (trivial, 5),
    (blocks, 2),
    (shape_chain, 5),
)
