"""What can go without any change of the outputs."""

from __future__ import annotations

import numpy as np
import pytest
from support import assert_same_outputs, model_from_text

from converter.core.context import Context
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.coupling.cut import cut
from passes.coupling.lossless import find_exact


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def shrink(model, feed, *, count):
    """Find, cut, compare, and return the search's result."""
    before = model.clone()
    shapes = observe_shapes(model, Context())
    found = find_exact(model, lambda m: couple(m, shapes))
    assert_same_outputs(before, model, feed)  # the edits alone change nothing
    cut(model, found.coupling, found.alive)
    assert_same_outputs(before, model, feed)
    assert found.removed == count
    return found


def normalization(**changes):
    parts = {"g": draw(6), "s": draw(7)[:6], "m": draw(8)[:6], "v": np.abs(draw(9)[:6]) + 0.5}
    for name, (index, number) in changes.items():
        parts[name][index] = number
    return parts


IMAGE = {"x": draw(2, 3, 9, 9)}
TWO = "g (float[N,3,9,9] x) => (float[N,5,H,W] y){{ h = Conv(x, a, b)  {} y = Conv{}(r, c, d) }}"


def two(between, words="", *, a=None, b=None, c=None, **more):
    parts = {"a": draw(6, 3, 3, 3), "b": draw(6), "c": draw(5, 6, 3, 3), "d": draw(5)}
    given = {k: v for k, v in (("a", a), ("b", b), ("c", c)) if v is not None}
    return model_from_text(TWO.format(between, words), **(parts | given | more))


def without(array, *indices):
    array = array.copy()
    array[list(indices)] = 0
    return array


def test_nothing_to_find():
    assert not shrink(two("r = Relu(h)"), IMAGE, count=0).notes


def test_channels_that_nothing_reads():
    c = draw(5, 6, 3, 3)
    c[:, [1, 4]] = 0
    found = shrink(two("r = Relu(h)", "<pads=[1,1,1,1]>", c=c), IMAGE, count=2)
    assert (found.unread, found.constant, found.equal) == (2, 0, 0)
    assert "2 that nothing reads" in found.notes[0]


def test_a_chain_of_layers_that_nothing_reads_goes_as_a_whole():
    second, third = draw(8, 6), draw(5, 8)
    third[:, [2, 3]] = 0
    second[[0, 1, 4, 5, 6, 7], 5] = 0  # channel 5 is read by 2 and 3 alone
    model = model_from_text(
        "g (float[N,4] x) => (float[N,5] y) { h = Gemm<transB=1>(x, a, b)  r = Relu(h)"
        "  i = Gemm<transB=1>(r, c)  s = Relu(i)  y = Gemm<transB=1>(s, d) }",
        a=draw(6, 4), b=draw(6), c=second, d=third,
    )  # fmt: skip
    assert shrink(model, {"x": draw(3, 4)}, count=3).unread == 3


def test_zero_channels_go_though_the_next_layer_pads():
    model = two(
        "r = Relu(h)", "<pads=[1,1,1,1]>", a=without(draw(6, 3, 3, 3), 2), b=-np.abs(draw(6))
    )
    found = shrink(model, IMAGE, count=1)
    assert found.constant == 1


def test_constants_move_into_the_next_bias():
    a = without(draw(6, 3, 3, 3), 2, 3)
    found = shrink(two("r = Sigmoid(h)", a=a), IMAGE, count=2)
    assert (found.unread, found.constant, found.equal) == (0, 2, 0)


def test_constants_stay_before_zero_padding():
    a = without(draw(6, 3, 3, 3), 2)
    shrink(two("r = Sigmoid(h)", "<pads=[1,1,1,1]>", a=a), IMAGE, count=0)
    shrink(two("r = Sigmoid(h)", '<auto_pad="SAME_UPPER">', a=a), IMAGE, count=0)


def test_constants_pass_normalization_pooling_and_addition():
    a = without(draw(6, 3, 3, 3), 1, 4)
    between = (
        "n = BatchNormalization(h, g, s, m, v)  t = HardSwish(n)"
        "  p = MaxPool<kernel_shape=[2,2]>(t)  u = Mul(p, k)  w = Clip(u, low, high)  r = Add(w, o)"
    )
    model = two(
        between, a=a, **normalization(), k=draw(6, 1, 1), o=draw(1, 6, 1, 1),
        low=np.float32(-1), high=np.float32(1),
    )  # fmt: skip
    assert shrink(model, IMAGE, count=2).constant == 2


