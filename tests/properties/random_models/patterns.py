"""Steps that write layers as exporters do, with small deviations that must not be fused."""

from __future__ import annotations

import numpy as np
from properties.random_models.builder import BOOL, F32, I64, U8, Builder, Tensor


def matmul(b: Builder) -> None:
    """MatMul with a weight, with bias, scale, a second one, or batched on both sides."""
    x = b.pick(lambda v: v.dtype == F32 and v.rank >= 2 and isinstance(v.dims[-1], int))
    if x is None or not x.dims[-1]:
        return
    for _ in range(b.choose((1, 1, 2))):
        size = int(x.dims[-1])
        width = b.choose((size, 3, 4))
        weight = b.weights(size, width, scale=size**-0.5)
        w: str | Tensor = b.constant(weight)
        if b.chance(0.25):
            w = b.node("Transpose", [b.constant(weight.T)], (F32, (size, width)), perm=[1, 0])
        x = b.node("MatMul", [x, w], (F32, (*x.dims[:-1], width)))
        for op in b.choose(((), ("Add",), ("Add", "Mul"), ("Mul",), ("Add", "Add"), ("Sub",))):
            array = b.weights(width) if b.chance(0.8) else b.weights(1, 1)
            inputs: list[str | Tensor] = [x, b.constant(array)]
            b.random.shuffle(inputs)
            x = b.node(op, inputs, x)
        x = _maybe_public(b, x)


def _maybe_public(b: Builder, x: Tensor) -> Tensor:
    """Let something else read the value too, which forbids most fusions."""
    if b.chance(0.15):
        b.node("Identity", [x], x)
    return x


def gemm(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype == F32 and v.rank == 2 and isinstance(v.dims[-1], int))
    if x is None or not x.dims[-1]:
        return
    size, width, turned = int(x.dims[-1]), b.choose((2, 4)), b.chance(0.5)
    w = b.constant(b.weights(*((width, size) if turned else (size, width)), scale=0.5))
    inputs = [x, w]
    if b.chance(0.7):
        shape = b.choose(((width,), (1, width), (1,), ()))
        inputs.append(b.constant(b.weights(*shape)))
    kw = {"transB": int(turned)} if turned or b.chance(0.5) else {}
    if b.chance(0.4):
        kw |= {"alpha": b.choose((1.0, 0.5, 0.0)), "beta": b.choose((1.0, 2.0, 0.0))}
    y = b.node("Gemm", inputs, (F32, (x.dims[0], width)), **kw)
    if b.chance(0.5):
        op = b.choose(("Add", "Mul", "Div"))
        b.node(op, [y, b.constant(np.abs(b.weights(width)) + 0.5)], y)
    if b.chance(0.3):
        _normalize(b, y, width)


def convolution(b: Builder) -> None:
    """[Pad] Conv [BatchNormalization | Add | Mul ...] [activation] in one or two dimensions."""
    x = b.pick(lambda v: v.dtype == F32 and v.rank in (3, 4) and isinstance(v.dims[1], int))
    if x is None or not x.dims[1]:
        return
    channels, spatial, width = int(x.dims[1]), x.rank - 2, b.choose((2, 4))
    kernel = b.choose((1, 3))
    if b.chance(0.3):
        ends = [b.choose((0, 1)) for _ in range(spatial)]
        dims = (*x.dims[:2], *(_plus(b, d, 2 * e) for d, e in zip(x.dims[2:], ends, strict=True)))
        inputs = [x, b.ints(0, 0, *ends, 0, 0, *ends)]
        if b.chance(0.4):
            inputs.append(b.constant(b.choose((0.0, 1.0))))
        x = b.node("Pad", inputs, (F32, dims))
    grouped = kernel == 3 and b.chance(0.3)
    width = channels if grouped else width
    weight = b.weights(width, 1 if grouped else channels, *([kernel] * spatial), scale=0.4)
    kw = {"group": channels} if grouped else {}
    transposed = not grouped and b.chance(0.15)
    weight = np.swapaxes(weight, 0, 1).copy() if transposed else weight
    inputs = [x, b.constant(weight)]
    if b.chance(0.5):
        inputs.append(b.constant(b.weights(width)))
    border = kernel // 2
    y = b.node(
        "ConvTranspose" if transposed else "Conv",
        inputs,
        (F32, (x.dims[0], width, *x.dims[2:])),
        kernel_shape=[kernel] * spatial,
        pads=[border] * (2 * spatial),
        **kw,
    )
    y = _maybe_public(b, y)
    for _ in range(b.choose((0, 1, 1, 2))):
        y = _after_convolution(b, y, width)


