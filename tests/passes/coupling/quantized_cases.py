"""Graphs with quantized, looked-up and sampling operators, and what can be cut there."""

from __future__ import annotations

from typing import Any

import numpy as np
from fused_cases import Case

Array = np.ndarray[Any, Any]


def ints(shape: tuple[int, ...], dtype: str = "int8", seed: int = 5) -> Array:
    """Return random integers away from the ends of their type."""
    low, high = (10, 240) if dtype == "uint8" else (-100, 100)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scales(count: int, seed: int = 7) -> Array:
    """Return scales that differ."""
    return np.random.default_rng(seed).uniform(0.005, 0.02, count).astype(np.float32)


_S, _Z = np.float32(0.02), np.uint8(128)
_IMAGE = "float[2,4,6,6] x"
_HEAD = "g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, P)"
_Q = {"s": _S, "z": _Z, "t": np.float32(0.03), "n": np.uint8(120)}
QUANTIZED = {
    "weights in q/dq by channel": Case(
        f"w = DequantizeLinear<axis=0>(Wq, ws, wz) c = Conv(x, w, B) r = Relu(c) {_HEAD}",
        {
            "Wq": ints((8, 4, 3, 3)),
            "ws": scales(8),
            "wz": np.zeros(8, np.int8),
            "B": (8,),
            "P": (8, 3),
        },
        (8,),
        inputs=_IMAGE,
    ),
    "activations in q/dq": Case(
        "w = DequantizeLinear<axis=0>(Wq, ws, wz) c = Conv(x, w, B) q = QuantizeLinear(c, s, z) "
        f"d = DequantizeLinear(q, s, z) r = Relu(d) {_HEAD}",
        {
            "Wq": ints((8, 4, 3, 3)),
            "ws": scales(8),
            "wz": np.zeros(8, np.int8),
            "B": (8,),
            "P": (8, 3),
            "s": _S,
            "z": _Z,
        },
        (8,),
        inputs=_IMAGE,
    ),
    "bias in q/dq": Case(
        "w = DequantizeLinear<axis=0>(Wq, ws) b = DequantizeLinear<axis=0>(Bq, ws) "
        "c = Conv(x, w, b) v = DequantizeLinear(Vq, s) e = DequantizeLinear(Eq, s) "
        f"d = Conv(c, v, e) r = Relu(d) {_HEAD}",
        {
            "Wq": ints((8, 4, 3, 3)),
            "ws": scales(8),
            "Bq": ints((8,), "int32"),
            "Vq": ints((8, 8, 1, 1), seed=3),
            "s": scales(1),
            "Eq": ints((8,), "int32", 2),
            "P": (8, 3),
        },
        (8, 8),
        inputs=_IMAGE,
    ),
    "weights in blocks": Case(
        "a = MatMul(x, A) r = Relu(a) w = DequantizeLinear<axis=0, block_size=4>(Wq, ws) "
        "y = MatMul(r, w)",
        {"A": (12, 16), "Wq": ints((16, 3)), "ws": scales(12).reshape(4, 3)},
        (4,),
        inputs="float[2,12] x",
        opset=21,
    ),
    "a chain of integer convolutions": Case(
        "q = QuantizeLinear(x, s, z) a = QLinearConv<pads=[1,1,1,1]>"
        "(q, s, z, W, ws, wz, t, n, B) b = QLinearConv(a, t, n, V, vs, wz, s, z) "
        "y = DequantizeLinear(b, s, z)",
        {
            **_Q,
            "W": ints((8, 4, 3, 3)),
            "ws": scales(8),
            "wz": np.int8(3),
            "B": ints((8,), "int32"),
            "V": ints((3, 8, 1, 1), seed=6),
            "vs": scales(3),
        },
        (8,),
        inputs=_IMAGE,
    ),
    "depthwise and grouped on integers": Case(
        "q = QuantizeLinear(x, s, z) a = QLinearConv(q, s, z, W, s, z, t, n) "
        "b = QLinearConv<group=8>(a, t, n, D, ds, dz, t, n) "
        "c = QLinearConv<group=2>(b, t, n, G, s, z, s, z) "
        "e = QLinearConv(c, s, z, E, s, z, s, z) y = DequantizeLinear(e, s, z)",
        {
            **_Q,
            "W": ints((8, 4, 1, 1), "uint8"),
            "D": ints((8, 1, 3, 3)),
            "ds": scales(8),
            "dz": np.zeros(8, np.int8),
            "G": ints((4, 4, 1, 1), "uint8"),
            "E": ints((3, 4, 1, 1), "uint8", 9),
        },
        (4, 4),
        inputs=_IMAGE,
    ),
    "integer residual": Case(
        "q = QuantizeLinear(x, s, z) a = QLinearConv(q, s, z, W, s, z, t, n) "
        "b = QLinearConv(a, t, n, V, s, z, t, n) "
        "c = com.microsoft.QLinearAdd(a, t, n, b, t, n, t, n) "
        "m = com.microsoft.QLinearSigmoid(c, t, n, t, n) "
        "k = com.microsoft.QLinearMul(c, t, n, m, t, n, t, n) "
        "l = com.microsoft.QLinearLeakyRelu(k, t, n, t, n) "
        "g = com.microsoft.QLinearGlobalAveragePool(l, t, n, t, n) "
        "e = QLinearConv(g, t, n, E, s, z, s, z) y = DequantizeLinear(e, s, z)",
        {
            **_Q,
            "W": ints((8, 4, 1, 1), "uint8"),
            "V": ints((8, 8, 1, 1), "uint8", 8),
            "E": ints((3, 8, 1, 1), "uint8", 9),
        },
        (8,),
        inputs=_IMAGE,
    ),
    "integer concatenation": Case(
        "q = QuantizeLinear(x, s, z) a = QLinearConv(q, s, z, W, s, z, t, n) "
        "b = QLinearConv(q, s, z, V, s, z, s, z) "
        "c = com.microsoft.QLinearConcat<axis=1>(t, n, a, t, n, b, s, z) "
        "e = QLinearConv(c, t, n, E, s, z, s, z) y = DequantizeLinear(e, s, z)",
        {
            **_Q,
            "W": ints((8, 4, 1, 1), "uint8"),
            "V": ints((4, 4, 1, 1), "uint8", 8),
            "E": ints((3, 12, 1, 1), "uint8", 9),
        },
        (8, 4),
        inputs=_IMAGE,
    ),
    "integer matrices": Case(
        "q = QuantizeLinear(x, s, z) a = QLinearMatMul(q, s, z, A, s, z, t, n) "
        "b = com.microsoft.QGemm<transB=1>(a, t, n, B, vs, vz, C, t, n) "
        "e = QLinearMatMul(b, t, n, E, s, z, s, z) y = DequantizeLinear(e, s, z)",
        {
            **_Q,
            "A": ints((12, 10), "uint8"),
            "B": ints((8, 10)),
            "vs": scales(8),
            "vz": np.zeros(8, np.int8),
            "C": ints((8,), "int32"),
            "E": ints((8, 3), "uint8", 9),
        },
        (10, 8),
        inputs="float[2,12] x",
    ),
    "dynamic quantization": Case(
        "a = MatMul(x, A) r = Relu(a) q, s, z = DynamicQuantizeLinear(r) "
        "m = MatMulInteger(q, B, z, bz) f = Cast<to=1>(m) k = Mul(s, bs) o = Mul(f, k) "
        "p = Relu(o) q2, s2, z2 = DynamicQuantizeLinear(p) "
        "y = com.microsoft.MatMulIntegerToFloat(q2, E, s2, es, z2, ez)",
        {
            "A": (12, 10),
            "B": ints((10, 8)),
            "bz": ints((8,)) // 20,
            "bs": scales(8),
            "E": ints((8, 3), seed=4),
            "es": scales(3),
            "ez": np.zeros(3, np.int8),
        },
        (10, 8),
        inputs="float[2,12] x",
    ),
    "dynamic quantization in one": Case(
        "a = com.microsoft.DynamicQuantizeMatMul(x, A, s, z, C) r = Relu(a) "
        "y = com.microsoft.DynamicQuantizeMatMul(r, B, bs, bz)",
        {
            "A": ints((12, 10)),
            "s": scales(10),
            "z": np.zeros(10, np.int8),
            "C": (10,),
            "B": ints((10, 3), "uint8"),
            "bs": np.float32(0.01),
            "bz": np.uint8(128),
        },
        (10,),
        inputs="float[2,12] x",
    ),
    "dynamic convolution": Case(
        "q, s, z = DynamicQuantizeLinear(x) c = ConvInteger(q, W, z, wz) f = Cast<to=1>(c) "
        "k = Mul(s, ws) o = Mul(f, k) r = Relu(o) q2, s2, z2 = DynamicQuantizeLinear(r) "
        "d = ConvInteger(q2, V, z2, vz) e = Cast<to=1>(d) y = Mul(e, s2)",
        {
            "W": ints((8, 4, 3, 3), "uint8"),
            "wz": np.uint8(120),
            "ws": scales(8).reshape(8, 1, 1),
            "V": ints((3, 8, 1, 1), "uint8"),
            "vz": np.uint8(120),
        },
        (8,),
        inputs=_IMAGE,
    ),
    "four bits in blocks": Case(
        "a = com.microsoft.MatMulNBits<K=32, N=64, bits=4, block_size=16>(x, A, as, az) "
        "r = Relu(a) y = com.microsoft.MatMulNBits<K=64, N=5, bits=4, block_size=16>(r, B, bs)",
        {
            "A": ints((64, 2, 8), "uint8"),
            "as": scales(128),
            "az": ints((64,), "uint8"),
            "B": ints((5, 4, 8), "uint8"),
            "bs": scales(20).reshape(5, 4),
        },
        (4,),
        inputs="float[2,32] x",
    ),
    "four bits in blocks, flat scales": Case(
        "a = com.microsoft.MatMulNBits<K=32, N=64, bits=4, block_size=16>(x, A, as, az, , c) "
        "r = Relu(a) y = MatMul(r, B)",
        {
            "A": ints((64, 2, 8), "uint8"),
            "as": scales(128),
            "az": ints((64,), "uint8"),
            "c": (64,),
            "B": (64, 5),
        },
        (64,),
        inputs="float[2,32] x",
    ),
}

