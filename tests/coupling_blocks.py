"""Blocks of random networks: one function per way in which networks couple channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from coupling_models import Block, Flow, Net


def _up(net: Net, least: int = 8) -> int:
    """Return a number of channels that every block can work with."""
    return least * int(net.rng.integers(1, 4))


# maps


def plain(net: Net, x: Flow) -> Flow:
    """One convolution."""
    stride = 2 if x.shape[1] >= 8 and net.rng.random() < 0.3 else 1
    return net.block(x, _up(net), net.pick([1, 3]), stride=stride)


def residual(net: Net, x: Flow) -> Flow:
    """Two convolutions around which the input goes."""
    y = net.norm(net.conv(net.block(x, _up(net)), x.shape[0]))
    return net.act(net.add(x, y))


def padded_shortcut(net: Net, x: Flow) -> Flow:
    """A shortcut that is padded with channels of zeros."""
    c, more = x.shape[0], 8
    pads = net.integers(0, more // 2, 0, 0, 0, more // 2, 0, 0)
    wide = Flow(net.op("Pad", x.name, pads), (c + more, *x.shape[1:]))
    return net.add(wide, net.conv(x, c + more))


def densely(net: Net, x: Flow) -> Flow:
    """Everything before is read again."""
    a = net.block(x, 8)
    b = net.block(net.concat(x, a), 16)
    return net.concat(b, a) if net.rng.random() < 0.5 else net.concat(a, a, b)


def partial(net: Net, x: Flow) -> Flow:
    """Half of the channels are worked on."""
    a, b = net.halves(x)
    c = net.add(net.block(b, b.shape[0]), b)
    return net.concat(a, b, c) if net.rng.random() < 0.5 else net.concat(c, a)


def inverted(net: Net, x: Flow) -> Flow:
    """Wide, by channel, narrow."""
    y = net.block(x, 2 * x.shape[0], 1)
    y = net.block(y, y.shape[0], group=y.shape[0])
    return net.add(x, net.norm(net.conv(y, x.shape[0], 1)))


def multiplied(net: Net, x: Flow) -> Flow:
    """Two outputs for every channel."""
    return net.block(x, 2 * x.shape[0], group=x.shape[0]) if x.shape[0] <= 32 else plain(net, x)


def grouped(net: Net, x: Flow) -> Flow:
    """Convolution in groups."""
    return net.block(x, _up(net), group=net.pick([2, 4]))


def shuffled(net: Net, x: Flow) -> Flow:
    """Channels change groups between two grouped convolutions."""
    y = net.block(x, 16, 1, group=2)
    c, h, w = y.shape
    y = net.reshape(y, (2, c // 2, h, w))
    y = net.reshape(net.transpose(y, 2, 1, 3, 4), (c, h, w))
    return net.block(y, 16, 1, group=2)


def gated(net: Net, x: Flow) -> Flow:
    """Squeeze and excitation, in one of several forms."""
    c = x.shape[0]
    if net.rng.random() < 0.5:
        s = Flow(net.op("GlobalAveragePool", x.name), (c, 1, 1))
        s = net.conv(net.act(net.conv(s, 8, 1)), c, 1)
    else:
        s = Flow(net.mean(x.name, [2, 3], keep=0), (c,))
        s = net.dense(net.act(net.dense(s, 8)), c)
        s = net.reshape(s, (c, 1, 1))
    gate = net.op("Sigmoid", s.name)
    if net.rng.random() < 0.3:
        gate = net.op("Expand", gate, net.integers(1, c, *x.shape[1:]))
    return Flow(net.op("Mul", x.name, gate), x.shape)


def crossed(net: Net, x: Flow) -> Flow:
    """Two branches multiplied, or the greater of the two."""
    a, b = net.conv(x, 16), net.conv(x, 16, 1)
    b = Flow(net.op("Sigmoid", b.name), b.shape)
    return net.add(a, b, net.pick(["Mul", "Max", "Sub", "Add"]))


def attended(net: Net, x: Flow) -> Flow:
    """A gate from the mean and the greatest over all channels."""
    mean = net.mean(x.name, [1])
    most = net.mean(x.name, [1], kind="Max")
    both = Flow(net.op("Concat", mean, most, axis=1), (2, *x.shape[1:]))
    gate = net.op("Sigmoid", net.conv(both, 1).name)
    return Flow(net.op("Mul", x.name, gate), x.shape)


def pooled(net: Net, x: Flow) -> Flow:
    """Any pooling by two."""
    if x.shape[1] < 4:
        return x
    kind = net.pick(["MaxPool", "AveragePool"])
    name = net.op(kind, x.name, kernel_shape=[2, 2], strides=[2, 2])
    return Flow(name, (x.shape[0], x.shape[1] // 2, x.shape[2] // 2))


def enlarged(net: Net, x: Flow) -> Flow:
    """Twice as large: resized, transposed convolution, or channels turned into pixels."""
    c, h, w = x.shape
    if h > 8:
        return x
    shape = (c, 2 * h, 2 * w)
    way = net.rng.integers(5)
    region = "" if net.opset >= 13 else net.constant([])
    if way == 0:
        scales = net.constant([1, 1, 2, 2])
        return Flow(net.op("Resize", x.name, region, scales, mode="nearest"), shape)
    if way == 1:
        sizes = net.op("Shape", x.name)
        front = net.op("Slice", sizes, net.integers(0), net.integers(2))
        sizes = net.op("Concat", front, net.integers(2 * h, 2 * w), axis=0)
        return Flow(net.op("Resize", x.name, region, region, sizes, mode="nearest"), shape)
    if way == 2:
        weight = net.constant(net.rng.standard_normal((c, 16, 2, 2)) / np.sqrt(c))
        name = net.op("ConvTranspose", x.name, weight, net.vector(16), strides=[2, 2])
        return Flow(name, (16, *shape[1:]))
    if way == 3:
        mode = net.pick(["DCR", "CRD"])
        y = net.conv(x, 32)
        return Flow(net.op("DepthToSpace", y.name, blocksize=2, mode=mode), (8, *shape[1:]))
    y = net.reshape(net.conv(x, 32), (8, 2, 2, h, w))
    return net.reshape(net.transpose(y, 1, 4, 2, 5, 3), (8, 2 * h, 2 * w))


def packed(net: Net, x: Flow) -> Flow:
    """Pixels turned into channels."""
    c, h, w = x.shape
    if h < 4 or h % 2 or c > 16:
        return x
    y = Flow(net.op("SpaceToDepth", x.name, blocksize=2), (4 * c, h // 2, w // 2))
    return net.block(y, 16, 1)


def group_normed(net: Net, x: Flow) -> Flow:
    """Group normalization, as one operator or by way of instances."""
    c, h, w = x.shape
    groups = net.pick([2, 4])
    if c % groups:
        return x
    if net.opset >= 21:
        vectors = (net.vector(c), net.vector(c))
        return Flow(net.op("GroupNormalization", x.name, *vectors, num_groups=groups), x.shape)
    flat = net.op("Reshape", x.name, net.integers(0, groups, -1))
    ones, zeros = net.constant(np.ones(groups)), net.constant(np.zeros(groups))
    normal = net.op("InstanceNormalization", flat, ones, zeros)
    back = net.op("Reshape", normal, net.integers(0, c, h, w))
    scale = net.constant(net.rng.uniform(0.5, 1.5, (c, 1, 1)))
    return Flow(net.op("Add", net.op("Mul", back, scale), scale), x.shape)


def instance_normed(net: Net, x: Flow) -> Flow:
    """Instance normalization."""
    c = x.shape[0]
    return Flow(net.op("InstanceNormalization", x.name, net.vector(c), net.vector(c)), x.shape)


def modern(net: Net, x: Flow) -> Flow:
    """By channel, then a perceptron on the last axis."""
    c = x.shape[0]
    y = net.transpose(net.conv(x, c, group=c), 2, 3, 1)
    y = net.dense(net.act(net.dense(net.layer_norm(y), 2 * c)), c)
    y = Flow(net.op("Mul", y.name, net.vector(c)), y.shape)
    return net.add(x, net.transpose(y, 3, 1, 2))


def shared(net: Net, x: Flow) -> Flow:
    """One convolution twice."""
    c = x.shape[0]
    weight, bias = net.weight(c, c, 3, 3), net.vector(c)
    for _ in range(2):
        name = net.op("Relu", net.op("Conv", x.name, weight, bias, pads=[1] * 4))
        x = Flow(name, x.shape)
    return x


# vectors and sequences


def perceptron(net: Net, x: Flow) -> Flow:
    """One layer, perhaps with a way around."""
    y = net.act(net.dense(x, _up(net)))
    return net.add(x, net.dense(y, x.shape[-1])) if net.rng.random() < 0.5 else y


def normed(net: Net, x: Flow) -> Flow:
    """Layer normalization."""
    return net.layer_norm(x)


def attention(net: Net, x: Flow) -> Flow:
    """Self-attention with queries, keys and values apart or from one product."""
    length, d = x.shape
    heads, size = 4, net.pick([4, 8])
    wide, y = heads * size, net.layer_norm(x)
    if net.rng.random() < 0.5:
        parts = [net.reshape(net.dense(y, wide), (length, heads, size)) for _ in range(3)]
        q, k, v = (net.transpose(part, 2, 1, 3) for part in parts)
    else:
        whole = net.reshape(net.dense(y, 3 * wide), (length, 3, heads, size))
        whole = Flow(net.op("Transpose", whole.name, perm=[2, 0, 3, 1, 4]), ())
        shape = (heads, length, size)
        picked = [net.op("Gather", whole.name, net.constant(i, np.int64), axis=0) for i in range(3)]
        q, k, v = (Flow(name, shape) for name in picked)
    turned = net.transpose(k, 1, 3, 2)
    scores = net.op("MatMul", q.name, turned.name)
    scores = net.op("Mul", scores, net.constant(size**-0.5))
    mixed = Flow(net.op("MatMul", net.op("Softmax", scores, axis=-1), v.name), v.shape)
    joined = net.reshape(net.transpose(mixed, 2, 1, 3), (length, wide))
    return net.add(x, net.dense(joined, d))


def glu(net: Net, x: Flow) -> Flow:
    """A gated perceptron of transformers."""
    wide = _up(net)
    a, b = net.dense(x, wide), net.dense(x, wide)
    y = net.add(net.act(a), b, "Mul")
    return net.add(x, net.dense(y, x.shape[-1]))


def recurrent(net: Net, x: Flow) -> Flow:
    """A recurrent layer, perhaps in both directions."""
    length, d = x.shape
    hidden, gates = _up(net), {"LSTM": 4, "GRU": 3, "RNN": 1}
    kind = net.pick(list(gates))
    ways = int(net.rng.integers(1, 3))
    rows = gates[kind] * hidden
    weights = (
        net.constant(net.rng.standard_normal((ways, rows, d)) / np.sqrt(d)),
        net.constant(net.rng.standard_normal((ways, rows, hidden)) / np.sqrt(hidden)),
        net.constant(net.rng.standard_normal((ways, 2 * rows)) * 0.1),
    )
    turned = net.op("Transpose", x.name, perm=[1, 0, 2])
    direction = "forward" if ways == 1 else "bidirectional"
    extra: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    y = net.op(kind, turned, *weights, hidden_size=hidden, direction=direction, **extra)
    if ways == 1:
        y = net.op("Squeeze", y, net.integers(1))
        y = net.op("Transpose", y, perm=[1, 0, 2])
    else:
        y = net.op("Transpose", y, perm=[2, 0, 1, 3])
        y = net.op("Reshape", y, net.integers(0, 0, -1))
    return Flow(y, (length, ways * hidden))


MAPS: tuple[Block, ...] = (
    plain, residual, padded_shortcut, densely, partial, inverted, multiplied, grouped, shuffled,
    gated, crossed, attended, pooled, enlarged, packed, group_normed, instance_normed, modern,
    shared,
)  # fmt: skip
SEQUENCES: tuple[Block, ...] = (perceptron, normed, attention, glu, recurrent)
VECTORS: tuple[Block, ...] = (perceptron, normed, glu)
