"""Facts about operators that the schemas of ONNX do not state and that passes rely on.

A row looks at one node, at what is known of its inputs without running anything, and says what is
wrong. What is not known is never held against a node. Operators without a row are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from converter.ops.table import NEWEST, Entry, Table

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int | None, ...]
Problems = Iterator[str]
_LARGEST = (1 << 31) - 1
_SMALL = 1 << 12


@dataclass(frozen=True)
class Known:
    """What is known of a value before anything runs.

    Attributes:
        element: Element type (``TensorProto.DataType``), or None.
        shape: Dimensions, None for each unknown one; or None.
        tensor: The value itself, where it is a constant.
    """

    element: int | None = None
    shape: Shape | None = None
    tensor: onnx.TensorProto | None = None


@dataclass(frozen=True)
class NodeFacts:
    """A node and what is known of its inputs.

    Attributes:
        inputs: One per input; None for an input that is left out.
        attributes: Values by name; texts as bytes.
        outputs: Number of outputs.
        opset: Version of the operator's set.
    """

    inputs: Sequence[Known | None]
    attributes: Mapping[str, Any]
    outputs: int
    opset: int

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an input as far as it is known."""
        known = self.inputs[index] if index < len(self.inputs) else None
        return None if known is None else known.shape

    def array(self, index: int) -> np.ndarray[Any, Any] | None:
        """Return a small constant input, or None."""
        known = self.inputs[index] if index < len(self.inputs) else None
        tensor = None if known is None else known.tensor
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return onnx.numpy_helper.to_array(tensor) if math.prod(tensor.dims) <= _SMALL else None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)


Rule = Callable[[NodeFacts], Problems]


@dataclass(frozen=True)
class _Window:
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
            if kernel and not _fits(tuple(kernel), w[2:]):
                yield f"kernel_shape is {kernel} but the weights have {list(w[2:])}"

    def _channels(self, node: NodeFacts, x: Shape | None, w: Shape) -> Problems:
        group = node.get("group", 1)
        if not 1 <= group <= _LARGEST:
            yield f"group is {group}, not a positive number"
            return
        divided, multiplied = w[0], w[1]
        if divided is not None and divided % group:
            yield f"group {group} does not divide the {divided} channels of the weights"
            return
        grouped = None if multiplied is None else multiplied * group
        channels_in, channels_out = (divided, grouped) if self.transposed else (grouped, divided)
        if x is not None and not _fits((x[1],), (channels_in,)):
            yield f"data has {x[1]} channels but the weights with group {group} need {channels_in}"
        bias = None if self.bias is None else node.shape(self.bias)
        if bias is not None and not _fits(bias, (channels_out,)):
            yield f"the bias has the shape {list(bias)} but there are {channels_out} channels"


_PER_AXIS = {"kernel_shape": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (2, 0)}
_PADDINGS = {b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b""}


def _check_window(node: NodeFacts, rank: int | None) -> Problems:
    """Check the lists with one or two numbers per spatial axis."""
    if node.get("auto_pad", b"NOTSET") not in _PADDINGS:
        yield "auto_pad is none of NOTSET, SAME_UPPER, SAME_LOWER, VALID"
    for name, (each, least) in _PER_AXIS.items():
        numbers = node.get(name) or []
        if any(not least <= number <= _LARGEST for number in numbers):
            yield f"{name} holds a number that is not at least {least} and below 2^31"
        if numbers and rank is not None and len(numbers) != each * rank:
            yield f"{name} has {len(numbers)} numbers for {rank} spatial axes"
    for name in ("output_padding", "output_shape"):
        numbers = node.get(name) or []
        if any(not 0 <= number <= _LARGEST for number in numbers):
            yield f"{name} holds a negative or huge number"


def _group(node: NodeFacts) -> Problems:
    """Groups must be positive also where no shape is known."""
    group = node.get("group", 1)
    if not 1 <= group <= _LARGEST:
        yield f"group is {group}, not a positive number"


