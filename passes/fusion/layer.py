"""Linear layers as what they are to a rewrite: a weight with channels, and perhaps a bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant, is_op
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
DEPENDENT = "it depends on an attribute of the function's call"


@dataclass(frozen=True)
class Layout:
    """Where the channels lie in a flat weight: element i has ``order[i // period % order.size]``.

    Attributes:
        order: Channels in the order in which they follow each other.
        period: Elements of one channel that follow each other.
    """

    order: Array
    period: int


@dataclass(frozen=True)
class Shape:
    """How the weight of a layer is laid out.

    Attributes:
        outputs: Output channels in the weight.
        channels: Number of output channels.
        inputs: Input channels in the weight.
        sources: Number of input channels.
        rank: Rank of input and output, or None where the weight does not tell.
        axis: Axis of the channels in input and output, counted from the end.
    """

    outputs: Layout
    channels: int
    inputs: Layout
    sources: int
    rank: int | None
    axis: int


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul whose weight may be changed.

    Attributes:
        node: The node.
        weight: Its second input.
        shape: How the weight is laid out.
    """

    node: ir.Node
    weight: ir.TensorProtocol
    shape: Shape

    @property
    def kind(self) -> str:
        """The operator type."""
        return self.node.op_type

    @property
    def source(self) -> ir.Value:
        """What the layer reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """What the layer computes."""
        return self.node.outputs[0]

    def bias(self) -> Array | str:
        """Return the bias per output channel in float64, or why it has none that is known."""
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        if value is None:
            return np.zeros(self.shape.channels)
        tensor = constant(value)
        if tensor is None:
            return varies(f"the bias of {self.kind}", value)
        dims = dims_of(tensor)
        if tensor.size not in {1, self.shape.channels} or any(size != 1 for size in dims[:-1]):
            return f"the bias of {self.kind} is not per channel"
        array = np.asarray(tensor.numpy(), np.float64).reshape(-1) * self.factor("beta")
        return np.broadcast_to(array, (self.shape.channels,))

    def factor(self, name: str) -> float:
        """Return ``alpha`` or ``beta`` of a Gemm; 1 for the others."""
        attribute = self.node.attributes.get(name)
        return 1.0 if attribute is None else attribute.as_float()

    def pads(self) -> bool:
        """Tell whether zeros are read beside the input."""
        return is_op(self.node, "Conv", "ConvTranspose") and not unpadded(self.node)


def dims_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return the dimensions of a tensor."""
    return tuple(int(size) for size in tensor.shape.numpy())


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def unpadded(node: ir.Node) -> bool:
    """Tell whether a convolution or pooling is certain to add no padding of its own."""
    auto = node.attributes.get("auto_pad")
    mode = "NOTSET" if auto is None else auto.as_string()
    pads = node.attributes.get("pads")
    if mode == "NOTSET":
        return pads is None or not any(pads.as_ints())
    return mode == "VALID"


def _grouped(group: int, dims: tuple[int, ...]) -> Array:
    """Return the channel of each step along axes 0 and 1 of a weight, up to where it repeats."""
    steps = np.arange(dims[1])
    if group == 1:
        return steps
    first = np.repeat(np.arange(group), dims[0] // group) * dims[1]
    return (first[:, None] + steps).reshape(-1)


def _conv(node: ir.Node, dims: tuple[int, ...]) -> Shape | None:
    group = integer(node, "group", 1)
    if len(dims) < 3 or group < 1 or dims[0] % group:
        return None
    inner = int(np.prod(dims[2:]))
    sources = _grouped(group, dims)
    outputs = Layout(np.arange(dims[0]), dims[1] * inner)
    inputs = Layout(sources, inner)
    return Shape(outputs, dims[0], inputs, dims[1] * group, len(dims), 1 - len(dims))


def _conv_transpose(node: ir.Node, dims: tuple[int, ...]) -> Shape | None:
    group = integer(node, "group", 1)
    if len(dims) < 3 or group < 1 or dims[0] % group:
        return None
    # The weight is (in, out / group, ...); input channel i belongs to group i // (in / group).
    inner = int(np.prod(dims[2:]))
    order = _grouped(group, dims)
    inputs = Layout(np.arange(dims[0]), dims[1] * inner)
    channels = dims[1] * group
    return Shape(Layout(order, inner), channels, inputs, dims[0], len(dims), 1 - len(dims))


def _gemm(node: ir.Node, dims: tuple[int, ...]) -> Shape | None:
    if len(dims) != 2:
        return None
    rows, columns = Layout(np.arange(dims[0]), dims[1]), Layout(np.arange(dims[1]), 1)
    if integer(node, "transB", 0):
        return Shape(rows, dims[0], columns, dims[1], 2, -1)
    return Shape(columns, dims[1], rows, dims[0], 2, -1)


def _matmul(node: ir.Node, dims: tuple[int, ...]) -> Shape | None:
    if len(dims) < 2:
        return None
    inputs, outputs = Layout(np.arange(dims[-2]), dims[-1]), Layout(np.arange(dims[-1]), 1)
    return Shape(outputs, dims[-1], inputs, dims[-2], None, -1)


LAYERS: dict[str, Callable[[ir.Node, tuple[int, ...]], Shape | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def layer_of(node: ir.Node | None, work: Work) -> Layer | str | None:
    """Return the layer that a node is, why its weight must stay, or None if it is no layer."""
    if node is None or not is_op(node, *LAYERS) or node.overload:
        return None
    if node not in work.selection or node.op_type in work.redefined or not work.alive(node):
        return None
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return f"{node.op_type} has no weight"
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return DEPENDENT
    return _weighted(node, node.inputs[1])


def varies(what: str, value: ir.Value) -> str:
    """Return the reason that a value is no constant."""
    if value.is_graph_input() and value.is_initializer():
        return f"{what} is an input with a default value (freeze before it makes it constant)"
    return f"{what} is no constant"


def _weighted(node: ir.Node, value: ir.Value) -> Layer | str | None:
    kind = node.op_type
    weight = constant(value)
    if weight is None:
        # Products of two activations are no layers; nobody expects them to take a factor in.
        return None if kind == "MatMul" else varies(f"the weight of {kind}", value)
    if weight.dtype not in FLOATS:
        return f"the weight of {kind} has type {weight.dtype.name}"
    if len(value.uses()) != 1 or value.is_graph_output():
        return f"the weight of {kind} is shared"
    shape = LAYERS[kind](node, dims_of(weight))
    if shape is None or not weight.size:
        return f"the weight of {kind} has an unusual shape"
    return Layer(node, weight, shape)


def layer_before(node: ir.Node, value: ir.Value | None, work: Work) -> Layer | str | None:
    """Return the layer that makes ``value`` for ``node`` alone, or why it cannot take it in."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or not is_op(producer, *LAYERS):
        return None
    layer = layer_of(producer, work)
    if not isinstance(layer, Layer):
        return layer
    return alone(value, node, layer.kind) or layer


def alone(value: ir.Value, node: ir.Node, kind: str) -> str | None:
    """Return why ``node`` is not all that reads ``value``."""
    producer = value.producer()
    if value.is_graph_output():
        return f"the output of {kind} before it is public"
    if len(value.uses()) != 1:
        return f"the output of {kind} before it is used elsewhere"
    if producer is None or producer.graph is not node.graph:
        return f"{kind} before it belongs to another graph"
    return None


def step_before(layer: Layer, *op_types: str, work: Work) -> ir.Node | str | None:
    """Return the node of one of these types whose output the layer alone reads, or why not."""
    node = layer.source.producer()
    if node is None or not is_op(node, *op_types) or node.overload:
        return None
    if node.op_type in work.redefined or node not in work.selection:
        return None
    reason = alone(layer.source, layer.node, node.op_type)
    return reason if reason is not None else node


def per_channel(tensor: ir.TensorProtocol, shape: Shape, count: int) -> Array | None:
    """Return a constant operand per channel in float64, or None if it is not per channel.

    Args:
        tensor: The operand; the other one has the rank and the axis of ``shape``.
        shape: Of the layer.
        count: Number of channels.
    """
    dims = dims_of(tensor)
    if len(dims) > (1 if shape.rank is None else shape.rank):
        return None
    at = len(dims) + shape.axis
    if any(size != 1 for index, size in enumerate(dims) if index != at):
        return None
    if tensor.size not in {1, count}:
        return None
    return np.broadcast_to(np.asarray(tensor.numpy(), np.float64).reshape(-1), (count,))