def test_both_branches_of_a_residual_stream_must_be_constant():
    text = (
        "g (float[N,3,9,9] x) => (float[N,5] y) { h = Conv(x, a)  i = Conv<pads=[1,1,1,1]>(h, b)"
        "  s = Add(h, i)  r = Relu(s)  p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm(f, c) }"
    )
    parts = {"a": without(draw(6, 3, 3, 3), 1, 2), "b": without(draw(6, 6, 3, 3), 2, 3)}
    shrink(model_from_text(text, **parts, c=draw(6, 5)), IMAGE, count=1)


def test_flattened_constants_and_tied_biases():
    text = (
        "g (float[N,3,9,9] x) => (float[N,4] y, float[N,4] z) { h = Conv(x, a)  r = Sigmoid(h)"
        "  f = Flatten(r)  y = Gemm(f, c, d)  z = Gemm<transB=1, beta=2.0>(f, e, d) }"
    )
    parts = {"c": draw(294, 4), "d": draw(4), "e": draw(4, 294)}
    model = model_from_text(text, a=without(draw(6, 3, 3, 3), 0), **parts)
    assert shrink(model, IMAGE, count=1).constant == 1


@pytest.mark.parametrize("bias", [True, False])
def test_products_without_a_bias(bias):
    text = (
        "g (float[N,7,4] x) => (float[N,7,5] y) {{ h = MatMul(x, a)  r = Sigmoid(h)"
        "  {} = MatMul(r, c) {} }}"
    ).format(*(("i", "y = Add(d, i)") if bias else ("y", "")))
    a = draw(4, 6)
    a[:, 3] = 0
    model = model_from_text(text, a=a, c=draw(6, 5), d=draw(5))
    shrink(model, {"x": draw(2, 7, 4)}, count=int(bias))


def test_channels_below_zero_whatever_comes_in():
    a, b, c, d = draw(6, 3, 3, 3), draw(6), draw(5, 6, 3, 3), draw(5)
    a[2] *= 1e-9  # a pixel of 65536 would not make up for the bias
    b[2] = -1
    most = 6 * np.maximum(without(c.swapaxes(0, 1), 2), 0).sum(axis=(0, 2, 3))
    d[1], d[3] = -most[1] - 1, -most[3] + 1
    text = (
        "g (float[N,3,9,9] x) => (float[N,4,H,W] y) { h = Conv(x, a, b)  r = Clip(h, zero, six)"
        "  p = AveragePool<kernel_shape=[2,2]>(r)  i = Conv<pads=[1,1,1,1]>(p, c, d)"
        "  n = Identity(i)  s = Relu(n)  y = Conv(s, e) }"
    )
    model = model_from_text(
        text, a=a, b=b, c=c, d=d, e=draw(4, 5, 3, 3), zero=np.float32(0), six=np.float32(6)
    )
    assert shrink(model, IMAGE, count=2).constant == 2


@pytest.mark.parametrize("function", ["Sigmoid", "Tanh", "HardSigmoid", "Softmax", "LeakyRelu"])
def test_ranges_of_activation_functions(function):
    text = (
        f"g (float[N,4] x) => (float[N,5] y) {{ h = Gemm(x, a)  f = {function}(h)"
        "  i = Gemm(f, b, c)  r = Relu(i)  y = Gemm(r, d) }"
    )
    b, c = draw(6, 8), draw(8)
    c[[1, 2]] = -1.01 * np.abs(b[:, [1, 2]]).sum(axis=0)
    model = model_from_text(text, a=draw(4, 6), b=b, c=c, d=draw(8, 5))
    shrink(model, {"x": 9 * draw(3, 4)}, count=0 if function == "LeakyRelu" else 2)


def test_nothing_is_assumed_of_features():
    text = "g (float[N,4] x) => (float[N,5] y) { h = Gemm(x, a, b)  r = Relu(h)  y = Gemm(r, c) }"
    model = model_from_text(text, a=1e-20 * draw(4, 6), b=-np.abs(draw(6)), c=draw(6, 5))
    shrink(model, {"x": 1e20 * draw(3, 4)}, count=0)


