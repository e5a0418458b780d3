"""Graphs with normalization, pooling, movement and reductions, and what can be cut there."""

from __future__ import annotations

import numpy as np
from fused_cases import Case
from plain_cases import image, rows


def _ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


NORMS = {
    "batch normalization": image(
        "a = BatchNormalization(h, s, b, m, v) y = Conv(a, Q)",
        s=(8,),
        b=(8,),
        m=(8,),
        v=np.arange(1.0, 9.0, dtype="f"),
    ),
    "one vector for all of batch normalization": image(
        "a = BatchNormalization(h, v, v, v, v) r = Relu(a) g = Conv(r, G) "
        "c = BatchNormalization(g, v, v, v, v) y = Conv(c, Q)",
        (8, 8),
        v=np.arange(1.0, 9.0, dtype="f"),
        G=(8, 8, 1, 1),
    ),
    "instance normalization": image(
        "a = InstanceNormalization(h, s, b) y = Conv(a, Q)", s=(8,), b=(8,)
    ),
    "group normalization": image(
        "a = GroupNormalization<num_groups=2>(h, s, b) y = Conv(a, Q)", opset=21, s=(8,), b=(8,)
    ),
    "group normalization made of others": image(
        "a = Reshape(h, i) b = InstanceNormalization(a, s, t) d = Shape(h) e = Reshape(b, d) "
        "f = Mul(e, w) y = Conv(f, Q)",
        (4,),
        i=_ints(0, 4, -1),
        s=(4,),
        t=(4,),
        w=(8, 1, 1),
    ),
    "group normalization of one group made of others": image(
        "a = Reshape(h, i) b = InstanceNormalization(a, s, t) d = Shape(h) e = Reshape(b, d) "
        "f = Mul(e, w) y = Conv(f, Q)",
        (8,),
        i=_ints(0, 1, -1),
        s=(1,),
        t=(1,),
        w=(8, 1, 1),
    ),
    "layer normalization": rows("a = LayerNormalization(h, s, b) y = MatMul(a, P)", s=(8,), b=(8,)),
    "layer normalization of two axes": Case(
        "h = MatMul(x, A) a = LayerNormalization<axis=-2>(h, s) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3), "s": (2, 8)},
        (8,),
    ),
    "layer normalization made of others": rows(
        "m = ReduceMean(h, l) c = Sub(h, m) q = Mul(c, c) v = ReduceMean(q, l) e = Add(v, tiny) "
        "r = Sqrt(e) d = Div(c, r) f = Mul(d, s) y = MatMul(f, P)",
        l=_ints(-1),
        tiny=np.float32(1e-5),
        s=(8,),
    ),
    "rms normalization made of others": rows(
        "q = Mul(h, h) v = ReduceMean(q, l) e = Add(v, tiny) r = Sqrt(e) d = Div(h, r) "
        "f = Mul(d, s) y = MatMul(f, P)",
        l=_ints(-1),
        tiny=np.float32(1e-5),
        s=(8,),
    ),
    "simplified layer normalization": rows(
        "a = SimplifiedLayerNormalization(h, s) y = MatMul(a, P)", s=(8,), opset=17
    ),
    "rms normalization": Case(
        "h = MatMul(x, A) a = RMSNormalization(h, s) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3), "s": (8,)},
        (8,),
        opset=23,
        outputs="float[5,2,3] y",
        runs=False,
    ),
    "skip layer normalization": rows(
        "g = MatMul(x, B) a, m, v, t = com.microsoft.SkipLayerNormalization(h, g, s, b, c) "
        "e = Add(a, t) y = MatMul(e, P)",
        B=(6, 8),
        s=(8,),
        b=(8,),
        c=(8,),
    ),
    "skip rms normalization": rows(
        "g = MatMul(x, B) a = com.microsoft.SkipSimplifiedLayerNormalization(h, g, s) "
        "y = MatMul(a, P)",
        B=(6, 8),
        s=(8,),
    ),
    "softmax over channels": Case(
        "h = MatMul(x, A) a = Softmax(h) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3)},
        (),
        frozen="Softmax is taken",
    ),
    "softmax over positions": image("a = Softmax<axis=2>(h) y = Conv(a, Q)"),
    "old softmax": Case(
        "h = MatMul(x, A) a = Softmax<axis=1>(h) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3)},
        (),
        frozen="Softmax is taken",
        opset=11,
    ),
    "log softmax and hardmax of positions": image(
        "a = LogSoftmax<axis=3>(h) b = Hardmax<axis=2>(a) y = Conv(b, Q)"
    ),
    "lp normalization": Case(
        "h = MatMul(x, A) a = LpNormalization(h) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3)},
        (),
        frozen="LpNormalization",
    ),
    "operators of old style models": Case(
        "h = Conv(x, K) a = Affine<alpha=2.0, beta=0.5>(h) b = Crop<border=[1,1,1,1]>(a) "
        "c = ScaledTanh<alpha=1.0, beta=0.5>(b) d = ParametricSoftplus<alpha=1.0, beta=0.5>(c) "
        "y = Conv(d, Q)",
        {"K": (8, 3, 3, 3), "Q": (4, 8, 1, 1)},
        (8,),
        inputs="float[2,3,8,8] x",
        outputs="float[2,4,4,4] y",
        opset=7,
    ),
    "scaled pictures": Case(
        "h = Conv(x, K) a = ImageScaler<scale=2.0, bias=[0.0,1.0]>(h) y = Conv(a, Q)",
        {"K": (2, 3, 3, 3), "Q": (4, 2, 1, 1)},
        (),
        frozen="ImageScaler",
        inputs="float[2,3,8,8] x",
        opset=7,
    ),
    "lrn": Case(
        "h = Conv(x, K) a = LRN<size=3>(h) y = Conv(a, Q)",
        {"K": (8, 3, 3, 3), "Q": (4, 8, 1, 1)},
        (),
        frozen="LRN",
        inputs="float[2,3,8,8] x",
    ),
    "mean and variance": image("a = MeanVarianceNormalization<axes=[0,2,3]>(h) y = Conv(a, Q)"),
    "triangle": image("a = Trilu(h) y = Conv(a, Q)"),
}

