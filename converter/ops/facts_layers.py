"""Rules for layers with weights, for pooling, normalization and quantization."""

from __future__ import annotations

from dataclasses import dataclass

from converter.ops.node_facts import (
    LARGEST,
    NodeFacts,
    Problems,
    Rule,
    Shape,
    broadcast,
    fits,
    normal_axis,
    spreads,
)


@dataclass(frozen=True)
class Window:
    """A kernel that slides over the input: which inputs it involves, and how it is laid out.

    Attributes:
        x: Position of the data.
        w: Position of the weights, None for pooling.
        bias: Position of the bias.
        transposed: Weights are (in, out / group, ...) and not (out, in / group, ...).
    """

    x: int = 0
    w: int | None = 1
    bias: int | None = 2
    transposed: bool = False

    def __call__(self, node: NodeFacts) -> Problems:
        """Compare ranks, channels, bias and the numbers per spatial axis."""
        x = node.shape(self.x)
        w = None if self.w is None else node.shape(self.w)
        if (x is not None and len(x) < 3) or (w is not None and len(w) < 3):
            yield "data and weights need at least three dimensions"
            return
        if x is not None and w is not None and len(x) != len(w):
            yield f"data has {len(x)} dimensions but the weights have {len(w)}"
            return
        rank = len(x or w or ()) - 2
        yield from _check_window(node, rank if rank > 0 else None)
        if w is not None:
            yield from self._channels(node, x, w)
            kernel = node.get("kernel_shape")
            if kernel and not fits(tuple(kernel), w[2:]):
                yield f"kernel_shape is {kernel} but the weights have {list(w[2:])}"

    def _channels(self, node: NodeFacts, x: Shape | None, w: Shape) -> Problems:
        group = node.get("group", 1)
        if not 1 <= group <= LARGEST:
            yield f"group is {group}, not a positive number"
            return
        divided, multiplied = w[0], w[1]
        if divided is not None and divided % group:
            yield f"group {group} does not divide the {divided} channels of the weights"
            return
        grouped = None if multiplied is None else multiplied * group
        channels_in, channels_out = (divided, grouped) if self.transposed else (grouped, divided)
        if x is not None and not fits((x[1],), (channels_in,)):
            yield f"data has {x[1]} channels but the weights with group {group} need {channels_in}"
        bias = None if self.bias is None else node.shape(self.bias)
        if bias is not None and not fits(bias, (channels_out,)):
            yield f"the bias has the shape {list(bias)} but there are {channels_out} channels"


_PER_AXIS = {"kernel_shape": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (2, 0)}


_PADDINGS = {b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b""}


def _check_window(node: NodeFacts, rank: int | None) -> Problems:
    """Check the lists with one or two numbers per spatial axis."""
    if node.get("auto_pad", b"NOTSET") not in _PADDINGS:
        yield "auto_pad is none of NOTSET, SAME_UPPER, SAME_LOWER, VALID"
    for name, (each, least) in _PER_AXIS.items():
        numbers = node.get(name) or []
        if any(not least <= number <= LARGEST for number in numbers):
            yield f"{name} holds a number that is not at least {least} and below 2^31"
        if numbers and rank is not None and len(numbers) != each * rank:
            yield f"{name} has {len(numbers)} numbers for {rank} spatial axes"
    for name in ("output_padding", "output_shape"):
        numbers = node.get(name) or []
        if any(not 0 <= number <= LARGEST for number in numbers):
            yield f"{name} holds a negative or huge number"


def positive_group(node: NodeFacts) -> Problems:
    """Groups must be positive also where no shape is known."""
    group = node.get("group", 1)
    if not 1 <= group <= LARGEST:
        yield f"group is {group}, not a positive number"


def quantized(node: NodeFacts) -> Problems:
    """Scale and zero point of QuantizeLinear and DequantizeLinear."""
    x, scale, zero = node.shape(0), node.shape(1), node.shape(2)
    if scale is not None and zero is not None and not _same_count(scale, zero):
        yield f"the scale has the shape {list(scale)} but the zero point {list(zero)}"
    block = node.get("block_size", 0)
    if block < 0:
        yield f"block_size is {block}"
    elif scale is not None and block:
        yield from _blocks(node, x, scale, block)
    elif scale is not None and len(scale) == 1 and scale[0] != 1 and x is not None:
        axis = normal_axis(node.get("axis", 1), len(x))
        if axis is None:
            yield f"axis {node.get('axis', 1)} is out of range for {len(x)} dimensions"
        elif not fits(scale, (x[axis],)):
            yield f"there are {scale[0]} scales for the {x[axis]} channels of axis {axis}"