def _plus(b: Builder, size: int | str, more: int) -> int | str:
    if isinstance(size, int):
        return size + more
    return b.symbol() if more else size


def _after_convolution(b: Builder, y: Tensor, width: int) -> Tensor:
    kind = b.random.random()
    if kind < 0.45:
        return _normalize(b, y, width)
    if kind < 0.8:
        shape = b.choose(((width, *[1] * (y.rank - 2)), (1, width, *[1] * (y.rank - 2)), (1,), ()))
        array = b.weights(*shape) + (2 if b.chance(0.5) else 0)
        op = b.choose(("Add", "Mul", "Sub", "Div"))
        array = np.where(np.abs(array) < 0.1, 1, array).astype(np.float32)
        return b.node(op, [y, b.constant(array)], y)
    return b.node(b.choose(("Relu", "Sigmoid", "Clip")), [y], y)


def _normalize(b: Builder, y: Tensor, width: int) -> Tensor:
    scale = b.weights(width) + 1
    if b.chance(0.1):
        scale[0] = 0
    arrays = [scale, b.weights(width), b.weights(width), np.abs(b.weights(width)) + 0.3]
    names = [b.constant(array) for array in arrays]
    if b.chance(0.15):
        names[1] = names[2]
    return b.node("BatchNormalization", [y, *names], y, epsilon=b.choose((1e-5, 1e-3)))


def batch_norm(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype == F32 and v.rank >= 2 and isinstance(v.dims[1], int))
    if x is not None and x.dims[1]:
        _normalize(b, x, int(x.dims[1]))