def test_biases_that_exporters_share_through_identities():
    text = (
        "g (float[N,7,4] x) => (float[N,7,6] y) { e = Identity(b)  f = Identity(b)"
        "  h = MatMul(x, a)  i = Add(e, h)  r = Sigmoid(i)  j = MatMul(r, c)  y = Add(j, f) }"
    )
    a = draw(4, 6)
    a[:, 3] = 0
    shrink(model_from_text(text, a=a, b=draw(6), c=draw(6, 6)), {"x": draw(2, 7, 4)}, count=1)


def test_equal_channels_are_merged():
    a, b = draw(6, 3, 3, 3), draw(6)
    a[[3, 5]], b[[3, 5]] = a[0], b[0]
    a[4] = a[1]  # the biases differ
    norm = normalization()
    for part in norm.values():
        part[[3, 5]] = part[0]
    model = two(
        "n = BatchNormalization(h, g, s, m, v)  r = Relu(n)", "<pads=[1,1,1,1]>", a=a, b=b, **norm
    )
    found = shrink(model, IMAGE, count=2)
    assert (found.unread, found.constant, found.equal) == (0, 0, 2)
    assert "2 that equal another one" in found.notes[0]


def test_equal_channels_with_other_normalizations_stay():
    a, b = draw(6, 3, 3, 3), draw(6)
    a[3], b[3] = a[0], b[0]
    model = two("n = BatchNormalization(h, g, s, m, v)  r = Relu(n)", a=a, b=b, **normalization())
    shrink(model, IMAGE, count=0)


def test_equal_channels_behind_depthwise_layers_and_a_residual_stream():
    text = (
        "g (float[N,3,9,9] x) => (float[N,5] y) { h = Conv(x, a)  d = Conv<group=6>(h, k)"
        "  t = PRelu(d, slope)  i = Conv(t, b)  s = Add(t, i)"
        "  p = GlobalMaxPool(s)  f = Flatten(p)  y = Gemm(f, c) }"
    )
    a, k, b, slope = draw(6, 3, 3, 3), draw(6, 1, 3, 3), draw(6, 6, 1, 1), draw(6, 1, 1)
    for part in (a, k, b, slope):
        part[4] = part[2]
        part[5] = part[1]
    b[5] = 1  # equal in one branch alone
    model = model_from_text(text, a=a, k=k, b=b, slope=slope, c=draw(6, 5))
    assert shrink(model, IMAGE, count=1).equal == 1


def test_groups_lose_equally_many():
    text = (
        "g (float[N,3,9,9] x) => (float[N,4,H,W] y) { h = Conv(x, a)  r = Relu(h)"
        "  y = Conv<group=2>(r, c) }"
    )
    a, c = draw(6, 3, 3, 3), draw(4, 3, 3, 3)
    shrink(model_from_text(text, a=without(a, 0), c=c), IMAGE, count=0)
    found = shrink(model_from_text(text, a=without(a, 0, 3), c=c), IMAGE, count=1)
    assert found.alive.sum() == 2


def test_shared_weights_are_not_edited_for_one_reader():
    text = (
        "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w)  t = Sigmoid(h)"
        "  i = MatMul(t, w)  u = Add(i, b)  y = MatMul(u, c) }"
    )
    w = draw(4, 4)
    w[:, 1] = 0
    model = model_from_text(text, w=w, b=draw(4), c=draw(4, 4))
    shrink(model, {"x": draw(2, 4)}, count=0)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_types_of_numbers(kind):
    a, c = draw(4, 6), draw(6, 5)
    a[:, [1, 2]] = 0
    dtype = {"float16": np.float16, "double": np.float64}[kind]
    parts = {"a": a, "b": draw(6), "c": c, "d": draw(5)}
    model = model_from_text(
        f"g ({kind}[N,4] x) => ({kind}[N,5] y) {{ h = Gemm(x, a, b)  r = Sigmoid(h)"
        "  y = Gemm(r, c, d) }",
        **{name: part.astype(dtype) for name, part in parts.items()},
    )
    before, shapes = model.clone(), observe_shapes(model, Context())
    found = find_exact(model, lambda m: couple(m, shapes))
    cut(model, found.coupling, found.alive)
    # float16 has three digits
    tolerance = 1e-2 if kind == "float16" else 1e-9
    feed = {"x": draw(3, 4).astype(dtype)}
    assert_same_outputs(before, model, feed, rtol=tolerance, atol=tolerance)
    assert found.constant == 2


