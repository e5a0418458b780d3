"""``fuse``: normalizations and softmax from arithmetic, and what only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import assert_equal_outputs, check, feed_for
from support import model_from_text, op_types

from passes import Fuse

F16 = 1e-2  # the written-out form rounds its statistics to 11 bits at every step
TOLERANCE = {"float": 1e-5, "float16": F16, "double": 1e-12}
KIND: dict[str, Any] = {"float": np.float32, "float16": np.float16, "double": np.float64}
H = 8
RNG = np.random.default_rng(5)
WEIGHTS = {
    "w": RNG.uniform(0.5, 1.5, H),
    "b": RNG.standard_normal(H),
    "w11": RNG.uniform(0.5, 1.5, (1, 1, H)),
    "b11": RNG.standard_normal((1, 1, H)),
    "c": RNG.uniform(0.5, 1.5, (3, 1, 1)),
    "d": RNG.standard_normal((1, 3, 1, 1)),
    "wide": RNG.standard_normal((2, 1, 1, H)),
    "short": np.array([0.5]),
    "eps": np.array(1e-5),
    "eps1": np.array([1e-5]),
    "below": np.array(-1e-5),
    "two": np.array(2.0),
    "three": np.array(3.0),
    "one": np.array(1.0),
    "power": np.array(-0.5),
    "last": np.array([-1]),
    "second": np.array([1]),
    "spatial": np.array([2, 3]),
}


def build(
    body: str, *, dtype: str = "float", opset: int = 18, shape: str = "N,3,8", **more: np.ndarray
) -> ir.Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: np.asarray(array) for name, array in WEIGHTS.items() if name in words}
    used = {n: a.astype(KIND[dtype]) if a.dtype.kind == "f" else a for n, a in used.items()}
    text = f"g ({dtype}[{shape}] x) => ({dtype} y) {{ {body} }}"
    return finish(model_from_text(text, opset=opset, **{**used, **more}))


def finish(model: ir.Model) -> ir.Model:
    """Name the nodes as exporters do; a fusion must not cost more bytes than that."""
    for value in model.graph.outputs:
        value.shape = None
    for index, node in enumerate(model.graph):
        node.name = f"/encoder/layer.0/attention/output/LayerNorm/{node.op_type}_{index}"
    return model


def mean(axes: str = "last") -> str:
    return f"m = ReduceMean (x, {axes}) e = Sub (x, m) "


def variance(square: str = "Pow (e, two)", axes: str = "last", eps: str = "eps") -> str:
    return f"q = {square} v = ReduceMean (q, {axes}) a = Add (v, {eps}) s = Sqrt (a) "


NORM = mean() + variance()
AFFINE = "t = Mul (n, w) y = Add (t, b)"

LAYER_NORMS = {
    "divided": NORM + "n = Div (e, s) " + AFFINE,
    "product": mean() + variance("Mul (e, e)") + "n = Div (e, s) " + AFFINE,
    "reciprocal": NORM + "i = Reciprocal (s) n = Mul (e, i) " + AFFINE,
    "one over": NORM + "i = Div (one, s) n = Mul (i, e) t = Mul (w, n) y = Add (b, t)",
    "power": mean()
    + "q = Pow (e, two) v = ReduceMean (q, last) a = Add (eps, v) i = Pow (a, power)"
    + " n = Mul (e, i) "
    + AFFINE,
    "two deviations": "m = ReduceMean (x, last) k = ReduceMean (x, last) e = Sub (x, k)"
    " f = Sub (x, m) q = Pow (f, two) v = ReduceMean (q, last) a = Add (v, eps) s = Sqrt (a)"
    " n = Div (e, s) " + AFFINE,
    "constants with axes": mean()
    + variance(eps="eps1")
    + "n = Div (e, s) t = Mul (n, w11) y = Add (t, b11)",
    "keras": NORM + "r = Reciprocal (s) f = Mul (r, w) u = Mul (m, f) z = Sub (b, u)"
    " p = Mul (x, f) y = Add (p, z)",
    "no bias": NORM + "n = Div (e, s) y = Mul (n, w)",
    "no parameters": NORM + "y = Div (e, s)",
    "factor from outside": NORM + "n = Div (e, s) g = Mul (n, x) y = Add (g, b)",
}


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("case", LAYER_NORMS)
def test_layer_norms(case: str, dtype: str) -> None:
    model = build(LAYER_NORMS[case], dtype=dtype)
    check(Fuse(), model, tolerance=TOLERANCE[dtype])
    left = [kind for kind in op_types(model) if kind != "ConstantOfShape"]
    assert left == ["LayerNormalization", *(["Mul", "Add"] if "outside" in case else [])]
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    assert norm.attributes["axis"].as_int() == -1
    assert norm.attributes["epsilon"].as_float() == pytest.approx(1e-5, rel=2e-2)  # as a half


def test_axes_as_attribute() -> None:
    body = (
        "m = ReduceMean <axes = [2]> (x) e = Sub (x, m) q = Pow (e, two)"
        " v = ReduceMean <axes = [-1]> (q) a = Add (v, eps) s = Sqrt (a) n = Div (e, s) " + AFFINE
    )
    model = build(body, opset=17)
    check(Fuse(), model, tolerance=1e-5)
    assert op_types(model) == ["LayerNormalization"]


def test_two_axes() -> None:
    body = NORM.replace("last", "axes") + "n = Div (e, s) t = Mul (n, w2) y = Add (t, b2)"
    more = {"axes": np.array([-1, -2]), "w2": RNG.random((3, H), np.float32)}
    model = build(body, b2=RNG.random((1, 3, H), np.float32), **more)
    check(Fuse(), model, tolerance=1e-5)
    assert op_types(model) == ["LayerNormalization"]
    assert model.graph.node(0).attributes["axis"].as_int() == -2


def test_mixed_precision() -> None:
    body = (
        "h = Cast <to = 1> (x) m = ReduceMean (h, last) e = Sub (h, m) q = Pow (e, k2)"
        " v = ReduceMean (q, last) a = Add (v, k5) s = Sqrt (a) n = Div (e, s)"
        " l = Cast <to = 10> (n) " + AFFINE.replace("(n,", "(l,")
    )
    more = {"k2": np.array(2, np.float32), "k5": np.array(1e-5, np.float32)}
    model = build(body, dtype="float16", **more)
    check(Fuse(), model, tolerance=2e-3)  # one float16 rounding
    assert op_types(model) == ["LayerNormalization"]
    assert model.graph.node(0).inputs[0] is model.graph.inputs[0]


def test_statistics_in_double_stay() -> None:
    body = (
        "h = Cast <to = 11> (x) m = ReduceMean (h, last) e = Sub (h, m) q = Pow (e, k2)"
        " v = ReduceMean (q, last) a = Add (v, k5) s = Sqrt (a) n = Div (e, s)"
        " l = Cast <to = 1> (n) " + AFFINE.replace("(n,", "(l,")
    )
    model = build(body, k2=np.array(2, np.float64), k5=np.array(1e-5, np.float64))
    outcome = check(Fuse(), model)
    assert "LayerNormalization" not in op_types(model)
    assert any("float32" in skip.reason for skip in outcome.skipped)


CHANNELS = mean("spatial") + variance(axes="spatial") + "n = Div (e, s) "


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("opset", [13, 18])
def test_instance_norm(dtype: str, opset: int) -> None:
    body = CHANNELS + "t = Mul (n, c) y = Add (t, d)"
    if opset < 18:
        body = body.replace("ReduceMean (x, spatial)", "ReduceMean <axes = [2, 3]> (x)")
        body = body.replace("ReduceMean (q, spatial)", "ReduceMean <axes = [-2, -1]> (q)")
    model = build(body, dtype=dtype, opset=opset, shape="N,3,4,8")
    check(Fuse(), model, tolerance=TOLERANCE[dtype])
    assert op_types(model) == ["InstanceNormalization"]


def test_norm_of_channels() -> None:
    body = mean("second") + variance(axes="second") + "n = Div (e, s) t = Mul (n, c) y = Add (t, d)"
    model = build(body, shape="N,3,4,8")
    check(Fuse(), model, tolerance=1e-5)
    assert op_types(model) == ["Transpose", "LayerNormalization", "Transpose"]


RMS = "q = Pow (x, two) v = ReduceMean (q, last) a = Add (v, eps) s = Sqrt (a) "
RMS_NORMS = {
    "divided": RMS + "n = Div (x, s) y = Mul (n, w)",
    "one over": RMS + "i = Div (one, s) n = Mul (x, i) y = Mul (w, n)",
    "reciprocal": RMS.replace("Pow (x, two)", "Mul (x, x)")
    + "i = Reciprocal (s) n = Mul (x, i) y = Mul (w, n)",
    "factor first": RMS + "i = Reciprocal (s) f = Mul (i, w) y = Mul (x, f)",
    "no factor": RMS + "y = Div (x, s)",
}


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("case", RMS_NORMS)
def test_rms_norms(case: str, dtype: str) -> None:
    model = build(RMS_NORMS[case], dtype=dtype, opset=23)
    check(Fuse(), model, tolerance=TOLERANCE[dtype])
    assert [k for k in op_types(model) if k != "ConstantOfShape"] == ["RMSNormalization"]


def test_rms_norm_in_mixed_precision() -> None:
    body = (
        "h = Cast <to = 1> (x) q = Pow (h, k2) v = ReduceMean (q, last) a = Add (v, k5)"
        " s = Sqrt (a) i = Reciprocal (s) n = Mul (h, i) l = Cast <to = 10> (n) y = Mul (w, l)"
    )
    more = {"k2": np.array(2, np.float32), "k5": np.array(1e-5, np.float32)}
    model = build(body, dtype="float16", opset=23, **more)
    check(Fuse(), model, tolerance=2e-3)  # one float16 rounding
    assert op_types(model) == ["RMSNormalization"]


TOP = "m = ReduceMax (x, last) e = Sub (x, m) p = Exp (e) s = ReduceSum (p, last) "
SOFTMAXES = {
    "divided": (TOP + "y = Div (p, s)", "Softmax"),
    "reciprocal": (TOP + "i = Reciprocal (s) y = Mul (p, i)", "Softmax"),
    "logarithm": (TOP + "l = Log (s) y = Sub (e, l)", "LogSoftmax"),
    "reduced": ("l = ReduceLogSumExp (x, last) y = Sub (x, l)", "LogSoftmax"),
    "inner axis": ((TOP + "y = Div (p, s)").replace("last", "second"), "Softmax"),
}


@pytest.mark.parametrize("dtype", ["float", "float16", "double"])
@pytest.mark.parametrize("case", SOFTMAXES)
def test_softmaxes(case: str, dtype: str) -> None:
    body, expected = SOFTMAXES[case]
    if dtype == "float16" and case == "reduced":
        pytest.skip("onnxruntime has no ReduceLogSumExp for float16")
    model = build(body, dtype=dtype)
    before = model.clone()
    check(Fuse(), model, tolerance=TOLERANCE[dtype])
    feed = {"x": feed_for(before)["x"].copy()}
    feed["x"].flat[3] = np.nan
    assert_equal_outputs(before, model, feed, tolerance=TOLERANCE[dtype])
    loses_nan = dtype == "double" and expected == "LogSoftmax"  # in onnxruntime
    assert (op_types(model) == [expected]) != loses_nan


KEPT = {
    "one axis left out": mean("second") + variance() + "n = Div (e, s) " + AFFINE,
    "mean over another axis": mean() + variance(axes="second") + "n = Div (e, s) " + AFFINE,
    "cube": mean() + variance("Pow (e, three)") + "n = Div (e, s) " + AFFINE,
    "negative epsilon": mean() + variance(eps="below") + "n = Mul (e, s) " + AFFINE,
    "no root": NORM + "n = Div (e, a) " + AFFINE,
    "other product": mean() + variance("Mul (e, x)") + "n = Div (e, s) " + AFFINE,
    "variance is used": NORM + "n = Div (e, s) t = Mul (n, w) z = Add (t, b) y = Add (z, s)",
    "softmax without its largest": "p = Exp (x) s = ReduceSum (p, last) y = Div (p, s)",
    "softmax, another sum": TOP.replace("(p, last)", "(p, second)") + "y = Div (p, s)",
    "log of softmax": "p = Softmax (x) y = Log (p)",
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves(case: str) -> None:
    model = build(KEPT[case])
    before = op_types(model)
    check(Fuse(), model, tolerance=1e-5)
    assert op_types(model) == before


def test_does_not_enlarge() -> None:
    """A factor with more axes than the input gives the product more axes, too."""
    model = build(NORM + "n = Div (e, s) t = Mul (n, wide) y = Add (t, b)")
    check(Fuse(), model, tolerance=1e-5)
    assert "Mul" in op_types(model)
    body = NORM + "n = Div (e, s) t = Mul (n, w) y = Add (t, b)"
    model = build(body, shape="N,3,1")  # normalizes one element, then makes eight of it
    check(Fuse(), model, tolerance=1e-5)
    assert "Mul" in op_types(model)


def test_early_operator_sets_and_double_stay() -> None:
    for opset, dtype, reason in ((16, "float", "opset 17"), (18, "double", "DOUBLE")):
        body = NORM + "n = Div (e, s) " + AFFINE
        if opset < 18:
            body = body.replace("(x, last)", "(x)").replace("(q, last)", "(q)")
            body = body.replace("ReduceMean", "ReduceMean <axes = [-1]>")
        model = build(body, opset=opset, dtype=dtype)
        outcome = check(Fuse(), model, tolerance=1e-5)
        assert "LayerNormalization" not in op_types(model)
        assert any(reason in skip.reason for skip in outcome.skipped)


GROUPS = (
    "r = Reshape (x, split) i = InstanceNormalization <epsilon = 0.001> (r, ones, zeros)"
    " z = Shape (x) o = Reshape (i, z) t = Mul (o, f) y = Add (t, h)"
)


def test_group_norm_when_asked_for() -> None:
    arrays = {
        "split": np.array([0, 2, -1]),
        "ones": np.ones(2, np.float32),
        "zeros": np.zeros(2, np.float32),
        "f": RNG.random((4, 1, 1), np.float32),
        "h": RNG.random((4, 1, 1), np.float32),
    }
    model = build(GROUPS, opset=21, shape="N,4,3,3", **arrays)
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert any("twice as long" in skip.reason for skip in outcome.skipped)
    check(Fuse(extra=("group_normalizations_fused",)), model, tolerance=1e-5)
    assert op_types(model) == ["GroupNormalization"]


def test_log_of_softmax_when_asked_for() -> None:
    model = build("p = Softmax <axis = 1> (x) y = Log (p)")
    check(Fuse(extra=("log_softmaxes_fused",)), model, tolerance=1e-5)
    assert op_types(model) == ["LogSoftmax"]
    assert model.graph.node(0).attributes["axis"].as_int() == 1


def test_in_a_branch_and_in_a_function() -> None:
    core = NORM + "n = Div (e, s) "
    text = (
        '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>\n'
        f"g (float[N,3,8] x, bool c) => (float r, float y) {{ r = If (c) <"
        f"then_branch = t () => (float o) {{ {core} k = Mul (n, w) o = Add (k, b) }},"
        f" else_branch = f () => (float p) {{ p = Neg (x) }}> y = own.norm (x, w, b) }}\n"
        '<domain: "own", opset_import: ["" : 18]> norm (x, w, b) => (y) '
        "{ last = Constant <value = int64[1] {-1}> () two = Constant <value = float {2.0}> ()"
        f" eps = Constant <value = float {{0.00001}}> () one = Constant <value = float {{1.0}}> ()"
        f" {core} sm = Softmax (n) en = Neg (sm) ex = Exp (en) de = Add (ex, one)"
        " y = Div (one, de) }"
    )
    used = {"w", "b", "last", "two", "eps"}
    arrays = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in WEIGHTS.items()
        if name in used
    }
    model = finish(model_from_text(text, **arrays))
    for index, node in enumerate(model.functions["own", "norm", ""]):
        node.name = f"/a/long/name/in/a/function/{node.op_type}_{index}"
    check(Fuse(), model, tolerance=1e-5)
    branch = model.graph.node(0).attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["LayerNormalization"]
    body = [node.op_type for node in model.functions["own", "norm", ""]]
    assert "Sigmoid" in body  # its type follows from its constant; the size of x is not known
    assert "LayerNormalization" not in body
