"""Linear layers as stacks of matrices, whatever operator they are and however they store it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.tensors import MappedTensor

Array = g.Array


@dataclass(frozen=True)
class Form:
    """How a weight is stored.

    Attributes:
        groups: Groups of a convolution; 1 for matrices.
        outputs: Output channels per group.
        inputs: Input channels per group.
        taps: Elements per pair of channels: positions of a kernel.
        inputs_first: The axis of the inputs comes before that of the outputs.
    """

    groups: int
    outputs: int
    inputs: int
    taps: int = 1
    inputs_first: bool = False

    def matrices(self, weight: Array) -> Array:
        """Return a view (groups, outputs, inputs, taps) of a stored weight."""
        if self.inputs_first:
            stored = weight.reshape(self.groups, self.inputs, self.outputs, self.taps)
            return stored.swapaxes(1, 2)
        return weight.reshape(self.groups, self.outputs, self.inputs, self.taps)

    def pairs(self, start: int, count: int) -> tuple[Array, Array]:
        """Return output and input channel of stored elements ``start`` to ``start + count``."""
        index = np.arange(start, start + count) // self.taps
        first, second = self.outputs, self.inputs
        if self.inputs_first:
            first, second = second, first
        inner = index % second
        outer = index // second  # counts through the groups
        group = outer // first
        if self.inputs_first:
            return group * self.outputs + inner, outer
        return outer, group * self.inputs + inner


@dataclass(frozen=True, eq=False)
class Layer:
    """A node that multiplies channels by a constant weight of its own.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weight, float32, used by nobody else.
        form: How the weight is stored.
        bias: Its bias input, or None.
        rank: Axes of input and output; None: not known (MatMul).
    """

    node: ir.Node
    weight: ir.Value
    form: Form
    bias: ir.Value | None
    rank: int | None

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.form.groups * self.form.outputs

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.form.groups * self.form.inputs

    @property
    def axis(self) -> int:
        """Axis of the channels in input and output, counted from the end."""
        return -1 if self.rank is None else 1 - self.rank

    def matrices(self) -> Array:
        """Return the weight as (groups, outputs, inputs, taps); it must not be written to."""
        weight = g.constant_array(self.weight)
        assert weight is not None
        return self.form.matrices(weight)

    def padded(self) -> bool:
        """Tell whether the node puts zeros around its input."""
        attributes = self.node.attributes
        explicit = attributes.get_string("auto_pad", "NOTSET") in {"NOTSET", "VALID"}
        return not explicit or any(attributes.get_ints("pads", ()))


def layer_of(node: ir.Node) -> Layer | str | None:
    """Describe a node: a layer, why it must not be changed, or None: no such operator."""
    layer = described(node)
    if not isinstance(layer, Layer):
        return layer
    if not owned(layer.weight):
        return "the weight is used elsewhere too"
    return _bias_obstacle(layer) or layer


def described(node: ir.Node) -> Layer | str | None:
    """Describe a node like :func:`layer_of`, whoever else uses its constants."""
    build = _FORMS.get(node.op_type) if node.domain in g.DEFAULT_DOMAINS else None
    if build is None or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    tensor = g.constant(weight)
    if weight is None or tensor is None:
        return _not_constant(weight)
    if tensor.dtype != ir.DataType.FLOAT:
        return f"the weight is {tensor.dtype.name.lower()}, not float32"
    form = build(node, tuple(tensor.shape.numpy()))
    if form is None or tensor.size == 0:
        return "the shape of the weight does not fit the node"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    rank = None if node.op_type == "MatMul" else len(tensor.shape)
    return Layer(node, weight, form, bias, rank)


def owned(value: ir.Value) -> bool:
    """Tell whether a constant is used once and by nothing that others see."""
    return len(tuple(value.uses())) == 1 and not value.is_graph_output()


def scale_weight(layer: Layer, inputs: Array, outputs: Array) -> None:
    """Multiply each input channel of the weight and divide each output channel.

    Args:
        layer: Its weight is replaced by one that is computed when it is read.
        inputs: Factors (inputs,), float64 above zero.
        outputs: Divisors (outputs,), float64 above zero.
    """
    form = layer.form

    def rescale(chunk: Array, start: int) -> Array:
        to, of = form.pairs(start, chunk.size)
        return (chunk.astype(np.float64) * (inputs[of] / outputs[to])).astype(np.float32)

    tensor = g.constant(layer.weight)
    assert tensor is not None
    g.replace_tensor(layer.weight, MappedTensor(tensor, rescale, name=tensor.name))


def scale_vector(value: ir.Value, factors: Array) -> None:
    """Multiply a constant whose last axis, or only axis longer than 1, is the channels."""
    tensor = g.constant(value)
    assert tensor is not None
    array = tensor.numpy()
    scaled = array.reshape(-1, factors.size).astype(np.float64) * factors
    g.replace_tensor(value, ir.tensor(scaled.astype(array.dtype).reshape(array.shape)))


def _not_constant(weight: ir.Value | None) -> str:
    if weight is not None and weight.is_graph_input() and weight.is_initializer():
        return g.OVERRIDABLE
    maker = None if weight is None else weight.producer()
    quantized = g.is_op(maker, "DequantizeLinear")
    return "already quantized" if quantized else "the weight is not constant"


def _bias_obstacle(layer: Layer) -> str:
    """Say why the bias cannot follow a scaling of the output channels; "" when it can."""
    if layer.bias is None:
        return ""
    array = g.constant_array(layer.bias)
    if array is None:
        return "the bias is not constant"
    if not array.any():
        return ""
    if array.dtype != np.float32 or array.shape[-1:] != (layer.outputs,):
        return "the bias is not float32 with one number per channel"
    return "" if owned(layer.bias) else "the bias is used elsewhere too"


def _conv(node: ir.Node, shape: tuple[int, ...]) -> Form | None:
    groups = node.attributes.get_int("group", 1)
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        return None
    return Form(groups, shape[0] // groups, shape[1], math.prod(shape[2:]))


def _conv_transpose(node: ir.Node, shape: tuple[int, ...]) -> Form | None:
    groups = node.attributes.get_int("group", 1)
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        return None
    return Form(groups, shape[1], shape[0] // groups, math.prod(shape[2:]), inputs_first=True)


def _gemm(node: ir.Node, shape: tuple[int, ...]) -> Form | None:
    if len(shape) != 2 or node.attributes.get_int("transA", 0) != 0:
        return None
    if node.attributes.get_int("transB", 0):
        return Form(1, shape[0], shape[1])
    return Form(1, shape[1], shape[0], inputs_first=True)


def _matmul(_: ir.Node, shape: tuple[int, ...]) -> Form | None:
    return Form(1, shape[1], shape[0], inputs_first=True) if len(shape) == 2 else None


_FORMS: Mapping[str, Callable[[ir.Node, tuple[int, ...]], Form | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
