"""More blocks of random networks: what is rarer, from detectors, transformers and speech."""

from __future__ import annotations

import numpy as np
from coupling_models import Block, Flow, Net
from onnx import TensorProto

# maps


def glued(net: Net, x: Flow) -> Flow:
    """A gated linear unit on channels."""
    a, b = net.halves(net.conv(x, 16))
    return net.add(a, Flow(net.op("Sigmoid", b.name), b.shape), "Mul")


def cascaded(net: Net, x: Flow) -> Flow:
    """Four parts, each of which gets the one before (Res2Net)."""
    sizes = [net.integers(4, 4, 4, 4)]
    parts = net.op("Split", net.block(x, 16).name, *sizes, outputs=4, axis=1)
    flows = [Flow(part, (4, *x.shape[1:])) for part in parts]
    done = [flows[0], net.block(flows[1], 4)]
    for flow in flows[2:]:
        done.append(net.block(net.add(flow, done[-1]), 4))
    return net.concat(*done)


def stepped(net: Net, x: Flow) -> Flow:
    """Every other channel, or all of them from the last to the first."""
    c, *rest = x.shape
    step = net.pick([2, -1, -2])
    ends = (0, c) if step > 0 else (-1, -(1 << 31))
    operands = [net.integers(n) for n in (ends[0], ends[1], 1, step)]
    return Flow(net.op("Slice", x.name, *operands), (-(-c // abs(step)), *rest))


def cropped(net: Net, x: Flow) -> Flow:
    """Channels taken away by negative padding, and others put on."""
    c, *rest = x.shape
    pads = net.integers(0, -3, 0, 0, 0, 1, 0, 0)
    return Flow(net.op("Pad", x.name, pads, net.constant(0.5)), (c - 2, *rest))


def repeated(net: Net, x: Flow) -> Flow:
    """All channels twice."""
    c, *rest = x.shape
    if c > 32:
        return x
    return Flow(net.op("Tile", x.name, net.integers(1, 2, 1, 1)), (2 * c, *rest))


def unit_length(net: Net, x: Flow) -> Flow:
    """Channels divided by their length."""
    norm = net.op("ReduceL2", x.name, *_axes(net, 1), **_attribute(net, 1))
    return Flow(net.op("Div", x.name, net.op("Add", norm, net.constant(0.1))), x.shape)


def _axes(net: Net, *axes: int) -> list[str]:
    return [net.integers(*axes)] if net.opset >= 18 else []


def _attribute(net: Net, *axes: int) -> dict[str, list[int]]:
    return {} if net.opset >= 18 else {"axes": list(axes)}


def chosen(net: Net, x: Flow) -> Flow:
    """The input where it is greater than a threshold per channel, else another map."""
    threshold = net.constant(net.rng.uniform(-0.5, 0.5, (x.shape[0], 1, 1)))
    flag = net.op("Greater", x.name, threshold)
    return Flow(net.op("Where", flag, x.name, net.conv(x, x.shape[0]).name), x.shape)


def channel_normed(net: Net, x: Flow) -> Flow:
    """Layer normalization of channels that come first."""
    centred = net.op("Sub", x.name, net.mean(x.name, [1]))
    power = net.mean(net.op("Pow", centred, net.constant(2.0)), [1])
    y = net.op("Div", centred, net.op("Sqrt", net.op("Add", power, net.constant(1e-6))))
    scale = net.constant(net.rng.uniform(0.5, 1.5, (1, x.shape[0], 1, 1)))
    return Flow(net.op("Add", net.op("Mul", y, scale), scale), x.shape)


def responded(net: Net, x: Flow) -> Flow:
    """Global response normalization."""
    norm = net.op("ReduceL2", x.name, *_axes(net, 2, 3), **_attribute(net, 2, 3))
    mean = net.op("Add", net.mean(norm, [1]), net.constant(1e-3))
    y = net.op("Mul", x.name, net.op("Div", norm, mean))
    gamma = net.constant(net.rng.uniform(0.1, 0.5, (1, x.shape[0], 1, 1)))
    return Flow(net.op("Add", net.op("Mul", y, gamma), x.name), x.shape)


def placed(net: Net, x: Flow) -> Flow:
    """Positions added, for all channels or for each one."""
    shape = net.pick([x.shape, (1, *x.shape), (1, x.shape[0], 1, 1), x.shape[1:]])
    table = net.constant(net.rng.standard_normal(shape) * 0.3)
    return Flow(net.op("Add", table, x.name), x.shape)


def windowed(net: Net, x: Flow) -> Flow:
    """Windows of two by two, mixed and put back."""
    c, h, w = x.shape
    if h % 2 or h < 2:
        return x
    y = net.reshape(x, (c, h // 2, 2, w // 2, 2))
    y = net.reshape(net.transpose(y, 2, 4, 3, 5, 1), (h * w // 4, 4, c))
    y = net.dense(net.act(net.dense(y, 24)), c)
    y = net.transpose(net.reshape(y, (h // 2, w // 2, 2, 2, c)), 5, 1, 3, 2, 4)
    return net.add(x, net.reshape(y, (c, h, w)))


def quantized(net: Net, x: Flow) -> Flow:
    """A convolution between QuantizeLinear and DequantizeLinear, weights by channel."""
    out = 16
    if net.opset < 13:
        return net.conv(x, out)
    scale, zero = net.constant(0.05), net.constant(128, np.uint8)
    q = net.op("QuantizeLinear", x.name, scale, zero)
    y = net.op("DequantizeLinear", q, scale, zero)
    weight = net.constant(net.rng.integers(-90, 90, (out, x.shape[0], 3, 3)), np.int8)
    scales = net.constant(net.rng.uniform(0.001, 0.003, out))
    zeros = net.constant(np.zeros(out), np.int8)
    w = net.op("DequantizeLinear", weight, scales, zeros, axis=0)
    name = net.op("Conv", y, w, net.vector(out), pads=[1] * 4)
    return Flow(net.op("Relu", name), (out, *x.shape[1:]))


def casted(net: Net, x: Flow) -> Flow:
    """Through double and back."""
    y = net.op("Cast", x.name, to=TensorProto.DOUBLE)
    y = net.op("Tanh", net.op("Mul", y, net.constant(0.7, np.float64)))
    return Flow(net.op("Cast", y, to=TensorProto.FLOAT), x.shape)


def scaled_by_size(net: Net, x: Flow) -> Flow:
    """Divided by the root of the number of channels, which is computed."""
    size = net.op("Gather", net.op("Shape", x.name), net.constant(1, np.int64), axis=0)
    root = net.op("Sqrt", net.op("Cast", size, to=TensorProto.FLOAT))
    return Flow(net.op("Div", x.name, root), x.shape)


# sequences


def mixed(net: Net, x: Flow) -> Flow:
    """A perceptron over positions, then one over features."""
    length, _d = x.shape
    y = net.transpose(net.layer_norm(x), 2, 1)
    y = net.dense(net.act(net.dense(y, 12)), length)
    return net.add(x, net.transpose(y, 2, 1))


def from_the_left(net: Net, x: Flow) -> Flow:
    """A matrix from the left."""
    length, _d = x.shape
    weight = net.constant(net.rng.standard_normal((length, length)) / np.sqrt(length))
    return Flow(net.op("MatMul", weight, x.name), x.shape)


def summed(net: Net, x: Flow) -> Flow:
    """A product written with letters."""
    if net.opset < 12:
        return x
    d, out = x.shape[-1], 16
    weight = net.constant(net.rng.standard_normal((d, out)) / np.sqrt(d))
    return Flow(net.op("Einsum", x.name, weight, equation="btd,df->btf"), (x.shape[0], out))


def _heads(net: Net, x: Flow, heads: int, size: int) -> Flow:
    flow = net.reshape(net.dense(x, heads * size), (x.shape[0], heads, size))
    return net.transpose(flow, 2, 1, 3)


def few_keys(net: Net, x: Flow) -> Flow:
    """Attention whose keys and values are shared by two heads each."""
    length, _d = x.shape
    heads, size = 4, 4
    q = _heads(net, x, heads, size)
    shared = []
    for _ in range(2):
        part = _heads(net, x, heads // 2, size)
        wide = net.op("Unsqueeze", part.name, net.integers(2))
        wide = net.op("Expand", wide, net.integers(1, heads // 2, 2, length, size))
        shared.append(net.reshape(Flow(wide, (2, 2, length, size)), (heads, length, size)))
    k, v = shared
    return _attend(net, x, q, k, v)


def rotated(net: Net, x: Flow) -> Flow:
    """Attention with rotary positions."""
    length, size = x.shape[0], 8
    parts = [_heads(net, x, 2, size) for _ in range(3)]
    angles = net.rng.uniform(0, 3, (length, size // 2))
    table = [
        net.constant(np.concatenate([f(angles), f(angles)], axis=-1)) for f in (np.cos, np.sin)
    ]
    turned = [_rotate(net, part, *table) for part in parts[:2]]
    return _attend(net, x, *turned, parts[2])


def _rotate(net: Net, x: Flow, cos: str, sin: str) -> Flow:
    half = x.shape[-1] // 2
    ends = [net.integers(n) for n in (0, half, 2 * half, -1)]
    low = net.op("Slice", x.name, ends[0], ends[1], ends[3])
    high = net.op("Slice", x.name, ends[1], ends[2], ends[3])
    turned = net.op("Concat", net.op("Neg", high), low, axis=-1)
    return Flow(net.op("Add", net.op("Mul", x.name, cos), net.op("Mul", turned, sin)), x.shape)


def _attend(net: Net, x: Flow, q: Flow, k: Flow, v: Flow) -> Flow:
    heads, length, size = q.shape
    turned = net.transpose(k, 1, 3, 2)
    scores = net.op("Div", net.op("MatMul", q.name, turned.name), net.constant(np.sqrt(size)))
    y = Flow(net.op("MatMul", net.op("Softmax", scores, axis=-1), v.name), v.shape)
    y = net.reshape(net.transpose(y, 2, 1, 3), (length, heads * size))
    return net.add(x, net.dense(y, x.shape[-1]))


def merged_heads(net: Net, x: Flow) -> Flow:
    """Attention with batch and heads on one axis, whose size is computed."""
    length, d = x.shape
    heads, size = 2, 8
    sizes = net.op("Shape", x.name)
    batch = net.op("Slice", sizes, net.integers(0), net.integers(1))
    many = net.op("Mul", batch, net.integers(heads))
    target = net.op("Concat", many, net.integers(length, size), axis=0)
    parts = [net.op("Reshape", _heads(net, x, heads, size).name, target) for _ in range(3)]
    turned = net.op("Transpose", parts[1], perm=[0, 2, 1])
    scores = net.op("Softmax", net.op("MatMul", parts[0], turned), axis=-1)
    y = net.op("MatMul", scores, parts[2])
    back = net.op("Concat", batch, net.integers(heads, length, size), axis=0)
    flow = Flow(net.op("Reshape", y, back), (heads, length, size))
    flow = net.reshape(net.transpose(flow, 2, 1, 3), (length, heads * size))
    return net.add(x, net.dense(flow, d))


def statistics(net: Net, x: Flow) -> Flow:
    """Mean and spread over positions beside every position."""
    mean = net.mean(x.name, [1])
    centred = net.op("Sub", x.name, mean)
    spread = net.op("Sqrt", net.op("Add", net.mean(net.op("Mul", centred, centred), [1]),
                                   net.constant(1e-3)))  # fmt: skip
    wide = [net.op("Mul", x.name, mean), net.op("Div", x.name, spread), x.name]
    return Flow(net.op("Concat", *wide, axis=2), (x.shape[0], 3 * x.shape[1]))


def pooled_by_attention(net: Net, x: Flow) -> Flow:
    """Every position plus the sum of all, weighted by a softmax over positions."""
    scores = net.op("Softmax", net.dense(x, 1).name, axis=1)
    whole = net.mean(net.op("Mul", scores, x.name), [1], kind="Sum")
    return Flow(net.op("Add", x.name, whole), x.shape)


def convolved(net: Net, x: Flow) -> Flow:
    """A convolution along positions, by channel, between two transpositions."""
    _length, d = x.shape
    turned = net.op("Transpose", x.name, perm=[0, 2, 1])
    weight = net.constant(net.rng.standard_normal((d, 1, 3)) * 0.5)
    y = net.op("Conv", turned, weight, net.vector(d), group=d, pads=[1, 1])
    return Flow(net.op("Transpose", y, perm=[0, 2, 1]), x.shape)


def root_mean_square(net: Net, x: Flow) -> Flow:
    """RMS normalization in its parts."""
    power = net.mean(net.op("Pow", x.name, net.constant(2.0)), [-1])
    root = net.op("Sqrt", net.op("Add", power, net.constant(1e-5)))
    y = net.op("Mul", x.name, net.op("Reciprocal", root))
    return Flow(net.op("Mul", net.vector(x.shape[-1]), y), x.shape)


MORE_MAPS: tuple[Block, ...] = (
    glued, cascaded, stepped, cropped, repeated, unit_length, chosen, channel_normed, responded,
    placed, windowed, quantized, casted, scaled_by_size,
)  # fmt: skip
MORE_SEQUENCES: tuple[Block, ...] = (
    mixed, from_the_left, summed, few_keys, rotated, merged_heads, statistics, pooled_by_attention,
    convolved, root_mean_square,
)  # fmt: skip
