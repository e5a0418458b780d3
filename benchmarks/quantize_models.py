"""Models for the quantization benchmarks, in the shape of known ones, with random weights.

Run as ``python -m benchmarks.quantize_models mobilenet FOLDER [SAMPLES]``, ``resnet50``, ``bert``
or ``chain:2000``, a chain of Conv and Relu; writes ``model.onnx`` and ``data.npz`` (32 samples).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Expansion, output channels, repeats, stride: table 2 of the MobileNetV2 paper (Sandler 2018).
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Builder:
    """Nodes and weights of a graph that grows at its end."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def conv(
        self, x: str, cin: int, cout: int, kernel: int, *, stride: int = 1, group: int = 1
    ) -> str:
        fan_in = cin // group * kernel * kernel
        weight = self.rng.standard_normal((cout, cin // group, kernel, kernel))
        weight *= np.sqrt(2 / fan_in) * self.rng.uniform(0.4, 1.6, (cout, 1, 1, 1))
        bias = self.rng.standard_normal(cout) * 0.1
        return self.add(
            "Conv",
            x,
            self.constant(weight.astype(np.float32)),
            self.constant(bias.astype(np.float32)),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=group,
        )

    def dense(self, x: str, width: int, out: int) -> str:
        weight = self.rng.standard_normal((width, out)) / np.sqrt(width)
        product = self.add("MatMul", x, self.constant(weight.astype(np.float32)))
        bias = self.rng.standard_normal(out) * 0.05
        return self.add("Add", product, self.constant(bias.astype(np.float32)))

    def norm(self, x: str, width: int) -> str:
        scale = self.rng.uniform(0.5, 1.5, width).astype(np.float32)
        shift = (self.rng.standard_normal(width) * 0.1).astype(np.float32)
        return self.add("LayerNormalization", x, self.constant(scale), self.constant(shift))

    def model(
        self,
        shape: list[int],
        output: str,
        out_shape: list[int],
        kind: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info("input", kind, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mobilenet() -> onnx.ModelProto:
    """Return a classifier of MobileNetV2's shape: 52 Conv, 35 Clip, 10 Add, 3.5 M parameters."""
    b = Builder()
    low, high = b.constant(np.float32(0)), b.constant(np.float32(6))

    def clipped(x: str) -> str:
        return b.add("Clip", x, low, high)

    x, channels = clipped(b.conv("input", 3, 32, 3, stride=2)), 32
    for expansion, out, repeats, first_stride in BLOCKS:
        for repeat in range(repeats):
            stride, block_in, wide = first_stride if repeat == 0 else 1, x, channels * expansion
            if expansion != 1:
                x = clipped(b.conv(x, channels, wide, 1))
            x = clipped(b.conv(x, wide, wide, 3, stride=stride, group=wide))
            x = b.conv(x, wide, out, 1)
            if stride == 1 and channels == out:
                x = b.add("Add", block_in, x)
            channels = out
    x = clipped(b.conv(x, channels, 1280, 1))
    x = b.add("Flatten", b.add("GlobalAveragePool", x), axis=1)
    weight = b.rng.standard_normal((1000, 1280)).astype(np.float32) * 0.03
    bias = b.constant(np.zeros(1000, np.float32))
    x = b.add("Gemm", x, b.constant(weight), bias, transB=1)
    return b.model([1, 3, 224, 224], x, [1, 1000])


def resnet50() -> onnx.ModelProto:
    """Return a classifier of ResNet-50's shape: 53 Conv, 16 Add, 25 M parameters."""
    b = Builder()
    x = b.add("Relu", b.conv("input", 3, 64, 7, stride=2))
    x = b.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, repeats in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for repeat in range(repeats):
            stride = 2 if repeat == 0 and width > 64 else 1
            y = b.add("Relu", b.conv(x, channels, width, 1))
            y = b.add("Relu", b.conv(y, width, width, 3, stride=stride))
            y = b.conv(y, width, 4 * width, 1)
            if repeat == 0:
                x = b.conv(x, channels, 4 * width, 1, stride=stride)
            channels = 4 * width
            # a sum of two has twice the variance, and 16 of them would end in thousands
            half = b.constant(np.float32(np.sqrt(0.5))) if repeat else ""
            y = b.add("Add", x, y)
            x = b.add("Relu", b.add("Mul", y, half) if half else y)
    x = b.add("Flatten", b.add("GlobalAveragePool", x), axis=1)
    weight = b.rng.standard_normal((1000, 2048)).astype(np.float32) * 0.02
    x = b.add("Gemm", x, b.constant(weight), b.constant(np.zeros(1000, np.float32)), transB=1)
    return b.model([1, 3, 224, 224], x, [1, 1000])


def bert(tokens: int = 128, width: int = 768, heads: int = 12) -> onnx.ModelProto:
    """Return an encoder of BERT-base's shape: 12 layers, 72 MatMul with weights, 109 M numbers."""
    b = Builder()
    table = (b.rng.standard_normal((30522, width)) * 0.05).astype(np.float32)
    places = (b.rng.standard_normal((1, tokens, width)) * 0.02).astype(np.float32)
    x = b.add("Add", b.add("Gather", b.constant(table), "input"), b.constant(places))
    x = b.norm(x, width)
    split = b.constant(np.array([1, tokens, heads, width // heads]))
    joined = b.constant(np.array([1, tokens, width]))
    root = b.constant(np.float32(np.sqrt(width // heads)))
    half, one, two = (b.constant(np.float32(v)) for v in (0.5, 1.0, np.sqrt(2)))
    for _ in range(12):
        q, k, v = (b.add("Reshape", b.dense(x, width, width), split) for _ in range(3))
        q, v = (b.add("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
        scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 3, 1]))
        mixed = b.add("MatMul", b.add("Softmax", b.add("Div", scores, root), axis=-1), v)
        mixed = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = b.norm(b.add("Add", x, b.dense(mixed, width, width)), width)
        y = b.dense(x, width, 4 * width)
        wide = b.add("Add", b.add("Erf", b.add("Div", y, two)), one)
        y = b.add("Mul", b.add("Mul", y, wide), half)
        x = b.norm(b.add("Add", x, b.dense(y, 4 * width, width)), width)
    return b.model([1, tokens], x, [1, tokens, width], TensorProto.INT64)


def chain(length: int) -> onnx.ModelProto:
    """Return ``length`` nodes, Conv and Relu in turn, on 8 channels of 8x8."""
    b = Builder()
    x = "input"
    for _ in range(length // 2):
        x = b.add("Relu", b.conv(x, 8, 8, 3))
    return b.model([1, 8, 8, 8], x, [1, 8, 8, 8])


def write(kind: str, folder: Path, count: int = 32) -> None:
    """Write the model of that name and samples for it."""
    folder.mkdir(parents=True, exist_ok=True)
    name, _, length = kind.partition(":")
    makers = {"mobilenet": mobilenet, "resnet50": resnet50, "bert": bert}
    model = chain(int(length)) if name == "chain" else makers[name]()
    onnx.save(model, str(folder / "model.onnx"))
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(1)
    samples = rng.standard_normal((count, *shape), dtype=np.float32)
    if name == "bert":
        samples = rng.integers(0, 30000, (count, *shape))
    np.savez(folder / "data.npz", input=samples)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:4]))