def test_weights_that_are_no_numbers():
    a, c = draw(6, 3, 3, 3), draw(5, 6, 3, 3)
    a[2], c[:, 3] = np.nan, np.inf
    model = two("r = Relu(h)", a=a, c=c)
    shapes = observe_shapes(model, Context())
    assert find_exact(model, lambda m: couple(m, shapes)).removed == 0


def test_constants_of_quantized_layers_stay():
    text = (
        "g (float[N,4] x) => (float[N,5] y) { w = DequantizeLinear(q, scale)  h = MatMul(x, w)"
        "  r = Sigmoid(h)  y = MatMul(r, c) }"
    )
    q = (draw(4, 6) * 40).astype(np.int8)
    q[:, 1] = 0
    model = model_from_text(text, q=q, scale=np.float32(0.1), c=draw(6, 5))
    shrink(model, {"x": draw(2, 4)}, count=0)


def test_one_channel_is_left_of_a_layer_that_does_nothing():
    model = two("r = Relu(h)", a=np.zeros((6, 3, 3, 3), np.float32), b=np.zeros(6, np.float32))
    assert shrink(model, IMAGE, count=5).alive.sum() == 1


def test_means_over_channels_keep_their_zeros():
    text = (
        "g (float[N,4] x) => (float[N,5] y) { h = MatMul(x, a)"
        "  n = LayerNormalization(h, s)  y = MatMul(n, c) }"
    )
    a = draw(4, 6)
    a[:, 3] = 0
    model = model_from_text(text, a=a, s=draw(6), c=draw(6, 5))
    shrink(model, {"x": draw(2, 4)}, count=0)


def test_heads_without_values_go():
    text = (
        "g (float[N,7,8] x) => (float[N,7,8] y) {"
        "  q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)"
        "  q4 = Reshape(q, split)  k4 = Reshape(k, split)  v4 = Reshape(v, split)"
        "  qt = Transpose<perm=[0,2,1,3]>(q4)  kt = Transpose<perm=[0,2,3,1]>(k4)"
        "  vt = Transpose<perm=[0,2,1,3]>(v4)  s = MatMul(qt, kt)  p = Softmax(s)"
        "  o = MatMul(p, vt)  ot = Transpose<perm=[0,2,1,3]>(o)  c = Reshape(ot, join)"
        "  m = MatMul(c, wo)  y = Add(m, b) }"
    )
    wo = draw(8, 8)
    wo[2:4] = 0
    model = model_from_text(
        text, wq=draw(8, 8), wk=draw(8, 8) / 2, wv=draw(8, 8) / 3, wo=wo, b=draw(8),
        split=np.array([0, 0, 4, 2]), join=np.array([0, 0, 8]),
    )  # fmt: skip
    assert shrink(model, {"x": draw(2, 7, 8)}, count=1).unread == 1


def test_only_what_is_allowed():
    a, c = without(draw(6, 3, 3, 3), 2), without(draw(6, 6, 3, 3), 0, 3)
    text = (
        "g (float[N,3,9,9] x) => (float[N,5,H,W] y) { h = Conv(x, a)  r = Relu(h)"
        "  i = Conv(r, c)  s = Relu(i)  y = Conv(s, d) }"
    )
    model = model_from_text(text, a=a, c=c, d=draw(5, 6, 3, 3))
    shapes = observe_shapes(model, Context())
    found = find_exact(model, lambda m: couple(m, shapes), lambda c: c.name == "h")
    assert found.removed == 1
    assert find_exact(model, lambda m: couple(m, shapes)).removed == 3


def test_same_model_same_bytes():
    import onnx_ir as ir

    def made():
        a = without(draw(6, 3, 3, 3), 2, 3)
        a[5] = a[4]
        b = draw(6)
        b[5] = b[4]
        model = two("r = Sigmoid(h)", a=a, b=b)
        shapes = observe_shapes(model, Context())
        find_exact(model, lambda m: couple(m, shapes))
        return ir.to_proto(model).SerializeToString(deterministic=True)

    assert made() == made()
