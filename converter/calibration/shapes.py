"""Sizes of values, for models without inferred shapes: what operators' definitions say.

A guess that is wrong costs time and nothing else, so only the operators of feature maps and those
that keep a shape are known here; of other values the number of axes at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from converter.calibration.patches import Geometry

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int | None, ...]
"""Sizes of all axes, None for those that are not known."""
_Shapes = Sequence[Shape | None]

_KEEP = """
    Abs BatchNormalization Cast CastLike Celu Clip Dropout Elu Erf Exp Floor Gelu
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN
    LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Mish Neg QuickGelu Reciprocal Relu
    Round Selu Sigmoid Sign Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu
"""
_KEEP_RANK = "LpPool Pad Resize Split Transpose Upsample"
_BROADCAST = "Add Sub Mul Div Pow Max Min Mean Sum PRelu Where Equal"


def shapes(graph: ir.Graph, given: Mapping[str, Sequence[int]]) -> dict[ir.Value, Shape]:
    """Return what is known of the shapes of the main graph's values.

    Args:
        graph: In topological order.
        given: Shapes of inputs in the data; they win over what the file says.
    """
    found: dict[ir.Value, Shape] = {
        value: tuple(given[value.name or ""]) for value in graph.inputs if value.name in given
    }

    def shape(value: ir.Value | None) -> Shape | None:
        if value is None or value in found:
            return found.get(value) if value is not None else None
        stated = value.shape if value.const_value is None else value.const_value.shape
        if stated is None:
            return None
        found[value] = tuple(d if isinstance(d, int) else None for d in stated)
        return found[value]

    for node in graph:
        rule = _RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
        made = rule(node, list(map(shape, node.inputs))) if rule and node.inputs else None
        for output in node.outputs:
            stated = shape(output)
            if made is not None and (stated is None or None in stated):
                found[output] = made
    return found


def _kept(_: ir.Node, inputs: _Shapes) -> Shape | None:
    return inputs[0]


def _kept_rank(_: ir.Node, inputs: _Shapes) -> Shape | None:
    return None if inputs[0] is None else (None,) * len(inputs[0])


def _broadcast(_: ir.Node, inputs: _Shapes) -> Shape | None:
    known = [shape for shape in inputs if shape is not None]
    if len(known) < len(inputs):
        return None
    rank = max(map(len, known))
    full = [(1,) * (rank - len(shape)) + shape for shape in known]
    return tuple(_met([d for d in sizes if d != 1]) for sizes in zip(*full, strict=True))


def _met(sizes: Sequence[int | None]) -> int | None:
    return sizes[0] if sizes else 1


def _conv(node: ir.Node, inputs: _Shapes) -> Shape | None:
    x, weight = inputs[:2]
    if weight is None or None in weight:
        return _kept_rank(node, inputs)
    sizes = [d for d in weight if d is not None]
    return _slid(x, sizes[0], Geometry.of(node, sizes), len(sizes))


def _pool(node: ir.Node, inputs: _Shapes) -> Shape | None:
    x, read = inputs[0], node.attributes
    if x is None or read.get_int("ceil_mode", 0) == 1:
        return _kept_rank(node, inputs)
    return _slid(x, x[1], Geometry.of(node, (0, 0, *read.get_ints("kernel_shape", ()))), len(x))


def _slid(x: Shape | None, channels: int | None, geometry: Geometry, rank: int) -> Shape | None:
    """Return the shape after a window slid over feature maps."""
    if x is None or len(x) != rank or None in x[2:]:
        return (None, channels, *(None,) * (rank - 2))
    sizes = [d for d in x[2:] if d is not None]
    return (x[0], channels, *geometry.positions(sizes))


def _pooled(_: ir.Node, inputs: _Shapes) -> Shape | None:
    x = inputs[0]
    return None if x is None else (*x[:2], *(1,) * (len(x) - 2))


def _flat(_: ir.Node, __: _Shapes) -> Shape:
    return (None, None)


def _joined(node: ir.Node, inputs: _Shapes) -> Shape | None:
    first = next((shape for shape in inputs if shape is not None), None)
    if first is None or None in inputs:
        return None if first is None else (None,) * len(first)
    axis = node.attributes.get_int("axis", 1) % len(first)
    sizes = [shape[axis] for shape in inputs if shape is not None]
    total = sum(d for d in sizes if d is not None) if None not in sizes else None
    return (*first[:axis], total, *first[axis + 1 :])


def _product(node: ir.Node, inputs: _Shapes) -> Shape | None:
    left, right = inputs[:2]
    if left is None or right is None or min(len(left), len(right)) < 2:
        return None
    front = _broadcast(node, [(*left[:-2], 1, 1), (*right[:-2], 1, 1)])
    return None if front is None else (*front[:-2], left[-2], right[-1])


_RULES: dict[str, Callable[[ir.Node, _Shapes], Shape | None]] = {
    **dict.fromkeys(_KEEP.split(), _kept),
    **dict.fromkeys(_KEEP_RANK.split(), _kept_rank),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    **dict.fromkeys(("Flatten", "Gemm"), _flat),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _pooled),
    "Conv": _conv,
    "ConvTranspose": _kept_rank,
    "Concat": _joined,
    "MatMul": _product,
}
"""From the shapes of an operator's inputs to that of its first output."""