def _quantized(node: NodeFacts) -> Problems:
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
        axis = _axis(node.get("axis", 1), len(x))
        if axis is None:
            yield f"axis {node.get('axis', 1)} is out of range for {len(x)} dimensions"
        elif not _fits(scale, (x[axis],)):
            yield f"there are {scale[0]} scales for the {x[axis]} channels of axis {axis}"


def _blocks(node: NodeFacts, x: Shape | None, scale: Shape, block: int) -> Problems:
    if x is None:
        return
    axis = _axis(node.get("axis", 1), len(x))
    if axis is None:
        yield f"axis {node.get('axis', 1)} is out of range for {len(x)} dimensions"
        return
    wanted = tuple(
        -(-size // block) if i == axis and size is not None else size for i, size in enumerate(x)
    )
    if not _fits(scale, wanted):
        yield f"the scale has the shape {list(scale)} where blocks of {block} need {list(wanted)}"


def _same_count(scale: Shape, zero: Shape) -> bool:
    """A single number may be a scalar here and a list of one there."""
    if len(scale) <= 1 and len(zero) <= 1:
        return _fits(scale or (1,), zero or (1,))
    return _fits(scale, zero)


def _per_tensor(node: NodeFacts) -> Problems:
    """Before opset 13 there is one scale for the whole tensor."""
    for index, name in ((1, "scale"), (2, "zero point")):
        shape = node.shape(index)
        if shape is not None and any(size not in {1, None} for size in shape):
            yield f"the {name} has the shape {list(shape)} where one number is wanted"


def _gemm(node: NodeFacts) -> Problems:
    a, b, c = node.shape(0), node.shape(1), node.shape(2)
    for name, shape in (("A", a), ("B", b)):
        if shape is not None and len(shape) != 2:
            yield f"{name} has {len(shape)} dimensions, not 2"
            return
    rows, inner = _transposed(a, turned=bool(node.get("transA", 0)))
    depth, columns = _transposed(b, turned=bool(node.get("transB", 0)))
    if not _fits((inner,), (depth,)):
        yield f"A has {inner} columns but B has {depth} rows"
    if c is not None and not _spreads(c, (rows, columns)):
        yield f"C has the shape {list(c)}, which does not spread to {[rows, columns]}"


def _transposed(shape: Shape | None, *, turned: bool) -> Shape:
    if shape is None:
        return (None, None)
    return shape[::-1] if turned else shape


def _matmul(node: NodeFacts) -> Problems:
    a, b = node.shape(0), node.shape(1)
    if a == () or b == ():
        yield "a scalar cannot be multiplied as a matrix"
    elif a is not None and b is not None:
        depth = b[-2] if len(b) > 1 else b[0]
        if not _fits((a[-1],), (depth,)):
            yield f"the shapes {list(a)} and {list(b)} cannot be multiplied"
        elif _broadcast([a[:-2], b[:-2]]) is None:
            yield f"the batches of the shapes {list(a)} and {list(b)} do not fit"


def _vectors(*indices: int) -> Rule:
    """Inputs that hold one number per channel of input 0."""

    def rule(node: NodeFacts) -> Problems:
        x = node.shape(0)
        wanted = x[1] if x is not None and len(x) > 1 else None
        for index in indices:
            shape = node.shape(index)
            if shape is not None and not _fits(shape, (wanted,)):
                yield f"input {index} has the shape {list(shape)}, not one number per channel"
            elif shape is not None and wanted is None:
                wanted = shape[0]

    return rule


def _transpose(node: NodeFacts) -> Problems:
    perm, x = node.get("perm"), node.shape(0)
    if perm is None:
        return
    if sorted(perm) != list(range(len(perm))):
        yield f"perm {perm} is no permutation"
    elif x is not None and len(perm) != len(x):
        yield f"perm has {len(perm)} numbers for {len(x)} dimensions"


def _reshape(node: NodeFacts) -> Problems:
    shape, x = node.array(1), node.shape(0)
    target = node.get("shape") if shape is None else shape.reshape(-1).tolist()
    if target is None:
        return
    if any(size < -1 for size in target) or target.count(-1) > 1:
        yield f"the shape {target} has negative numbers other than one -1"
        return
    if node.get("allowzero", 0):
        if 0 in target and -1 in target:
            yield f"the shape {target} has both 0 and -1"
        return
    if x is None or None in x:
        return
    if any(size == 0 and i >= len(x) for i, size in enumerate(target)):
        yield f"the shape {target} copies a dimension that the data does not have"
        return
    sizes = [x[i] if size == 0 else size for i, size in enumerate(target)]
    found = math.prod(size for size in x if size is not None)
    fixed = math.prod(size for size in sizes if size is not None and size != -1)
    if found != fixed and (-1 not in sizes or (fixed and found % fixed)):
        yield f"{found} elements cannot take the shape {target}"


def _concat(node: NodeFacts) -> Problems:
    shapes = [node.shape(i) for i in range(len(node.inputs))]
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return
    rank = len(known[0])
    axis = _axis(node.get("axis", 1), rank)
    if any(len(shape) != rank for shape in known):
        yield "the inputs have different numbers of dimensions"
    elif axis is None:
        yield f"axis {node.get('axis')} is out of range for {rank} dimensions"
    elif any(not _fits(_without(shape, axis), _without(known[0], axis)) for shape in known):
        yield f"the inputs differ in other dimensions than axis {axis}"


def _split(node: NodeFacts) -> Problems:
    x, sizes = node.shape(0), node.array(1)
    given = node.get("split") if sizes is None else sizes.reshape(-1).tolist()
    count = node.get("num_outputs")
    if count is not None and (count < 1 or count != node.outputs):
        yield f"num_outputs is {count} but there are {node.outputs} outputs"
    if given and any(size < 0 for size in given):
        yield f"the sizes {given} are negative"
        return
    if x is None:
        return
    axis = _axis(node.get("axis", 0), len(x))
    if axis is None:
        yield f"axis {node.get('axis', 0)} is out of range for {len(x)} dimensions"
    elif given and x[axis] is not None and sum(given) != x[axis]:
        yield f"the sizes {given} do not add up to {x[axis]}"


def _axis_in_range(default: int, *, past: int = 0) -> Rule:
    """Attribute ``axis`` must be an axis of input 0 (``past`` = 1: or the end of them)."""

    def rule(node: NodeFacts) -> Problems:
        x = node.shape(0)
        axis = node.get("axis", default)
        # many kernels take a scalar as a list of one
        if x is not None and _axis(axis, max(len(x), 1) + past) is None and axis != -len(x) - past:
            yield f"axis {axis} is out of range for {len(x)} dimensions"

    return rule


def _axes(index: int | None) -> Rule:
    """Attribute ``axes``, or the constant input at ``index``: axes of input 0, each once."""

    def rule(node: NodeFacts) -> Problems:
        x, axes = node.shape(0), node.get("axes")
        array = None if index is None else node.array(index)
        if array is not None:
            axes = array.reshape(-1).tolist()
        if axes is None or x is None:
            return
        found = [_axis(axis, len(x)) for axis in axes]
        if None in found or len(set(found)) < len(found):
            yield f"the axes {axes} do not fit {len(x)} dimensions"

    return rule


def _unsqueeze(node: NodeFacts) -> Problems:
    x, axes, array = node.shape(0), node.get("axes"), node.array(1)
    axes = axes if array is None else array.reshape(-1).tolist()
    if axes is None or x is None:
        return
    found = [_axis(axis, len(x) + len(axes)) for axis in axes]
    if None in found or len(set(found)) < len(found):
        yield f"the axes {axes} do not fit {len(x)} dimensions"


def _slice(node: NodeFacts) -> Problems:
    arrays = [node.array(index) for index in range(1, len(node.inputs))]
    sizes = {array.size for array in arrays if array is not None}
    if len(sizes) > 1:
        yield "starts, ends, axes and steps have different lengths"
    steps = node.array(4)
    if steps is not None and (steps == 0).any():
        yield "a step is 0"


def _pad(node: NodeFacts) -> Problems:
    x, pads, axes = node.shape(0), node.array(1), node.shape(3)
    if pads is None or x is None:
        return
    count = len(x) if axes is None else axes[0] if axes else None
    if count is not None and pads.size != 2 * count:
        yield f"there are {pads.size} pads for {count} axes"


def _recurrent(gates: int) -> Rule:
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
        elif not 1 <= hidden <= _LARGEST:
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
            if found is not None and not _fits(found, shape):
                yield f"{title} has the shape {list(found)} where {list(shape)} is wanted"

    return rule


def _block(node: NodeFacts) -> Problems:
    size = node.get("blocksize", 0)
    if not 1 <= size <= _LARGEST:
        yield f"blocksize is {size}"


def _depth_to_space(node: NodeFacts) -> Problems:
    yield from _block(node)
    x, size = node.shape(0), node.get("blocksize", 0)
    if x is not None and len(x) == 4 and size > 0 and x[1] is not None and x[1] % size**2:
        yield f"{x[1]} channels cannot be cut into blocks of {size}"


def _elementwise(node: NodeFacts) -> Problems:
    shapes = [node.shape(i) for i in range(len(node.inputs))]
    if _broadcast([shape for shape in shapes if shape is not None]) is None:
        text = ", ".join(str(list(shape)) for shape in shapes if shape is not None)
        yield f"the shapes {text} do not fit together"


def _constant_of_shape(node: NodeFacts) -> Problems:
    shape, value = node.array(0), node.get("value")
    if shape is not None and (shape < 0).any():
        yield f"the shape {shape.reshape(-1).tolist()} is negative"
    if value is not None and math.prod(value.dims) != 1:
        yield "the value is not one number"


def _expand(node: NodeFacts) -> Problems:
    shape = node.array(1)
    if shape is not None and (shape < 0).any():
        yield f"the shape {shape.reshape(-1).tolist()} is negative"


def _tile(node: NodeFacts) -> Problems:
    x, repeats = node.shape(0), node.array(1)
    if repeats is not None and (repeats < 0).any():
        yield "a number of repeats is negative"
    elif repeats is not None and x is not None and repeats.size != len(x):
        yield f"there are {repeats.size} repeats for {len(x)} dimensions"


def _constant(node: NodeFacts) -> Problems:
    if len(node.attributes) != 1:
        yield f"a constant has {len(node.attributes)} values, not one"


def _cast(node: NodeFacts) -> Problems:
    kind = node.get("to")
    if isinstance(kind, int) and kind not in onnx.TensorProto.DataType.values()[1:]:
        yield f"the element type {kind} is unknown"


def _normalized(node: NodeFacts) -> Problems:
    """Scale and bias of LayerNormalization spread over the normalized axes."""
    x, axis = node.shape(0), node.get("axis", -1)
    if x is None:
        return
    start = _axis(axis, len(x))
    if start is None:
        yield f"axis {axis} is out of range for {len(x)} dimensions"
        return
    for index in (1, 2):
        shape = node.shape(index)
        if shape is not None and not _spreads(shape, x):
            yield f"input {index} has the shape {list(shape)}, which does not spread to {list(x)}"


def _same_lengths(*prefixes: str) -> Rule:
    """List attributes that begin alike describe one table and have one length."""

    def rule(node: NodeFacts) -> Problems:
        for prefix in prefixes:
            lengths = {
                len(content)
                for name, content in node.attributes.items()
                if name.startswith(prefix) and isinstance(content, list) and content
            }
            if len(lengths) > 1:
                yield f"the lists {prefix}* have different lengths"

    return rule


def _axis(axis: int, rank: int) -> int | None:
    """Return the axis counted from the front, or None when it is out of range."""
    return axis % rank if -rank <= axis < rank else None


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def _fits(found: Shape, wanted: Shape) -> bool:
    """Tell whether two shapes can be the same one."""
    return len(found) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(found, wanted, strict=True)
    )


