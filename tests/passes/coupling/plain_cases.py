"""Graphs with layers, elementwise operators, movement and reductions, and what can be cut there."""

from __future__ import annotations

from typing import Any

import numpy as np
from fused_cases import Case

_A = {"A": (6, 8), "P": (8, 3)}
_IMAGE = "float[2,3,8,8] x"
_K = {"K": (8, 3, 3, 3), "Q": (4, 8, 1, 1)}


def _one(op: str, before: str = "p = Sigmoid(h)", opset: int = 20) -> Case:
    return Case(f"h = MatMul(x, A) {before} a = {op}(p) y = MatMul(a, P)", _A, (8,), opset=opset)


def image(body: str, atoms: tuple[int, ...] = (8,), opset: int = 20, **more: Any) -> Case:
    text = f"h = Conv(x, K) {body}"
    constants = {**_K, **more}
    return Case(text, constants, atoms, inputs=_IMAGE, opset=opset)


def rows(body: str, atoms: tuple[int, ...] = (8,), opset: int = 20, **more: Any) -> Case:
    return Case(f"h = MatMul(x, A) {body}", {**_A, **more}, atoms, opset=opset)


_UNARY = """
    Abs Acos Asin Asinh Atan Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish
    Identity LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Tan Tanh ThresholdedRelu Dropout Clip
"""
UNARY = {
    **{name.lower(): _one(name) for name in _UNARY.split()},
    "acosh": _one("Acosh", "q = Sigmoid(h) p = Exp(q)"),
    "atanh": _one("Atanh", "q = Sigmoid(h) r = Sigmoid(q) p = Neg(r)"),
    "cast": rows("p = Cast<to=11>(h) a = Cast<to=1>(p) y = MatMul(a, P)"),
    "cast like": rows("a = CastLike(h, x) y = MatMul(a, P)"),
    "not": rows("p = Cast<to=9>(h) q = Not(p) a = Cast<to=1>(q) y = MatMul(a, P)"),
    "is nan": rows("p = Sqrt(h) q = IsNaN(p) a = Cast<to=1>(q) y = MatMul(a, P)"),
    "is inf": rows("p = IsInf(h) q = Cast<to=1>(p) a = Add(q, h) y = MatMul(a, P)"),
    "bitwise not": rows("p = Cast<to=6>(h) q = BitwiseNot(p) a = Cast<to=1>(q) y = MatMul(a, P)"),
    "clip between inputs": rows(
        "a = Clip(h, low, high) y = MatMul(a, P)", low=np.float32(-0.1), high=np.float32(0.3)
    ),
    **{
        name: Case(
            f"h = MatMul(x, A) r = {op}(h) y = MatMul(r, P)",
            _A,
            (8,),
            runs=False,
            outputs="float[5,2,3] y",
        )
        for name, op in (
            ("bernoulli", "Bernoulli"),
            ("normal like", "RandomNormalLike"),
            ("uniform like", "RandomUniformLike"),
        )
    },
    "swish": Case(
        "h = MatMul(x, A) r = Swish(h) y = MatMul(r, P)",
        _A,
        (8,),
        runs=False,
        opset=24,
        outputs="float[5,2,3] y",
    ),
}

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
BINARY = {
    **{
        f"{name.lower()} of two layers": rows(
            f"g = MatMul(x, B) q = Exp(g) a = {name}(h, q) y = MatMul(a, P)", B=(6, 8)
        )
        for name in _ARITHMETIC
    },
    **{
        f"{name.lower()} and a vector": rows(f"a = {name}(h, v) y = MatMul(a, P)", v=(8,))
        for name in _ARITHMETIC
    },
    **{
        f"{name.lower()}": rows(
            f"g = MatMul(x, B) q = {name}(h, g) a = Cast<to=1>(q) y = MatMul(a, P)", B=(6, 8)
        )
        for name in _COMPARISONS
    },
    **{
        name.lower(): rows(
            f"g = MatMul(x, B) c = Cast<to=9>(g) d = Greater(h, g) q = {name}(c, d) "
            "a = Cast<to=1>(q) y = MatMul(a, P)",
            B=(6, 8),
        )
        for name in ("And", "Or", "Xor")
    },
    "pow": rows("p = Exp(h) a = Pow(p, v) y = MatMul(a, P)", v=(8,)),
    "mod": rows("a = Mod<fmod=1>(h, v) y = MatMul(a, P)", v=np.arange(1.0, 9.0, dtype="f")),
    "where": rows(
        "g = MatMul(x, B) c = Greater(h, v) a = Where(c, h, g) y = MatMul(a, P)", B=(6, 8), v=(8,)
    ),
    "bit shift": rows(
        'c = Abs(h) p = Cast<to=12>(c) q = BitShift<direction="LEFT">(p, p) a = Cast<to=1>(q) '
        "y = MatMul(a, P)"
    ),
    **{
        f"bitwise {name.lower()}": rows(
            f"p = Cast<to=6>(h) q = Bitwise{name}(p, p) a = Cast<to=1>(q) y = MatMul(a, P)"
        )
        for name in ("And", "Or", "Xor")
    },
    "prelu with a slope per channel": image("a = PRelu(h, s) y = Conv(a, Q)", s=(8, 1, 1)),
    "prelu with one slope": image("a = PRelu(h, s) y = Conv(a, Q)", s=(1, 1, 1)),
    "a sum with the input": Case(
        "h = MatMul(x, A) y = Add(h, x)", {"A": (6, 6)}, (), frozen="stays at Add_1"
    ),
    "a gate of one number per channel": image(
        "g = GlobalAveragePool(h) r = Conv(g, R) e = Conv(r, E) s = Sigmoid(e) a = Mul(h, s) "
        "y = Conv(a, Q)",
        (8, 5),
        R=(5, 8, 1, 1),
        E=(8, 5, 1, 1),
    ),
    "a constant used in two places": rows(
        "a = Add(h, v) b = Relu(a) g = MatMul(b, C) c = Add(g, v) y = MatMul(c, P)",
        (8, 8),
        v=(8,),
        C=(8, 8),
    ),
    "quick gelu": _one("com.microsoft.QuickGelu"),
    "gelu of onnxruntime": _one("com.microsoft.Gelu"),
    "fast gelu": _one("com.microsoft.FastGelu"),
    "bias gelu": rows("a = com.microsoft.BiasGelu(h, v) y = MatMul(a, P)", v=(8,)),
}