_CONVS = "c = Conv(x, W) {} g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, P)"
_C = {"W": (8, 4, 3, 3), "P": (8, 3)}
OTHERS = {
    "embedding": Case(
        "e = Gather(T, x) r = Relu(e) y = MatMul(r, P)",
        {"T": (20, 8), "P": (8, 3)},
        (8,),
        inputs="int64[2,5] x",
        feed={"x": ints((2, 5)).astype(np.int64) % 20},
    ),
    "tied embedding": Case(
        "e = Gather(T, x) a = MatMul(e, A) r = Relu(a) b = MatMul(r, B) u = Add(e, b) "
        "y = Gemm<transB=1>(u, T)",
        {"T": (20, 8), "A": (8, 6), "B": (6, 8)},
        (8, 6),
        inputs="int64[5] x",
        feed={"x": np.arange(5)},
    ),
    "gather elements": Case(
        "a = MatMul(x, A) b = MatMul(x, B) i = ArgMax<axis=1, keepdims=0>(b) "
        "k = Shape(a) u = Unsqueeze(i, one) n = Expand(u, k1) e = GatherElements<axis=1>(a, n) "
        "y = MatMul(e, P)",
        {"A": (12, 8), "B": (12, 8), "one": np.array([1]), "k1": np.array([2, 1, 8]), "P": (8, 3)},
        (8,),
        inputs="float[2,5,12] x",
    ),
    "scatter": Case(
        "a = MatMul(x, A) b = MatMul(u, B) c = ScatterND(a, n, b) r = Relu(c) y = MatMul(r, P)",
        {"A": (12, 8), "B": (12, 8), "P": (8, 3), "n": np.array([[0], [3]])},
        (8,),
        inputs="float[5,12] x, float[2,12] u",
    ),
    "gather by position": Case(
        "a = MatMul(x, A) b = GatherND(a, n) r = Relu(b) y = MatMul(r, P)",
        {"A": (12, 8), "P": (8, 3), "n": np.array([[0], [3], [3]])},
        (8,),
        inputs="float[5,12] x",
    ),
    "sampling": Case(
        _CONVS.format("r = GridSample(c, G)"),
        {**_C, "G": (2, 3, 3, 2)},
        (8,),
        inputs=_IMAGE,
    ),
    "regions": Case(
        _CONVS.format("r = RoiAlign<output_height=2, output_width=2>(c, R, i)"),
        {**_C, "R": np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32), "i": np.array([0, 1])},
        (8,),
        inputs=_IMAGE,
    ),
    "deformable convolution": Case(
        "c = Conv(x, W) o = Conv(c, O) d = DeformConv(c, V, o, B) r = Relu(d) "
        "g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, P)",
        {"W": (8, 4, 1, 1), "O": (18, 8, 3, 3), "V": (10, 8, 3, 3), "B": (10,), "P": (10, 3)},
        (8, 10),
        inputs=_IMAGE,
        opset=19,
        frozen="moves the places",
    ),
    "sums along": Case(
        "a = MatMul(x, A) c = CumSum(a, one) r = ReverseSequence<time_axis=1, batch_axis=0>(c, n) "
        "y = MatMul(r, P)",
        {"A": (12, 8), "one": np.array(1), "n": np.array([3, 5]), "P": (8, 3)},
        (8,),
        inputs="float[2,5,12] x",
    ),
    "columns to an image": Case(
        "a = MatMul(A, x) i = Col2Im(a, size, kernel) c = Conv(i, W) y = Flatten(c)",
        {
            "A": (32, 12),
            "size": np.array([4, 4]),
            "kernel": np.array([2, 2]),
            "W": (3, 8, 1, 1),
        },
        (8,),
        inputs="float[2,12,9] x",
        opset=18,
    ),
    "cropped": Case(
        "c = Conv(x, W) r = CenterCropPad<axes=[2,3]>(c, two) f = Conv(r, V) y = Flatten(f)",
        {"W": (8, 4, 3, 3), "two": np.array([2, 2]), "V": (3, 8, 1, 1)},
        (8,),
        inputs=_IMAGE,
        opset=18,
    ),
    "a spectrum": Case(
        "a = MatMul(x, A) u = Unsqueeze(a, last) d = DFT<axis=1>(u) "
        "s = ReduceSum<keepdims=0>(d, last) y = MatMul(s, P)",
        {"A": (12, 8), "last": np.array([3]), "P": (8, 3)},
        (8,),
        inputs="float[2,5,12] x",
    ),
    "one-hot": Case(
        "a = MatMul(x, A) i = ArgMax<axis=1, keepdims=0>(a) h = OneHot(i, n, v) "
        "m = ReduceMean<axes=[1], keepdims=0>(h) y = MatMul(m, P)",
        {"A": (12, 8), "n": np.array(5), "v": np.array([0, 1], np.float32), "P": (5, 3)},
        (8,),
        inputs="float[2,5,12] x",
    ),
    "bits": Case(
        "a = MatMul(x, A) i = Cast<to=6>(a) b = BitwiseAnd(i, m) f = Cast<to=1>(b) "
        "y = MatMul(f, P)",
        {"A": (12, 8), "m": np.full(8, 7, np.int32), "P": (8, 3)},
        (8,),
        inputs="float[2,12] x",
        opset=18,
    ),
    "fused layers": Case(
        'c = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(x, W, B) '
        'd = com.microsoft.FusedConv<activation="Relu">(c, V, C, c) g = GlobalAveragePool(d) '
        'f = Flatten(g) e = com.microsoft.FusedGemm<transB=1, activation="Relu">(f, G, H) '
        "y = com.microsoft.FusedMatMul<transB=1>(e, P)",
        {
            "W": (8, 4, 3, 3),
            "B": (8,),
            "V": (8, 8, 1, 1),
            "C": (8,),
            "G": (6, 8),
            "H": (6,),
            "P": (3, 6),
        },
        (8, 6),
        inputs=_IMAGE,
    ),
    "fused activations": Case(
        "a = MatMul(x, A) b = com.microsoft.BiasGelu(a, B) c = com.microsoft.FastGelu(b, B) "
        "d = com.microsoft.QuickGelu(c) e = com.microsoft.Gelu(d) y = MatMul(e, P)",
        {"A": (12, 8), "B": (8,), "P": (8, 3)},
        (8,),
        inputs="float[2,12] x",
    ),
    "chosen": Case(
        "a = MatMul(x, A) n = NonZero(a) f = Cast<to=1>(n) y = Relu(f)",
        {"A": (12, 8)},
        (),
        inputs="float[2,12] x",
        frozen="decide what is chosen",
    ),
    "sequences": Case(
        "a = MatMul(x, A) s = SequenceConstruct(a, a) y = ConcatFromSequence<axis=0>(s)",
        {"A": (12, 8)},
        (),
        inputs="float[2,12] x",
        frozen="sizes of its values are unknown",
    ),
    "a branch": Case(
        "a = MatMul(x, A) c = ReduceMax<keepdims=0>(a) t = Greater(c, zero) "
        "b = If (t) <then_branch = g1 () => (float[2,8] p) { p = Relu(a) }, "
        "else_branch = g2 () => (float[2,8] q) { q = Neg(a) }> y = MatMul(b, P)",
        {"A": (12, 8), "zero": np.float32(0), "P": (8, 3)},
        (),
        inputs="float[2,12] x",
        frozen="body",
    ),
    "experts": Case(
        'y = com.microsoft.MoE<k=2, activation_type="relu">(x, r, W, B, V, C)',
        {"W": (4, 16, 8), "B": (4, 16), "V": (4, 8, 16), "C": (4, 8)},
        (16,),
        inputs="float[6,8] x, float[6,4] r",
    ),
    "an unknown operator": Case(
        "a = MatMul(x, A) b = com.microsoft.CDist(a, a) y = Relu(b)",
        {"A": (12, 8)},
        (),
        inputs="float[2,12] x",
        frozen="unknown",
    ),
}