def _spreads(shape: Shape, target: Shape) -> bool:
    """Tell whether a shape can be broadcast to another without changing that one."""
    tail = target[len(target) - len(shape) :] if len(shape) <= len(target) else None
    return tail is not None and all(
        a in {1, None} or b is None or a == b for a, b in zip(shape, tail, strict=True)
    )


def _broadcast(shapes: Sequence[Shape]) -> Shape | None:
    """Return the shape that others broadcast to, or None when they do not."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[int | None] = []
    for place in range(-rank, 0):
        sizes = {shape[place] for shape in shapes if len(shape) >= -place} - {1, None}
        if len(sizes) > 1:
            return None
        result.append(sizes.pop() if sizes else None)
    return tuple(result)


def _entries(
    rule: Rule, *op_types: str, since: int = 1, until: int = NEWEST, domain: str = ""
) -> list[Entry[Rule]]:
    return [Entry(op_type, rule, domain, since, until) for op_type in op_types]


def _both(*rules: Rule) -> Rule:
    return lambda node: (problem for rule in rules for problem in rule(node))


_POOL = _Window(w=None, bias=None)
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"),
)
_REDUCTIONS = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)
_VARIADIC = ("Max", "Min", "Sum", "Mean")
_TREES = ("nodes_", "target_", "class_", "leaf_")

FACTS: Table[Rule] = Table(
    "facts",
    [
        *_entries(_both(_group, _Window()), "Conv"),
        *_entries(_both(_group, _Window(transposed=True)), "ConvTranspose"),
        *_entries(_both(_group, _Window(bias=None)), "ConvInteger"),
        *_entries(_both(_group, _Window(w=3, bias=8)), "QLinearConv"),
        *_entries(_POOL, "MaxPool", "AveragePool", "LpPool"),
        Entry("QuantizeLinear", _per_tensor, until=12),
        Entry("DequantizeLinear", _per_tensor, until=12),
        *_entries(_quantized, "QuantizeLinear", "DequantizeLinear", since=13),
        *_entries(_quantized, "QuantizeLinear", "DequantizeLinear", domain="com.microsoft"),
        *_entries(_gemm, "Gemm", since=7),
        *_entries(_matmul, "MatMul", "MatMulInteger"),
        *_entries(_vectors(1, 2, 3, 4), "BatchNormalization", since=9),
        *_entries(_vectors(1, 2), "InstanceNormalization"),
        *_entries(_normalized, "LayerNormalization", since=17),
        *_entries(_transpose, "Transpose"),
        *_entries(_reshape, "Reshape"),
        *_entries(_concat, "Concat"),
        *_entries(_split, "Split"),
        *_entries(_axis_in_range(0), "Gather", "GatherElements", "ArgMax", "ArgMin"),
        *_entries(_axis_in_range(-1), "Softmax", "LogSoftmax", "Hardmax", since=13),
        *_entries(_axis_in_range(-1), "TopK"),
        *_entries(_axis_in_range(1, past=1), "Flatten"),
        *_entries(_axes(1), "Squeeze", "ReduceSum", since=13),
        *_entries(_axes(None), "Squeeze", "ReduceSum", until=12),
        *_entries(_axes(1), *_REDUCTIONS, since=18),
        *_entries(_axes(None), *_REDUCTIONS, until=17),
        *_entries(_unsqueeze, "Unsqueeze"),
        *_entries(_slice, "Slice", since=10),
        *_entries(_pad, "Pad", since=11),
        *_entries(_recurrent(1), "RNN", since=14),
        *_entries(_recurrent(3), "GRU", since=14),
        *_entries(_recurrent(4), "LSTM", since=14),
        *_entries(_depth_to_space, "DepthToSpace"),
        *_entries(_block, "SpaceToDepth"),
        *_entries(_elementwise, *_ELEMENTWISE, since=7),
        *_entries(_elementwise, *_VARIADIC, since=8),
        *_entries(_elementwise, "Where"),
        *_entries(_constant_of_shape, "ConstantOfShape"),
        *_entries(_expand, "Expand"),
        *_entries(_tile, "Tile", since=6),
        *_entries(_constant, "Constant"),
        *_entries(_cast, "Cast", since=6),
        *_entries(
            _same_lengths(*_TREES),
            "TreeEnsembleClassifier",
            "TreeEnsembleRegressor",
            domain="ai.onnx.ml",
        ),
        *_entries(_same_lengths("keys_", "values_"), "LabelEncoder", domain="ai.onnx.ml", since=2),
    ],
)
"""Operator -> what must hold for its attributes and inputs; yields one sentence per problem."""