LINEAR = {
    "convolution": image("y = Conv(h, Q)"),
    "convolution with a bias": Case(
        "h = Conv<pads=[1,1,1,1], strides=[2,2]>(x, K, b) r = Relu(h) y = Conv(r, Q)",
        {**_K, "b": (8,)},
        (8,),
        inputs=_IMAGE,
    ),
    "depthwise": image("d = Conv<group=8>(h, D, b) y = Conv(d, Q)", D=(8, 1, 3, 3), b=(8,)),
    "depthwise with a multiplier": image(
        "d = Conv<group=8>(h, D) y = Conv(d, R)", D=(16, 1, 3, 3), R=(4, 16, 1, 1)
    ),
    "groups": image(
        "d = Conv<group=2>(h, D) y = Conv(d, R)", (4, 12), D=(12, 4, 3, 3), R=(4, 12, 1, 1)
    ),
    "groups after groups": image(
        "d = Conv<group=4>(h, D) e = Conv<group=2>(d, E) y = Conv(e, Q)",
        (2, 4, 8),
        D=(8, 2, 1, 1),
        E=(8, 4, 1, 1),
    ),
    "transposed": image(
        "d = ConvTranspose<strides=[2,2]>(h, D, b) y = Conv(d, R)",
        (8, 5),
        D=(8, 5, 2, 2),
        b=(5,),
        R=(4, 5, 1, 1),
    ),
    "transposed depthwise": image(
        "d = ConvTranspose<group=8>(h, D) y = Conv(d, Q)", D=(8, 1, 2, 2)
    ),
    "transposed depthwise with a multiplier": image(
        "d = ConvTranspose<group=8>(h, D) y = Conv(d, R)", D=(8, 2, 2, 2), R=(4, 16, 1, 1)
    ),
    "transposed groups": image(
        "d = ConvTranspose<group=2>(h, D) y = Conv(d, R)",
        (8, 3),
        D=(8, 3, 2, 2),
        R=(4, 6, 1, 1),
    ),
    "one dimension": Case(
        "h = Conv(x, K, b) r = Relu(h) y = Conv(r, Q)",
        {"K": (8, 3, 3), "b": (8,), "Q": (4, 8, 1)},
        (8,),
        inputs="float[2,3,9] x",
    ),
    "gemm": Case(
        "h = Gemm(x, A, b) r = Relu(h) y = Gemm<transB=1>(r, P)",
        {"A": (6, 8), "b": (8,), "P": (3, 8)},
        (8,),
        inputs="float[5,6] x",
    ),
    "gemm with everything transposed": Case(
        "h = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(x, A, b) y = Gemm<transA=1>(P, h)",
        {"A": (8, 6), "b": (1, 8), "P": (5, 3)},
        (),
        inputs="float[6,5] x",
        frozen="output of the model",
    ),
    "a weight on the left": Case(
        "h = MatMul(A, x) r = Relu(h) y = MatMul(P, r)",
        {"A": (8, 5), "P": (3, 8)},
        (8,),
        inputs="float[5,6] x",
    ),
    "a vector of weights": Case(
        "h = MatMul(x, A) y = MatMul(h, v)", {"A": (6, 8), "v": (8,)}, (8,), inputs="float[5,6] x"
    ),
    "two activations": rows(
        "g = MatMul(x, B) t = Transpose<perm=[0,2,1]>(g) s = MatMul(h, t) y = Softmax(s)", B=(6, 8)
    ),
    "a stack of matrices": Case(
        "h = MatMul(x, A) r = Relu(h) y = MatMul(r, P)", {"A": (5, 6, 8), "P": (5, 8, 3)}, (8,)
    ),
    "tied weights": Case(
        "h = MatMul(x, A) r = Relu(h) t = Transpose(A) y = MatMul(r, t)", {"A": (6, 8)}, (8,)
    ),
}