def _blocks(node: NodeFacts, x: Shape | None, scale: Shape, block: int) -> Problems:
    if x is None:
        return
    axis = normal_axis(node.get("axis", 1), len(x))
    if axis is None:
        yield f"axis {node.get('axis', 1)} is out of range for {len(x)} dimensions"
        return
    wanted = tuple(
        -(-size // block) if i == axis and size is not None else size for i, size in enumerate(x)
    )
    if not fits(scale, wanted):
        yield f"the scale has the shape {list(scale)} where blocks of {block} need {list(wanted)}"


def _same_count(scale: Shape, zero: Shape) -> bool:
    """A single number may be a scalar here and a list of one there."""
    if len(scale) <= 1 and len(zero) <= 1:
        return fits(scale or (1,), zero or (1,))
    return fits(scale, zero)


def per_tensor(node: NodeFacts) -> Problems:
    """Before opset 13 there is one scale for the whole tensor."""
    for index, name in ((1, "scale"), (2, "zero point")):
        shape = node.shape(index)
        if shape is not None and any(size not in {1, None} for size in shape):
            yield f"the {name} has the shape {list(shape)} where one number is wanted"


def gemm(node: NodeFacts) -> Problems:
    """Two matrices whose inner sizes fit, and a bias that spreads to the product."""
    a, b, c = node.shape(0), node.shape(1), node.shape(2)
    for name, shape in (("A", a), ("B", b)):
        if shape is not None and len(shape) != 2:
            yield f"{name} has {len(shape)} dimensions, not 2"
            return
    rows, inner = _transposed(a, turned=bool(node.get("transA", 0)))
    depth, columns = _transposed(b, turned=bool(node.get("transB", 0)))
    if not fits((inner,), (depth,)):
        yield f"A has {inner} columns but B has {depth} rows"
    if c is not None and not spreads(c, (rows, columns)):
        yield f"C has the shape {list(c)}, which does not spread to {[rows, columns]}"


def _transposed(shape: Shape | None, *, turned: bool) -> Shape:
    if shape is None:
        return (None, None)
    return shape[::-1] if turned else shape


def matmul(node: NodeFacts) -> Problems:
    """Inner sizes and batches of the two inputs fit."""
    a, b = node.shape(0), node.shape(1)
    if a == () or b == ():
        yield "a scalar cannot be multiplied as a matrix"
    elif a is not None and b is not None:
        depth = b[-2] if len(b) > 1 else b[0]
        if not fits((a[-1],), (depth,)):
            yield f"the shapes {list(a)} and {list(b)} cannot be multiplied"
        elif broadcast([a[:-2], b[:-2]]) is None:
            yield f"the batches of the shapes {list(a)} and {list(b)} do not fit"


def vectors(*indices: int) -> Rule:
    """Inputs that hold one number per channel of input 0."""

    def rule(node: NodeFacts) -> Problems:
        x = node.shape(0)
        wanted = x[1] if x is not None and len(x) > 1 else None
        for index in indices:
            shape = node.shape(index)
            if shape is not None and not fits(shape, (wanted,)):
                yield f"input {index} has the shape {list(shape)}, not one number per channel"
            elif shape is not None and wanted is None:
                wanted = shape[0]

    return rule


def recurrent(gates: int) -> Rule:
    """Weights of RNN, GRU and LSTM: (directions, gates * hidden, ...)."""

    def rule(node: NodeFacts) -> Problems:
        hidden = node.get("hidden_size")
        name = node.get("direction", b"forward")
        if name not in {b"forward", b"reverse", b"bidirectional"}:
            yield "direction is none of forward, reverse, bidirectional"
            return
        directions = 2 if name == b"bidirectional" else 1
        r = node.shape(2)
        if hidden is None:
            hidden = r[2] if r is not None and len(r) == 3 else None
        elif not 1 <= hidden <= LARGEST:
            yield f"hidden_size is {hidden}"
            return
        x = node.shape(0)
        width = x[2] if x is not None and len(x) == 3 else None
        rows = None if hidden is None else gates * hidden
        wanted: tuple[tuple[int, str, Shape], ...] = (
            (0, "X", (None, None, None)),
            (1, "W", (directions, rows, width)),
            (2, "R", (directions, rows, hidden)),
            (3, "B", (directions, None if rows is None else 2 * rows)),
        )
        for index, title, shape in wanted:
            found = node.shape(index)
            if found is not None and not fits(found, shape):
                yield f"{title} has the shape {list(found)} where {list(shape)} is wanted"

    return rule


def normalized(node: NodeFacts) -> Problems:
    """Scale and bias of LayerNormalization spread over the normalized axes."""
    x, axis = node.shape(0), node.get("axis", -1)
    if x is None:
        return
    start = normal_axis(axis, len(x))
    if start is None:
        yield f"axis {axis} is out of range for {len(x)} dimensions"
        return
    for index in (1, 2):
        shape = node.shape(index)
        if shape is not None and not spreads(shape, x):
            yield f"input {index} has the shape {list(shape)}, which does not spread to {list(x)}"