POOLS = {
    **{
        name.lower(): image(f"a = {name}<kernel_shape=[2,2]>(h) y = Conv(a, Q)")
        for name in ("AveragePool", "MaxPool", "LpPool")
    },
    **{
        name.lower(): image(f"a = {name}(h) y = Conv(a, Q)")
        for name in ("GlobalAveragePool", "GlobalMaxPool")
    },
    "global lp pool": image("a = GlobalLpPool(h) y = Conv(a, Q)"),
    "indices of a pool": Case(
        "h = Conv(x, K) a, i = MaxPool<kernel_shape=[2,2]>(h) f = Cast<to=1>(i) y = Add(a, f)",
        {"K": (8, 3, 3, 3)},
        (),
        frozen="indices",
        inputs="float[2,3,8,8] x",
    ),
}

MOVES = {
    "transpose": image("a = Transpose<perm=[0,2,3,1]>(h) y = MatMul(a, P)", P=(8, 3)),
    "concat": image(
        "g = Conv(x, G) a = Concat<axis=1>(h, g) y = Conv(a, R)",
        (8, 5),
        G=(5, 3, 3, 3),
        R=(4, 13, 1, 1),
    ),
    "concat with itself": image("a = Concat<axis=1>(h, h) y = Conv(a, R)", R=(4, 16, 1, 1)),
    "concat on another axis": image(
        "g = Conv(x, G) a = Concat<axis=2>(h, g) y = Conv(a, Q)", G=(8, 3, 3, 3)
    ),
    "split": image(
        "a, b = Split<axis=1>(h, n) c = Conv(a, E) d = Conv(b, F) y = Add(c, d)",
        (3, 5),
        n=_ints(3, 5),
        E=(4, 3, 1, 1),
        F=(4, 5, 1, 1),
    ),
    "one channel split off": image(
        "a, b = Split<axis=1>(h, n) c = Mul(a, b) y = Conv(c, R)",
        (7,),
        n=_ints(1, 7),
        R=(4, 7, 1, 1),
    ),
    "halves added": image(
        "a, b = Split<axis=1, num_outputs=2>(h) c = Add(a, b) y = Conv(c, R)",
        (4,),
        R=(4, 4, 1, 1),
    ),
    "slice": image(
        "a = Slice(h, f, t, o) y = Conv(a, R)",
        (3, 5),
        f=_ints(2),
        t=_ints(7),
        o=_ints(1),
        R=(4, 5, 1, 1),
    ),
    "every second channel, backwards": image(
        "a = Slice(h, f, t, o, s) y = Conv(a, R)",
        (4, 4),
        f=_ints(-1),
        t=_ints(-(1 << 60)),
        o=_ints(1),
        s=_ints(-2),
        R=(4, 4, 1, 1),
    ),
    "old slice": image(
        "a = Slice<starts=[0], ends=[6], axes=[1]>(h) y = Conv(a, R)",
        (6, 2),
        opset=9,
        R=(4, 6, 1, 1),
    ),
    "a slice with computed ends": image(
        "d = Shape(h) c = Gather(d, i) e = Div(c, two) u = Unsqueeze(e, z) w = Unsqueeze(z0, z) "
        "a = Slice(h, w, u, o) y = Conv(a, R)",
        (4, 4),
        i=np.int64(1),
        two=np.int64(2),
        z=_ints(0),
        z0=np.int64(0),
        o=_ints(1),
        R=(4, 4, 1, 1),
    ),
    "gather": image(
        "a = Gather<axis=1>(h, i) y = Conv(a, R)", (3, 5), i=_ints(7, 0, 3), R=(4, 3, 1, 1)
    ),
    "one picked channel": image(
        "a = Gather<axis=1>(h, i) b = Unsqueeze(a, o) c = Mul(b, h) y = Conv(c, Q)",
        (7,),
        i=np.int64(2),
        o=_ints(1),
    ),
    "an embedding": Case(
        "h = Gather(A, x) r = Relu(h) y = MatMul(r, P)",
        {"A": (10, 8), "P": (8, 3)},
        (8,),
        inputs="int64[5] x",
        feed={"x": _ints(0, 3, 9, 9, 1)},
    ),
    "depth to space": image(
        "a = DepthToSpace<blocksize=2>(h) y = Conv(a, R)", (2,), R=(4, 2, 1, 1)
    ),
    "pixel shuffle": image(
        'a = DepthToSpace<blocksize=2, mode="CRD">(h) y = Conv(a, R)', (2,), R=(4, 2, 1, 1)
    ),
    "space to depth": image("a = SpaceToDepth<blocksize=2>(h) y = Conv(a, R)", R=(4, 32, 1, 1)),
    "tile": image("a = Tile(h, n) y = Conv(a, R)", n=_ints(1, 2, 1, 2), R=(4, 16, 1, 1)),
    "expand": rows(
        "c = Unsqueeze(v, z) e = Expand(c, n) a = Mul(h, e) y = MatMul(a, P)",
        v=(8,),
        z=_ints(0),
        n=_ints(2, 8),
    ),
    "expand along channels": rows(
        "m = ReduceMax<keepdims=1>(x, l) e = Expand(m, n) a = Add(h, e) y = MatMul(a, P)",
        l=_ints(-1),
        n=_ints(5, 2, 8),
    ),
    "constant of shape": rows(
        "d = Shape(h) c = ConstantOfShape<value=float[1] {2.0}>(d) a = Mul(h, c) y = MatMul(a, P)"
    ),
    "pad positions": image("a = Pad(h, n) y = Conv(a, Q)", n=_ints(0, 0, 1, 1, 0, 0, 1, 1)),
    "pad channels with zeros": image(
        "a = Pad(h, n) g = Conv(x, G) c = Add(a, g) y = Conv(c, R)",
        (8, 4),
        n=_ints(0, 2, 0, 0, 0, 2, 0, 0),
        G=(12, 3, 3, 3),
        R=(4, 12, 1, 1),
    ),
    "pads put together by a program": image(
        "z = ConstantOfShape<value=int64[1] {0}>(four) c = Concat<axis=0>(two, z) "
        "r = Reshape(c, pairs) s = Slice(r, minus, far, zero, minus) t = Transpose(s) "
        "p = Reshape(t, minus) a = Pad(h, p) g = Conv(x, G) e = Add(a, g) y = Conv(e, R)",
        (8, 4),
        two=_ints(0, 0, 0, 0, 2, 2),
        four=_ints(2),
        pairs=_ints(-1, 2),
        minus=_ints(-1),
        far=_ints(-(1 << 62)),
        zero=_ints(0),
        G=(12, 3, 3, 3),
        R=(4, 12, 1, 1),
    ),
    "pad channels with themselves": Case(
        'h = Conv(x, K) a = Pad<mode="reflect">(h, n) y = Conv(a, R)',
        {"K": (8, 3, 3, 3), "n": _ints(0, 2, 0, 0, 0, 0, 0, 0), "R": (4, 10, 1, 1)},
        (),
        frozen="its own indices",
        inputs="float[2,3,8,8] x",
    ),
    "resize by scales": image("a = Resize(h, , n) y = Conv(a, Q)", n=np.array([1, 1, 2, 2], "f")),
    "resize to sizes": image("a = Resize(h, , , n) y = Conv(a, Q)", n=_ints(2, 8, 12, 12)),
    "flatten": image("a = Flatten(h) y = Gemm(a, P)", P=(288, 3)),
    "flatten and back": image(
        "a = Flatten(h) r = Relu(a) b = Reshape(r, n) y = Conv(b, Q)", n=_ints(0, 8, 6, 6)
    ),
    "squeeze and unsqueeze": image(
        "g = GlobalAveragePool(h) s = Squeeze(g, o) r = Relu(s) u = Unsqueeze(r, o) "
        "a = Mul(h, u) y = Conv(a, Q)",
        o=_ints(2, 3),
    ),
    "shuffled channels": image(
        "a = Reshape(h, n) t = Transpose<perm=[0,2,1,3,4]>(a) b = Reshape(t, m) y = Conv(b, Q)",
        (4,),
        n=_ints(0, 2, 4, 6, 6),
        m=_ints(0, 8, 6, 6),
    ),
    "the order of channels": Case(
        "h = MatMul(x, A) i = ArgMax<axis=-1, keepdims=0>(h) y = Cast<to=1>(i)",
        {"A": (6, 8)},
        (),
        frozen="ArgMax",
    ),
    "a softmax within parts of an axis": rows(
        "r = Reshape(h, n) a = Softmax(r) b = Reshape(a, m) y = MatMul(b, P)",
        (2,),
        n=_ints(0, 0, 2, 4),
        m=_ints(0, 0, 8),
    ),
    "the least of positions": image(
        "i = ArgMin<axis=2>(h) f = Cast<to=1>(i) y = Conv(f, Q)",
    ),
    "a running product": Case(
        "h = MatMul(x, A) a = CumProd(h, n) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3), "n": np.int64(1)},
        (8,),
        runs=False,
        opset=26,
        outputs="float[5,2,3] y",
    ),
    "numbers that no weight makes": rows(
        "e = EyeLike(one) r = Range(zero, eight, step) s = Size(x) t = Cast<to=1>(s) "
        "n = RandomNormal<shape=[1]>() u = RandomUniform<shape=[1]>() q = Mul(n, nil) "
        "w = Mul(u, nil) a = Add(h, q) b = Add(a, w) c = Add(b, t) d = Add(c, e) y = MatMul(d, P)",
        one=np.ones((1, 1), np.float32),
        zero=np.float32(0),
        eight=np.float32(8),
        step=np.float32(1),
        nil=np.zeros(1, np.float32),
    ),
    "counted from zero on": Case(
        "h = MatMul(x, A) r = Range(zero, eight, step) a = Add(h, r) y = MatMul(a, P)",
        {
            "A": (6, 8),
            "P": (8, 3),
            "zero": np.float32(0),
            "eight": np.float32(8),
            "step": np.float32(1),
        },
        (),
        frozen="stays at Add_2",
    ),
    "upsample": image("a = Upsample(h, n) y = Conv(a, Q)", opset=9, n=np.array([1, 1, 2, 2], "f")),
    "the greatest positions": image("a, i = TopK<axis=2>(h, n) y = Conv(a, Q)", n=_ints(2)),
    "a running sum over positions": image("a = CumSum(h, n) y = Conv(a, Q)", n=np.int64(2)),
    "a running sum over channels": Case(
        "h = MatMul(x, A) a = CumSum(h, n) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3), "n": np.int64(-1)},
        (),
        frozen="CumSum",
    ),
    "a number computed from a size": rows(
        "d = Shape(h) i = Gather(d, two) f = Cast<to=1>(i) r = Sqrt(f) a = Div(h, r) "
        "y = MatMul(a, P)",
        two=np.int64(2),
    ),
    "an operator nobody knows": Case(
        "h = MatMul(x, A) a = com.microsoft.Foo(h) y = MatMul(a, P)",
        {"A": (6, 8), "P": (8, 3)},
        (),
        frozen="Foo is unknown",
        runs=False,
        outputs="float[5,2,3] y",
    ),
}

REDUCTIONS = {
    **{
        f"{name} over positions": image(
            f"a = Reduce{name}<keepdims=1>(h, n) y = Conv(a, Q)", n=_ints(2, 3)
        )
        for name in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare")
    },
    **{
        f"{name} over channels": rows(
            f"s = Sigmoid(h) a = Reduce{name}<keepdims=1>(s, n) b = Mul(a, s) y = MatMul(b, P)",
            n=_ints(-1),
        )
        for name in ("Mean", "Sum", "Max", "Min", "L1", "L2", "LogSum", "SumSquare")
    },
    "without the axis": image(
        "a = ReduceMean<axes=[2,3], keepdims=0>(h) r = Relu(a) y = MatMul(r, P)", opset=13, P=(8, 3)
    ),
    **{
        f"{name} over channels": Case(
            f"h = MatMul(x, A) s = Sigmoid(h) a = Reduce{name}(s, n) y = Mul(a, x)",
            {"A": (6, 8), "n": _ints(-1)},
            (),
            frozen=f"Reduce{name} is taken",
            opset=20,
        )
        for name in ("Prod", "LogSumExp")
    },
}
