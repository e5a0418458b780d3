"""Verdicts about pairs of small models."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import model_from_text

from converter.core.context import RunSettings
from converter.data.sources import open_data
from converter.errors import (
    BatchError,
    DataError,
    LimitExceededError,
    MissingDataError,
    ModelError,
    UnsupportedOperatorError,
    VerificationError,
)
from converter.verification.budget import Budget
from converter.verification.exact import compare_models
from converter.verification.randomness import random_outputs
from converter.verification.verify import verify

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 5)).astype(np.float32)
CLASSIFIER = "g (float[N,4] x) => (float[N,5] y) { y = MatMul(x, w) }"
X = RNG.standard_normal((20, 4)).astype(np.float32)


class Pair:
    def __init__(self, folder):
        self.folder = folder

    def save(self, name, model):
        path = self.folder / f"{name}.onnx"
        onnx.save(ir.to_proto(model), path)
        return path

    def __call__(self, before, after, data="synthetic", budget=(), latency=False, **words):
        first, second = self.save("before", before), self.save("after", after)
        return verify(
            first,
            second,
            open_data(data, before, **words),
            budget=Budget.parse(budget),
            settings=RunSettings(),
            latency=latency,
        )


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path)


def classifier(w=W):
    return model_from_text(CLASSIFIER, w=w)


def test_equal_models(pair):
    labels = (X @ W).argmax(-1)
    verdict = pair(classifier(), classifier(), {"x": X, "labels": labels}, latency=True, batch=3)
    assert verdict.passed
    found = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert found["equal"]
    assert found["accuracy"] == {"original": 1.0, "converted": 1.0, "output": "y"}
    assert (found["agreement"], found["flips"], found["samples"], found["runs"]) == (1, 0, 20, 7)
    assert found["size"]["ratio"] == found["nodes"]["ratio"] == found["params"]["ratio"] == 1
    assert [m["ratio"] > 0 for m in found["latency"]["models"]] == [True, True]
    assert (found["synthetic"], found["notes"]) == (False, [])


def test_figures_of_a_changed_model(pair):
    other = W + np.float32(0.3) * RNG.standard_normal(W.shape).astype(np.float32)
    labels = (X @ W).argmax(-1)
    verdict = pair(classifier(), classifier(other), {"x": X, "labels": labels}, batch=8)
    old, new = X @ W, X @ other
    (output,) = verdict.outputs
    assert output.max_abs == pytest.approx(np.abs(old - new).max(), rel=1e-4)
    power = (old.astype(float) ** 2).sum() / ((old - new).astype(float) ** 2).sum()
    assert output.sqnr_db == pytest.approx(10 * np.log10(power), rel=1e-3)
    agreement = (old.argmax(-1) == new.argmax(-1)).mean()
    assert verdict.agreement == pytest.approx(agreement)
    assert verdict.accuracy.accuracy_converted == pytest.approx(agreement)


def test_budgets_decide(pair):
    other = W * np.float32(1.1)
    labels = (X @ W).argmax(-1)
    good = ["sqnr>=15", "size<=1x", "accuracy>=1x", "accuracy>=0.99", "flips<=0%", "agreement>=1",
            "cosine>=0.99", "nodes<=1", "params<=1x", "latency<=1000x", "latency<=10s",
            "max_rel_error<=15%"]  # fmt: skip
    verdict = pair(classifier(), classifier(other), {"x": X, "labels": labels}, good)
    assert verdict.passed
    assert [c.metric for c in verdict.checks] == [
        t.partition("<")[0].partition(">")[0] for t in good
    ]
    bad = ["sqnr>=30", "size<=0.9x", "max_error<=1e-6", "latency<=0.0001us", "size<=1B"]
    verdict = pair(classifier(), classifier(other), {"x": X, "labels": labels}, bad)
    assert not verdict.passed
    assert [c.passed for c in verdict.checks] == [False] * 5
    text = [str(c) for c in verdict.checks]
    assert text[0].startswith("sqnr>=30 measured 20")
    assert "output 'y'" in text[0]
    assert "size<=0.9x measured 1x" in text[1]


def test_a_budget_that_cannot_be_measured(pair):
    with pytest.raises(MissingDataError, match="labels"):
        pair(classifier(), classifier(), X, ["accuracy>=0.9"])
    model = model_from_text(
        "g (float[N,4] x) => (float[N,1] y) { y = ReduceSum(x, a) }", a=np.int64([1])
    )
    with pytest.raises(DataError, match="agreement"):
        pair(model, model, X, ["agreement>=0.9"])
    with pytest.raises(DataError, match="accuracy"):
        pair(model, model, {"x": X, "labels": np.zeros(20, int)}, ["accuracy>=0.9"])


def test_broken_outputs_fail(pair):
    nan = W.copy()
    nan[0, 0] = np.nan
    verdict = pair(classifier(), classifier(nan), X)
    assert not verdict.passed
    assert "NaN" in str(verdict.checks[0])
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert not pair(classifier(), classifier(nan), X, ["sqnr>=1"]).passed
    narrow = model_from_text(CLASSIFIER.replace("N,5", "N,M"), w=W[:, :4].copy())
    verdict = pair(classifier(), narrow, X)
    assert "shape" in str(verdict.checks[0])
    double = model_from_text(
        "g (float[N,4] x) => (double[N,5] y) { h = MatMul(x, w) y = Cast<to=11>(h) }", w=W
    )
    assert "type" in str(pair(classifier(), double, X).checks[0])


def test_nan_in_both_is_equal(pair):
    nan = W.copy()
    nan[0, 0] = np.nan
    assert pair(classifier(nan), classifier(nan), X).passed


def test_other_interfaces_are_refused(pair):
    for text, words in (
        (
            "g (float[N,4] z) => (float[N,5] y) { y = MatMul(z, w) }",
            "input 'x' is only in the orig",
        ),
        (
            "g (float[N,4] x) => (float[N,5] q) { q = MatMul(x, w) }",
            "output 'q' is only in the oth",
        ),
    ):
        with pytest.raises(VerificationError, match=words):
            pair(classifier(), model_from_text(text, w=W), X)


def test_only_the_converted_model_fails(pair):
    other = model_from_text(
        "g (float[N,4] x) => (float[N,5] y) { h = MatMul(x, w)  y = Reshape(h, s) }",
        w=W, s=np.int64([7, 5]),
    )  # fmt: skip
    with pytest.raises(VerificationError, match="the converted model does not"):
        pair(classifier(), other, X)


def test_the_original_fails(pair):
    bad = model_from_text(
        "g (float[N,4] x) => (float[N,5] y) { h = MatMul(x, w)  y = Reshape(h, s) }",
        w=W, s=np.int64([7, 5]),
    )  # fmt: skip
    with pytest.raises(ModelError, match="original model"):
        pair(bad, bad, X)
    unknown = classifier()
    unknown.graph.node(0).domain = "com.example"
    unknown.graph.opset_imports["com.example"] = 1
    with pytest.raises(UnsupportedOperatorError, match="--no-verify"):
        pair(unknown, unknown, X)


@pytest.mark.parametrize(
    "text",
    [
        "g () => (float[2] y) { y = Constant<value=float[2] {1,2}>() }",
        "g (float x) => (float y) { y = Relu(x) }",
        "g (float[N,0] x) => (float[N,0] y) { y = Relu(x) }",
        "g (string[N] x) => (string[N] y) { y = Identity(x) }",
        "g (float16[N,3] x) => (float16[N,3] y) { y = Relu(x) }",
        "g (bfloat16[N,3] x) => (bfloat16[N,3] y) { y = Identity(x) }",
        "g (int64[N,3] x) => (int64[N,3] y, bool[N,3] z) { y = Neg(x) z = Equal(x, y) }",
        "g (float[N] x) => (seq(float[N]) y) { y = SequenceConstruct(x, x) }",
        "g (float[N,3] x, float[3] w = {1,2,3}) => (float[N,3] y) { y = Mul(x, w) }",
        "g (double x) => (double y) { y = Neg(x) }",
    ],
)
def test_odd_models_equal_themselves(pair, text):
    model = model_from_text(text)
    verdict = pair(model, model, latency=True)
    assert verdict.passed
    assert verdict.to_dict()["equal"]
    assert "made up" in verdict.notes[0]
    assert compare_models(model, model, open_data("synthetic", model), settings=RunSettings()).equal


RANDOM = (
    "g (float[N,4] x) => (float[N,4] y, float[N,4] z)"
    " { r = RandomNormalLike(x) y = Add(x, r) z = Neg(x) }"
)


def test_random_outputs(pair, tmp_path):
    model = model_from_text(RANDOM)
    verdict = pair(model, model, X, ["sqnr>=100"])
    assert verdict.passed
    assert [o.random for o in verdict.outputs] == [True, False]
    assert "output 'y' is random by nature" in verdict.notes[0]
    only = model_from_text("g (float[2,4] x) => (float[2,4] y) { y = RandomUniformLike(x) }")
    with pytest.raises(DataError, match="sqnr"):
        pair(only, only, X, ["sqnr>=20"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{ m = Constant<value=bool {1}>() y, k = Dropout(x, r, m) }", True),
        ("{ m = Constant<value=bool {0}>() y, k = Dropout(x, r, m) }", False),
        ("{ y = Dropout(x) }", False),
        ("{ m = Bernoulli(x) n = ReduceSum<keepdims=0>(m) c = Cast<to=9>(n) y = If(c)"
         "<then_branch=t () => (float[N,4] a) {a = Neg(x)},"
         "else_branch=e () => (float[N,4] b) {b = Abs(x)}> }", True),
        ("{ c = Constant<value=bool {1}>() y = If(c)"
         "<then_branch=t () => (float[N,4] a) {a = RandomNormalLike(x)},"
         "else_branch=e () => (float[N,4] b) {b = Abs(x)}> }", True),
    ],
)  # fmt: skip
def test_reach_of_random_operators(pair, text, expected):
    model = model_from_text("g (float[N,4] x) => (float[N,4] y) " + text, r=np.float32(0.5))
    path = pair.save("m", model)
    assert bool(random_outputs(path)) is expected


def test_random_functions(pair):
    source = (
        '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>\n'
        "g (float[N,4] x) => (float[N,4] y) { y = f.outer(x) }\n"
        '<opset_import: ["" : 17, "f" : 1], domain: "f">\nouter (a) => (b) { b = f.inner(a) }\n'
        '<opset_import: ["" : 17], domain: "f">\ninner (a) => (b) { b = RandomNormalLike(a) }\n'
    )
    assert set(random_outputs(pair.save("m", model_from_text(source)))) == {"y"}


def test_data_errors_and_limits(pair, tmp_path):
    path = pair.save("m", classifier())
    other = model_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(BatchError):
        verify(path, path, open_data(np.zeros((2, 3), np.float32), other), settings=RunSettings())
    loop = model_from_text(
        "g (float[1] x) => (int64 y) { n = Constant<value=int64 {1000000000000}>()"
        " t = Constant<value=bool {1}>() y = Loop(n, t, n) <body = b (int64 i, bool c, int64 a)"
        " => (bool d, int64 e) { d = Identity(c)  e = Add(a, i) }> }"
    )
    from converter.core.context import Limits

    path = pair.save("l", loop)
    with pytest.raises(LimitExceededError):
        verify(path, path, open_data("synthetic", loop), settings=RunSettings(Limits(seconds=1)))


# --- exact ---------------------------------------------------------------------------------------


def compare(before, after, data):
    return compare_models(before, after, data, settings=RunSettings())


def test_exact_comparison():
    feeds = [{"x": X}]
    assert compare(classifier(), classifier(), feeds).equal
    rounded = compare(classifier(), classifier(W * np.float32(1 + 1e-6)), feeds)
    assert rounded.equal
    assert 0 < rounded.max_rel < 1e-5
    wrong = compare(classifier(), classifier(W * np.float32(1.01)), feeds)
    assert not wrong.equal
    assert wrong.worst_output == "y"
    assert "allowed 0.001" in wrong.detail
    whole = "g (int64[N] x) => (int64[N] y) { y = %s(x) }"
    found = compare(
        model_from_text(whole % "Identity"), model_from_text(whole % "Neg"), [{"x": np.arange(4)}]
    )
    assert "3 of 4 elements differ" in found.detail


def test_exact_comparison_uses_few_batches():
    found = []

    class Counting:
        def __iter__(self):
            for i in range(1000):
                found.append(i)
                yield {"x": X[:1]}

    assert compare(classifier(), classifier(), Counting()).equal


def test_multiply_accumulates_are_counted_per_sample(pair):
    before = model_from_text(CLASSIFIER, w=W)
    text = "g (float[N,4] x) => (float[N,5] y) { h = MatMul(x, u) y = MatMul(h, v) }"
    after = model_from_text(text, u=W[:, :2].copy(), v=np.ones((2, 5), np.float32))
    verdict = pair(before, after, {"x": X}, ["macs<=0.9x", "flops<=20"], batch=10)
    assert (verdict.macs.original, verdict.macs.converted) == (20, 18)
    assert [c.passed for c in verdict.checks] == [True, True]
    assert verdict.checks[0].metric == verdict.checks[1].metric == "macs"
    assert verdict.to_dict()["macs"]["ratio"] == 0.9
    assert not pair(before, after, {"x": X}, "macs<=0.5x").passed


def test_macs_that_cannot_be_counted_are_refused(pair):
    text = """g (float[N,4] x) => (float[N,5] y)
    { c = Constant <value = bool {1}> ()
      y = If (c) <then_branch = a () => (float[N,5] p) { n = NonZero(x) t = Transpose(n)
        f = Cast <to = 1> (t) z = MatMul(f, v) s = ReduceSum <keepdims = 1> (z) m = MatMul(x, w)
        p = Add(m, s) },
        else_branch = b () => (float[N,5] q) { q = MatMul(x, w) }> }"""
    model = model_from_text(text, w=W, v=np.ones((2, 5), np.float32))
    with pytest.raises(DataError, match="macs"):
        pair(model, model, {"x": X}, "macs<=0.5x")
