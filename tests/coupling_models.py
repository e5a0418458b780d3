"""Small random networks of everything that couples channels, built block by block.

A :class:`Net` grows from one input. Blocks take the current value and its shape without the batch:
(channels, height, width) of a map, (features,) of a vector, (length, features) of a sequence.
Constants of equal content are stored once, as exporters do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
_LATE_INPUTS = {"ReduceSum": "axes", "Split": "split", "Squeeze": "axes", "Unsqueeze": "axes"}
"""Attributes that are inputs from operator set 13 on."""


@dataclass(frozen=True)
class Flow:
    """A value and its shape without the batch."""

    name: str
    shape: Shape


class Net:
    """A graph under construction.

    Args:
        seed: Of the weights and of every choice.
        shape: Of the input without the batch.
        opset: Default operator set.
        free: The batch is not fixed.
    """

    def __init__(self, seed: int, shape: Shape, *, opset: int = 17, free: bool = True) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.free = free
        self.input = Flow("x", shape)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._count = 0
        self._stored: dict[tuple[str, Shape, bytes], str] = {}

    # what blocks are made of

    def pick(self, options: Sequence[Any]) -> Any:
        """Choose one of several things."""
        return options[int(self.rng.integers(len(options)))]

    def constant(self, array: Any, dtype: type = np.float32) -> str:
        """Store an array; an equal one is the same constant."""
        data = np.asarray(array, dtype)
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._stored:
            self._stored[key] = f"c{len(self._stored)}"
            self.constants[self._stored[key]] = data
        return self._stored[key]

    def integers(self, *numbers: int) -> str:
        """Store a vector of sizes or indices."""
        return self.constant(numbers, np.int64)

    def weight(self, *shape: int) -> str:
        """Store random weights that keep the scale of what goes through."""
        fan = max(1, int(np.prod(shape[1:])))
        return self.constant(self.rng.standard_normal(shape) / np.sqrt(fan))

    def vector(self, size: int, low: float = 0.5, high: float = 1.5) -> str:
        """Store a vector; half of the time one that other layers have, too."""
        if self.rng.random() < 0.5:
            return self.constant(np.full(size, self.pick([0.1, 0.5, 1.0])))
        return self.constant(self.rng.uniform(low, high, size))

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns its output, or a list of several."""
        if self.opset < 13 and op_type in _LATE_INPUTS and len(inputs) > 1:
            attributes[_LATE_INPUTS[op_type]] = self.constants[inputs[1]].tolist()
            inputs = inputs[:1]
        self._count += 1
        names = [f"v{self._count}_{i}" for i in range(outputs)]
        node = helper.make_node(op_type, list(inputs), names, f"n{self._count}", **attributes)
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def mean(self, name: str, axes: Sequence[int], *, keep: int = 1, kind: str = "Mean") -> str:
        """Reduce over axes."""
        if self.opset >= 18 or kind == "Sum":
            return str(self.op(f"Reduce{kind}", name, self.integers(*axes), keepdims=keep))
        return str(self.op(f"Reduce{kind}", name, axes=list(axes), keepdims=keep))

    def reshape(self, flow: Flow, shape: Shape) -> Flow:
        """Reshape behind the batch, with a constant target or one computed from sizes."""
        if self.rng.random() < 0.5:
            target = self.integers(0 if self.rng.random() < 0.5 else -1, *shape)
            return Flow(self.op("Reshape", flow.name, target), shape)
        sizes = self.op("Shape", flow.name)
        batch = self.op("Gather", sizes, self.constant(0, np.int64), axis=0)
        first = self.op("Unsqueeze", batch, self.integers(0))
        rest = [self.integers(size) for size in shape]
        if len(flow.shape) > 1 and len(shape) == 1:
            rest = [self.integers(-1)]
        target = self.op("Concat", first, *rest, axis=0)
        return Flow(self.op("Reshape", flow.name, target), shape)

    def transpose(self, flow: Flow, *perm: int) -> Flow:
        """Permute the axes behind the batch, counted from 1."""
        name = self.op("Transpose", flow.name, perm=[0, *perm])
        return Flow(name, tuple(flow.shape[i - 1] for i in perm))

    def model(self, *outputs: Flow) -> ir.Model:
        """Finish."""
        batch: Any = "N" if self.free else 2
        ends = [self.op("Identity", flow.name) for flow in outputs]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *self.input.shape])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *flow.shape])
                for name, flow in zip(ends, outputs, strict=True)
            ],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        imports = [helper.make_opsetid("", self.opset)]
        return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))

    # maps

    def conv(self, x: Flow, out: int, k: int = 3, *, group: int = 1, stride: int = 1) -> Flow:
        """Convolution with or without a bias."""
        weight = self.weight(out, x.shape[0] // group, k, k)
        bias = [self.vector(out)] if self.rng.random() < 0.5 else []
        name = self.op(
            "Conv", x.name, weight, *bias,
            group=group, kernel_shape=[k, k], pads=[k // 2] * 4, strides=[stride] * 2,
        )  # fmt: skip
        return Flow(name, (out, *((size - 1) // stride + 1 for size in x.shape[1:])))

    def norm(self, x: Flow) -> Flow:
        """Batch normalization."""
        c = x.shape[0]
        vectors = [self.vector(c), self.vector(c, -0.3, 0.3), self.vector(c, -0.3, 0.3)]
        return Flow(self.op("BatchNormalization", x.name, *vectors, self.vector(c)), x.shape)

    def act(self, x: Flow) -> Flow:
        """Any activation function."""
        kinds = ["Relu", "Sigmoid", "LeakyRelu", "PRelu", "Clip", "Silu"]
        kind = self.pick([*kinds, "HardSwish"] if self.opset >= 14 else kinds)
        if kind == "PRelu":
            slope = self.rng.uniform(0.1, 0.4, (x.shape[0], *(1,) * (len(x.shape) - 1)))
            if len(x.shape) == 2:
                slope = self.rng.uniform(0.1, 0.4, x.shape[-1])
            return Flow(self.op("PRelu", x.name, self.constant(slope)), x.shape)
        if kind == "Clip":
            bounds = (self.constant(0.0), self.constant(6.0))
            return Flow(self.op("Clip", x.name, *bounds), x.shape)
        if kind == "Silu":
            return Flow(self.op("Mul", x.name, self.op("Sigmoid", x.name)), x.shape)
        return Flow(self.op(kind, x.name), x.shape)

    def block(self, x: Flow, out: int, k: int = 3, **kwargs: Any) -> Flow:
        """Convolution, normalization, activation."""
        return self.act(self.norm(self.conv(x, out, k, **kwargs)))

    def add(self, a: Flow, b: Flow, kind: str = "Add") -> Flow:
        """Combine two values of one shape."""
        return Flow(self.op(kind, a.name, b.name), a.shape)

    def concat(self, *flows: Flow) -> Flow:
        """Join channels."""
        channels = sum(flow.shape[0] for flow in flows)
        name = self.op("Concat", *(flow.name for flow in flows), axis=1)
        return Flow(name, (channels, *flows[0].shape[1:]))

    def halves(self, x: Flow) -> tuple[Flow, Flow]:
        """Split the channels, in one of three ways."""
        half = x.shape[0] // 2
        shape = (half, *x.shape[1:])
        way = self.rng.integers(3)
        if way == 0:
            sizes = (
                [self.integers(half, half)] if self.opset < 18 or self.rng.random() < 0.5 else []
            )
            extra = {} if sizes or self.opset < 18 else {"num_outputs": 2}
            a, b = self.op("Split", x.name, *sizes, outputs=2, axis=1, **extra)
        elif way == 1:
            ends = (self.integers(0), self.integers(half), self.integers(2 * half))
            a = self.op("Slice", x.name, ends[0], ends[1], self.integers(1))
            b = self.op("Slice", x.name, ends[1], ends[2], self.integers(1))
        else:
            order = self.rng.permutation(x.shape[0])
            a = self.op("Gather", x.name, self.integers(*order[:half]), axis=1)
            b = self.op("Gather", x.name, self.integers(*order[half:]), axis=1)
        return Flow(a, shape), Flow(b, shape)

    def dense(self, x: Flow, out: int) -> Flow:
        """Matrix product behind the last axis, as Gemm or MatMul."""
        wide = x.shape[-1]
        if len(x.shape) == 1 and self.rng.random() < 0.7:
            transposed = int(self.rng.integers(2))
            shape = (out, wide) if transposed else (wide, out)
            weight = self.constant(self.rng.standard_normal(shape) / np.sqrt(wide))
            name = self.op("Gemm", x.name, weight, self.vector(out), transB=transposed)
        else:
            weight = self.constant(self.rng.standard_normal((wide, out)) / np.sqrt(wide))
            name = self.op("Add", self.op("MatMul", x.name, weight), self.vector(out))
        return Flow(name, (*x.shape[:-1], out))

    def layer_norm(self, x: Flow) -> Flow:
        """Normalization over the last axis, as one operator or in its parts."""
        d = x.shape[-1]
        if self.opset >= 17 and self.rng.random() < 0.5:
            name = self.op("LayerNormalization", x.name, self.vector(d), self.vector(d), axis=-1)
            return Flow(name, x.shape)
        centred = self.op("Sub", x.name, self.mean(x.name, [-1]))
        power = self.op("Mul", centred, centred)
        spread = self.op("Sqrt", self.op("Add", self.mean(power, [-1]), self.constant(1e-5)))
        scaled = self.op("Mul", self.op("Div", centred, spread), self.vector(d))
        return Flow(self.op("Add", scaled, self.vector(d)), x.shape)


Block = Callable[[Net, Flow], Flow]