def pooling(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype == F32 and v.rank == 4)
    if x is None:
        return
    op = b.choose(("GlobalAveragePool", "AveragePool", "MaxPool", "ReduceMean"))
    if op == "GlobalAveragePool":
        b.node(op, [x], (F32, (*x.dims[:2], 1, 1)))
    elif op == "ReduceMean":
        b.with_axes(op, x, b.choose(((2, 3), (-1, -2))), (*x.dims[:2], 1, 1), keepdims=1)
    else:
        shape = b.choose(([1, 1], [3, 3]))
        b.node(op, [x], x, kernel_shape=shape, pads=[shape[0] // 2] * 4)


def _last(b: Builder) -> tuple[Tensor | None, int]:
    x = b.pick(lambda v: v.dtype == F32 and v.rank >= 2 and isinstance(v.dims[-1], int))
    size = int(x.dims[-1]) if x is not None else 0
    return (x, size) if size > 1 else (None, 0)


def layer_norm(b: Builder) -> None:
    """Decomposed LayerNormalization, or RMS normalization, as exporters write them."""
    x, size = _last(b)
    if x is None:
        return
    one = (*x.dims[:-1], 1)
    centred = x
    if b.chance(0.6):
        centred = b.node("Sub", [x, b.with_axes("ReduceMean", x, [-1], one)], x)
    if b.chance(0.6):
        square = b.node("Pow", [centred, b.constant(2.0)], x)
    else:
        square = b.node("Mul", [centred, centred], x)
    mean = b.with_axes("ReduceMean", square, [-1], one)
    epsilon = b.constant(b.choose((1e-5, 1e-6, 1e-12, 0.1)))
    root = b.node("Sqrt", [b.node("Add", [mean, epsilon], mean)], mean)
    if b.chance(0.6):
        y = b.node("Div", [centred, root], x)
    else:
        y = b.node("Mul", [centred, b.node("Reciprocal", [root], root)], x)
    if b.chance(0.8):
        scale = b.constant(b.weights(b.choose((size, size, 1))))
        y = b.node("Mul", [scale, y] if b.chance(0.5) else [y, scale], y)
    if b.chance(0.6):
        b.node("Add", [y, b.constant(b.weights(size))], y)


def gelu(b: Builder) -> None:
    """x/2 (1 + erf(x/sqrt 2)), or with tanh; factors in any order, constants nearly right."""
    x = b.floats()
    if x is None:
        return
    root = b.constant(b.choose((2**0.5, 2**0.5, 2**0.5, 1.3)))
    if b.chance(0.5):
        inner = b.node("Erf", [b.node("Div", [x, root], x)], x)
    elif b.chance(0.5):
        scaled = b.node("Mul", [x, b.constant(0.5**0.5)], x)
        inner = b.node("Erf", [scaled], x)
    else:
        cube = b.node("Pow", [x, b.constant(3.0)], x)
        part = b.node("Add", [x, b.node("Mul", [cube, b.constant(0.044715)], x)], x)
        inner = b.node("Tanh", [b.node("Mul", [part, b.constant((2 / np.pi) ** 0.5)], x)], x)
    plus = b.node("Add", [inner, b.constant(b.choose((1.0, 1.0, 1.0, 0.9)))], x)
    half = b.constant(b.choose((0.5, 0.5, 0.5, 0.25)))
    if b.chance(0.5):
        b.node("Mul", [b.node("Mul", [x, half], x), plus], x)
    else:
        b.node("Mul", [b.node("Mul", [x, plus], x), half], x)


def activation(b: Builder) -> None:
    """HardSwish, SiLU, Mish, softplus, GLU-like products."""
    x = b.floats()
    if x is None:
        return
    kind = b.random.randrange(4)
    if kind == 0:
        three, six = b.constant(3.0), b.constant(6.0)
        y = b.node("Clip", [b.node("Add", [x, three], x), b.constant(0.0), six], x)
        if b.chance(0.5):
            b.node("Div", [b.node("Mul", [x, y], x), six], x)
        else:
            b.node("Mul", [x, b.node("Div", [y, six], x)], x)
    elif kind == 1:
        other = x if b.chance(0.7) else b.node("Relu", [x], x)
        b.node("Mul", [x, b.node("Sigmoid", [other], x)], x)
    elif kind == 2:
        b.node("Mul", [x, b.node("Tanh", [b.node("Softplus", [x], x)], x)], x)
    else:
        alpha, beta = b.choose((1 / 6, 0.2)), b.choose((0.5, 0.4))
        b.node("Mul", [b.node("HardSigmoid", [x], x, alpha=alpha, beta=beta), x], x)


def rectifier(b: Builder) -> None:
    """Relu, LeakyRelu, clips and squares in other words."""
    x = b.floats()
    if x is None:
        return
    kind, slope = b.random.randrange(6), b.choose((0.1, 0.01, 1.5, -0.2))
    if kind == 0:
        b.node("Max", [x, b.constant(b.choose((0.0, 0.0, -0.0, 1.0)))], x)
    elif kind == 1:
        scaled = b.node("Mul", [x, b.constant(slope)], x)
        b.node("Max", [x, scaled] if b.chance(0.5) else [scaled, x], x)
    elif kind == 2:
        positive = b.node("Greater", [x, b.constant(0.0)], (BOOL, x.dims))
        b.node("Where", [positive, x, b.node("Mul", [x, b.constant(slope)], x)], x)
    elif kind == 3:
        low = b.node("Max", [x, b.constant(b.choose((0.0, -1.0)))], x)
        b.node("Min", [low, b.constant(b.choose((1.0, 6.0, -2.0)))], x)
    elif kind == 4:
        b.node("Sqrt", [b.node("Mul", [x, x], x)], x)
    else:
        negative = b.node("Neg", [b.node("Relu", [b.node("Neg", [x], x)], x)], x)
        b.node("Add", [b.node("Relu", [x], x), negative], x)


def softmax(b: Builder) -> None:
    x, _ = _last(b)
    if x is None:
        return
    if b.chance(0.5):
        op = b.choose(("Softmax", "LogSoftmax"))
        y = b.node(op, [x], x, axis=b.choose((-1, x.rank - 1)))
        b.node(b.choose(("Log", "Exp", "Identity")), [y], x)
        return
    one = (*x.dims[:-1], 1)
    shifted = b.node("Sub", [x, b.with_axes("ReduceMax", x, [-1], one)], x)
    exp = b.node("Exp", [shifted], x)
    b.node("Div", [exp, b.with_axes("ReduceSum", exp, [-1], one)], x)


def attention(b: Builder) -> None:
    """Projections of one value, heads split and joined, scaled product, softmax."""
    x = b.pick(lambda v: v.dtype == F32 and v.rank == 3 and v.dims[-1] in (4, 8))
    if x is None:
        return
    batch, length, size = x.dims
    assert isinstance(size, int)
    split: list[Tensor] = []
    for place in range(3):
        y = b.node("MatMul", [x, b.constant(b.weights(size, size, scale=0.5))], x)
        y = b.node("Add", [y, b.constant(b.weights(size))], x)
        y = b.node("Reshape", [y, b.ints(0, 0, 2, size // 2)], (F32, (batch, length, 2, size // 2)))
        perm = [0, 2, 3, 1] if place == 1 else [0, 2, 1, 3]
        dims = tuple(y.dims[p] for p in perm)
        split.append(b.node("Transpose", [y], (F32, dims), perm=perm))
    q, k, v = split
    scores = b.node("MatMul", [q, k], (F32, (batch, 2, length, length)))
    scores = b.node(b.choose(("Div", "Mul")), [scores, b.constant((size / 2) ** 0.5)], scores)
    mixed = b.node("MatMul", [b.node("Softmax", [scores], scores, axis=-1), v], q)
    joined = b.node("Transpose", [mixed], (F32, (batch, length, 2, size // 2)), perm=[0, 2, 1, 3])
    b.node("Reshape", [joined, b.ints(0, 0, size)], x)


def quantized(b: Builder) -> None:
    """QuantizeLinear and back, sometimes twice with the same or with another scale."""
    x = b.floats()
    if x is None:
        return
    for _ in range(b.choose((1, 2))):
        scale, zero = b.constant(b.choose((0.02, 0.1))), b.constant(b.choose((0, 128)), np.uint8)
        q = b.node("QuantizeLinear", [x, scale, zero], (U8, x.dims))
        if b.chance(0.3) and x.rank >= 2:
            turned = x.dims[::-1]
            q = b.node("Transpose", [q], (U8, turned))
            x = Tensor(x.name, F32, turned)
        x = b.node("DequantizeLinear", [q, scale, zero], (F32, x.dims))


def rest(b: Builder) -> None:
    """Operators that look like nothing: Dropout, Resize by 1, Mean and Sum of one, Identity."""
    x = b.floats()
    if x is None:
        return
    kind = b.random.randrange(6)
    if kind == 0:
        ratio = [b.constant(0.5)] if b.opset >= 12 and b.chance(0.5) else []
        outs = [(F32, x.dims), (BOOL, x.dims)][: b.choose((1, 2))]
        b.many("Dropout", [x, *ratio], outs)
    elif kind == 1 and x.rank == 4 and b.opset >= 13:
        # half_pixel and the like only differ where sizes change
        mode = b.choose(("nearest", "linear"))
        b.node("Resize", [x, "", b.constant([1.0] * 4)], x, mode=mode)
    elif kind == 2:
        b.node(b.choose(("Mean", "Sum", "Max", "Min")), [x], x)
        if x.rank:
            b.node("Concat", [x], x, axis=-1)
    elif kind == 3 and x.rank >= 2:
        if b.opset >= 14:
            b.node("Trilu", [x], x, upper=b.choose((0, 1)))
    elif kind == 4 and x.rank >= 1:
        axis = b.random.randrange(x.rank)
        b.node("CumSum", [x, b.constant(axis, np.int64)], x)
    else:
        again = b.node("Identity", [b.node("Identity", [x], x)], x)
        b.node("Cast", [again], x, to=F32)


def random_noise(b: Builder) -> None:
    """Two random numbers multiplied by 0: never merged or folded, and yet comparable."""
    if b.opset >= 18:  # converted to 22 and newer, onnxruntime has no kernel for it
        return
    noise = [b.node("RandomNormal", [], (F32, (2,)), shape=[2]) for _ in range(2)]
    zero = b.node("Mul", [b.node("Sub", noise, noise[0]), b.constant(0.0)], noise[0])
    b.node("Shape", [zero], (I64, (1,)))


STEPS = (
    (matmul, 6),
    (gemm, 3),
    (convolution, 6),
    (batch_norm, 2),
    (pooling, 2),
    (layer_norm, 4),
    (gelu, 4),
    (activation, 4),
    (softmax, 3),
    (rectifier, 4),
    (attention, 2),
    (quantized, 2),
    (rest, 4),
    (random_noise, 1),
)
