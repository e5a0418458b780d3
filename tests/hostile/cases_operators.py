"""Hostile cases about single operators: attributes and constants that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from hostile import builders as b
from hostile.builders import Case, conv, conv_with, node, saved, tensor, value

I8, U8 = b.INT8, b.UINT8


def operators() -> Iterator[Case]:
    for name, (expect, build) in {**_convolutions(), **_quantizers(), **_others()}.items():
        yield Case("operators", name, expect, saved(build))


def _convolutions():
    x, w, bias = (1, 4, 8, 8), (8, 4, 3, 3), (8,)
    attributes = {
        "group 0": {"group": 0},
        "group -1": {"group": -1},
        "group 3": {"group": 3},
        "group 2 for one": {"group": 2},
        "group 2^40": {"group": 1 << 40},
        "group -2^63": {"group": -(1 << 63)},
        "kernel of another size": {"kernel_shape": [5, 5]},
        "kernel of three axes": {"kernel_shape": [3, 3, 3]},
        "kernel of 0": {"kernel_shape": [0, 0]},
        "kernel of 2^40": {"kernel_shape": [1 << 40, 1 << 40]},
        "strides of 0": {"strides": [0, 0]},
        "strides negative": {"strides": [-1, 1]},
        "one stride": {"strides": [1]},
        "dilations of 0": {"dilations": [0, 1]},
        "dilations of 2^40": {"dilations": [1 << 40, 1]},
        "three pads": {"pads": [1, 1, 1]},
        "pads negative": {"pads": [-1, -1, -1, -1]},
        "pads of 2^62": {"pads": [1 << 62] * 4},
        "auto_pad unknown": {"auto_pad": "SOMEHOW"},
        "strides of floats": {"strides": [1.0, 1.0]},
        "group of text": {"group": "one"},
    }
    cases = {f"conv {k}": ("reject", lambda v=v: conv(**v)) for k, v in attributes.items()}
    shapes = {
        "bias too short": (x, w, (7,)),
        "bias too long": (x, w, (9,)),
        "bias of two axes": (x, w, (8, 1)),
        "bias of one": (x, w, (1,)),
        "channels do not fit": ((1, 5, 8, 8), w, bias),
        "weights of rank 2": (x, (8, 4), bias),
        "weights of rank 5": (x, (8, 4, 3, 3, 3), bias),
        "input of rank 2": ((1, 4), w, bias),
    }
    cases |= {f"conv {k}": ("reject", lambda v=v: conv_with(*v)) for k, v in shapes.items()}
    cases["conv fine"] = ("accept", lambda: conv(pads=[1, 1, 1, 1], strides=[2, 2], group=1))
    cases["conv depthwise"] = ("accept", lambda: conv_with(x, (4, 1, 3, 3), None, group=4))
    cases["conv of a bomb size"] = ("either", lambda: conv(pads=[1 << 20] * 4))
    turned = {"group 0": (0, 8), "group 3": (3, 8), "bias": (1, 7)}
    for name, (group, count) in turned.items():
        build = lambda g=group, n=count: _transposed(g, n)  # noqa: E731 - one of many
        cases[f"transposed conv {name}"] = ("reject", build)
    cases["transposed conv fine"] = ("accept", lambda: _transposed(1, 8))
    pools = {
        "kernel 0": {"kernel_shape": [0, 0]},
        "no kernel": {},
        "one pad": {"kernel_shape": [2, 2], "pads": [1]},
        "three axes": {"kernel_shape": [2, 2, 2]},
        "strides 0": {"kernel_shape": [2, 2], "strides": [0, 0]},
    }
    for name, settings in pools.items():
        build = lambda s=settings: _one("MaxPool", x, **s)  # noqa: E731 - one of many
        cases[f"pool {name}"] = ("reject", build)
    return cases


def _transposed(group: int, bias: int) -> onnx.ModelProto:
    made = [node("ConvTranspose", ["x", "w", "b"], ["y"], group=group)]
    constants = [b.weights("w", (4, 8, 3, 3)), b.weights("b", (bias,))]
    return b.model(made, [value("x", (1, 4, 8, 8))], [value("y", None)], constants)


def _one(op: str, shape, *constants: onnx.TensorProto, opset: int = 17, **attributes):
    """One node: input x, constants after it."""
    names = ["x", *(c.name for c in constants)]
    made = node(op, names, ["y"], name="n", **attributes)
    return b.model([made], [value("x", shape)], [value("y", None)], constants, opset=opset)


def _numbers(name: str, *numbers: int) -> onnx.TensorProto:
    return tensor(name, b.INT64, [len(numbers)], numbers)


def _dequantize(x, scale, zero, kind=I8, zero_kind=I8, opset=21, **attributes):
    count = 1
    for size in x:
        count *= size
    constants = [tensor("q", kind, x, [0] * count), b.weights("s", scale)]
    if zero is not None:
        total = 1
        for size in zero:
            total *= size
        constants.append(tensor("z", zero_kind, zero, [0] * total))
    names = ["q", "s", "z"][: len(constants)]
    nodes = [
        node("DequantizeLinear", names, ["d"], **attributes),
        node("Relu", ["d"], ["y"]),
    ]
    return b.model(nodes, [], [value("y", None)], constants, opset=opset, ir=10)


def _quantizers():
    x = (4, 6)
    return {
        "dq fine": ("accept", lambda: _dequantize(x, (4,), (4,), axis=0)),
        "dq fine, per tensor": ("accept", lambda: _dequantize(x, (), ())),
        "dq fine, blocks": ("accept", lambda: _dequantize(x, (4, 3), (4, 3), axis=1, block_size=2)),
        "dq axis 2": ("reject", lambda: _dequantize(x, (4,), (4,), axis=2)),
        "dq axis -3": ("reject", lambda: _dequantize(x, (4,), (4,), axis=-3)),
        "dq axis 2^40": ("reject", lambda: _dequantize(x, (4,), (4,), axis=1 << 40)),
        "dq scale count": ("reject", lambda: _dequantize(x, (5,), (5,), axis=0)),
        "dq scale of the other axis": ("reject", lambda: _dequantize(x, (6,), (6,), axis=0)),
        "dq zero point count": ("reject", lambda: _dequantize(x, (4,), (3,), axis=0)),
        "dq zero point scalar": ("reject", lambda: _dequantize(x, (4,), (), axis=0)),
        "dq zero point type": ("reject", lambda: _dequantize(x, (4,), (4,), I8, U8, axis=0)),
        "dq blocks do not fit": (
            "reject",
            lambda: _dequantize(x, (4, 2), (4, 2), axis=1, block_size=2),
        ),
        "dq block -1": ("reject", lambda: _dequantize(x, (4,), (4,), axis=0, block_size=-1)),
        "dq block of 2^40": (
            "reject",
            lambda: _dequantize(x, (4, 3), (4, 3), axis=1, block_size=1 << 40),
        ),
        "dq opset 10 with many scales": (
            "reject",
            lambda: _dequantize(x, (4,), (4,), opset=10),
        ),
        "dq of floats": ("reject", lambda: _dequantize(x, (), None, b.FLOAT)),
        "q axis 5": ("reject", lambda: _quantize(axis=5)),
        "q scale count": ("reject", lambda: _quantize(axis=1)),
        "q fine": ("accept", lambda: _quantize(axis=0)),
    }


def _quantize(axis: int) -> onnx.ModelProto:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis)]
    constants = [b.weights("s", (4,)), tensor("z", I8, (4,), [0] * 4)]
    return b.model(nodes, [value("x", (4, 6))], [value("y", None, I8)], constants)


def _gemm(a, w, c, **attributes):
    constants = [b.weights("w", w)] + ([b.weights("c", c)] if c is not None else [])
    return _one("Gemm", a, *constants, **attributes)


def _norm(*sizes: int) -> onnx.ModelProto:
    names = ("s", "o", "m", "v")
    constants = [b.weights(n, (size,)) for n, size in zip(names, sizes, strict=True)]
    return _one("BatchNormalization", (1, 4, 5, 5), *constants)


def _recurrent(op: str, gates: int, hidden: int = 5, **changes) -> onnx.ModelProto:
    shapes = {"W": (1, gates * hidden, 3), "R": (1, gates * hidden, hidden)} | changes.pop("at", {})
    constants = [b.weights(name, shape) for name, shape in shapes.items()]
    settings = {"hidden_size": hidden} | changes
    made = node(op, ["x", "W", "R"], ["y"], **settings)
    return b.model([made], [value("x", (7, 2, 3))], [value("y", None)], constants)


def _others():
    x = (2, 3)
    reject = {
        "gemm of rank 3": lambda: _gemm((1, 2, 3), (3, 4), None),
        "gemm weights of rank 1": lambda: _gemm(x, (3,), None),
        "gemm inner sizes": lambda: _gemm(x, (4, 4), None),
        "gemm transposed sizes": lambda: _gemm(x, (3, 4), None, transB=1),
        "gemm bias": lambda: _gemm(x, (3, 4), (5,)),
        "gemm bias of rank 3": lambda: _gemm(x, (3, 4), (1, 2, 4)),
        "matmul inner sizes": lambda: b.matmul(b.weights("w", (4, 3))),
        "matmul with a scalar": lambda: b.matmul(b.weights("w", ())),
        "batch norm scale": lambda: _norm(5, 4, 4, 4),
        "batch norm variance": lambda: _norm(4, 4, 4, 3),
        "perm too short": lambda: _one("Transpose", x, perm=[0]),
        "perm twice": lambda: _one("Transpose", x, perm=[0, 0]),
        "perm beyond": lambda: _one("Transpose", x, perm=[0, 2]),
        "perm negative": lambda: _one("Transpose", x, perm=[0, -1]),
        "perm of 2^40": lambda: _one("Transpose", x, perm=[0, 1 << 40]),
        "reshape to two -1": lambda: _one("Reshape", x, _numbers("s", -1, -1)),
        "reshape to -2": lambda: _one("Reshape", x, _numbers("s", -2)),
        "reshape to more": lambda: _one("Reshape", x, _numbers("s", 7)),
        "reshape to a remainder": lambda: _one("Reshape", x, _numbers("s", 4, -1)),
        "reshape copies nothing": lambda: _one("Reshape", x, _numbers("s", 2, 3, 0)),
        "reshape to 2^62": lambda: _one("Reshape", x, _numbers("s", 1 << 62, 1 << 62)),
        "concat axis": lambda: _one("Concat", x, b.weights("w", x), axis=2),
        "concat axis 2^40": lambda: _one("Concat", x, b.weights("w", x), axis=1 << 40),
        "concat sizes": lambda: _one("Concat", x, b.weights("w", (4, 5)), axis=0),
        "split sizes": lambda: _split([1, 3]),
        "split negative": lambda: _split([3, -1]),
        "gather axis": lambda: _one("Gather", x, _numbers("i", 0), axis=2),
        "softmax axis": lambda: _one("Softmax", x, axis=7),
        "flatten axis": lambda: _one("Flatten", x, axis=3),
        "squeeze axes": lambda: _one("Squeeze", x, _numbers("a", 5)),
        "unsqueeze axes twice": lambda: _one("Unsqueeze", x, _numbers("a", 0, 0)),
        "unsqueeze axis": lambda: _one("Unsqueeze", x, _numbers("a", 9)),
        "reduce axes": lambda: _one("ReduceMean", x, axes=[4], opset=13),
        "slice step 0": lambda: _one(
            "Slice",
            x,
            _numbers("a", 0),
            _numbers("b", 1),
            _numbers("c", 0),
            _numbers("d", 0),
        ),
        "slice lengths": lambda: _one("Slice", x, _numbers("a", 0), _numbers("b", 1, 2)),
        "pad counts": lambda: _one("Pad", x, _numbers("p", 1, 1)),
        "expand negative": lambda: _one("Expand", x, _numbers("s", -2, 3)),
        "tile counts": lambda: _one("Tile", x, _numbers("s", 2)),
        "tile negative": lambda: _one("Tile", x, _numbers("s", 2, -2)),
        "constant of shape": lambda: _filled([-1], [1]),
        "constant of two values": lambda: _filled([2], [2]),
        "cast to 99": lambda: _one("Cast", x, to=99),
        "cast to 0": lambda: _one("Cast", x, to=0),
        "depth to space 0": lambda: _one("DepthToSpace", (1, 4, 2, 2), blocksize=0),
        "depth to space 3": lambda: _one("DepthToSpace", (1, 4, 2, 2), blocksize=3),
        "add shapes": lambda: _one("Add", x, b.weights("w", (4, 5))),
        "lstm direction": lambda: _recurrent("LSTM", 4, direction="sideways"),
        "lstm hidden size": lambda: _recurrent("LSTM", 4, hidden_size=6),
        "lstm hidden 2^40": lambda: _recurrent("LSTM", 4, hidden_size=1 << 40),
        "lstm gates": lambda: _recurrent("LSTM", 3),
        "gru input": lambda: _recurrent("GRU", 3, at={"W": (1, 15, 4)}),
        "gru directions": lambda: _recurrent("GRU", 3, direction="bidirectional"),
    }
    cases = {name: ("reject", build) for name, build in reject.items()}
    cases["gemm fine"] = ("accept", lambda: _gemm(x, (4, 3), (4,), transB=1))
    cases["reshape fine"] = ("accept", lambda: _one("Reshape", x, _numbers("s", 0, -1)))
    cases["lstm fine"] = ("accept", lambda: _recurrent("LSTM", 4))
    cases["gather index beyond"] = ("either", lambda: _one("Gather", x, _numbers("i", 99)))
    cases["layer norm axis"] = (
        "reject",
        lambda: _one("LayerNormalization", x, b.weights("s", (3,)), axis=5),
    )
    return cases


def _split(sizes: list[int]) -> onnx.ModelProto:
    made = node("Split", ["x", "s"], ["y", "z"], axis=1)
    outputs = [value("y", None), value("z", None)]
    return b.model([made], [value("x")], outputs, [_numbers("s", *sizes)])


def _filled(shape: list[int], dims: list[int]) -> onnx.ModelProto:
    content = tensor("v", b.FLOAT, dims, [1.0] * dims[0])
    nodes = [node("ConstantOfShape", ["s"], ["y"], value=content)]
    return b.model(nodes, [], [value("y", None)], [_numbers("s", *shape)])
