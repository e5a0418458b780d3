"""``fuse``: attention from products and a softmax, heads in one axis, and what must stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import assert_equal_outputs, check, feed_for
from support import model_from_text, op_types

from passes import Fuse

KIND: dict[str, Any] = {"float": np.float32, "float16": np.float16, "double": np.float64}
FUSE = Fuse(extra=("attentions_fused",))  # sizes that a test leaves open are never 0
INPUTS = "{0}[N,2,S,4] q, {0}[N,2,S,4] k, {0}[N,2,S,3] v, {0}[S,S] m, {0}[1,1,1,S] row"
LOWEST = np.finfo(np.float32).min
MASKS = {
    "causal": np.triu(np.full((5, 5), -np.inf, np.float32), 1),
    "hidden": np.where(np.eye(5)[3:4].T > 0, LOWEST, np.float32(0)).repeat(5, 1).astype(np.float32),
    "none": np.zeros((), np.float32),
    "far": np.array(-1e4, np.float32),
    "lowest": np.array(LOWEST),
}
TURN = "t = Transpose <perm = [0, 1, 3, 2]> (k) "


def build(body: str, *, dtype: str = "float", opset: int = 23, inputs: str = "") -> ir.Model:
    numbers = {"scale": 0.5, "root": 2.0, "fourth": 0.5**0.5, "minus": -0.5}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {n: np.array(x, KIND[dtype]) for n, x in numbers.items() if n in words}
    used |= {n: x for n, x in MASKS.items() if n in words}
    # Equal names of sizes prove nothing: sizes are taken from one input.
    text = f"g ({inputs or fixed(dtype)}) => ({dtype} y) {{ {body} }}"
    model = model_from_text(text, opset=opset, **used)
    model.graph.outputs[0].shape = None
    for index, node in enumerate(model.graph):
        node.name = f"/encoder/layer.0/attention/self/{node.op_type}_{index}"
    return model


def fixed(dtype: str) -> str:
    return INPUTS.format(dtype).replace("N", "2").replace("S", "5")


FUSED = {
    "plain": TURN + "s = MatMul (q, t) p = Softmax (s) y = MatMul (p, v)",
    "divided": TURN + "s = MatMul (q, t) a = Div (s, root) p = Softmax (a) y = MatMul (p, v)",
    "multiplied": TURN + "s = MatMul (q, t) a = Mul (scale, s) p = Softmax (a) y = MatMul (p, v)",
    "masked": TURN
    + "s = MatMul (q, t) a = Mul (s, scale) b = Add (a, causal) p = Softmax <axis = 3> (b)"
    " y = MatMul (p, v)",
    "scaled before": TURN
    + "z = Mul (q, fourth) u = Mul (t, fourth) s = MatMul (z, u) b = Add (causal, s)"
    " p = Softmax (b) y = MatMul (p, v)",
    "keys scaled": "z = Mul (q, fourth) u = Mul (k, fourth)"
    " t = Transpose <perm = [0, 1, 3, 2]> (u) s = MatMul (z, t) p = Softmax (s) y = MatMul (p, v)",
}


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    model = build(FUSED[case])
    check(FUSE, model, tolerance=1e-5)
    assert op_types(model) == ["Attention"]
    scale = model.graph.node(0).attributes["scale"].as_float()
    assert scale == pytest.approx(1.0 if case == "plain" else 0.5, rel=1e-3)


def test_keys_by_token() -> None:
    inputs = "float[2,2,5,4] q, float[2,5,2,4] k, float[2,2,5,3] v"
    body = "t = Transpose <perm = [0, 2, 3, 1]> (k) s = MatMul (q, t) p = Softmax (s)"
    model = build(body + " y = MatMul (p, v)", inputs=inputs)
    check(FUSE, model, tolerance=1e-5)
    assert op_types(model) == ["Transpose", "Attention"]


REST = "p = Softmax (b) y = MatMul (p, v)"
KEPT = {
    "another softmax axis": TURN + "b = MatMul (q, t) p = Softmax <axis = 2> (b) y = MatMul (p, v)",
    "mask by key only": TURN + "s = MatMul (q, t) b = Add (s, row) " + REST,
    "negative scale": TURN + "s = MatMul (q, t) b = Mul (s, minus) " + REST,
    "scores are used": TURN
    + "s = MatMul (q, t) p = Softmax (s) o = MatMul (p, v) z = ReduceMax (s)"
    " y = Add (o, z)",
    "keys not turned": "t = Transpose <perm = [0, 1, 2, 3]> (k) u = Transpose <perm = [1, 0, 3, 2]>"
    " (t) s = MatMul (q, u) p = Softmax (s) y = MatMul (p, v)",
}


CHOSEN = "b = Greater (m, none) c = Where (b, none, {}) s = MatMul (q, t) z = Add (s, c) "
REST_OF_CHOSEN = "p = Softmax (z) y = MatMul (p, v)"


@pytest.mark.parametrize(("hiding", "fused"), [("far", True), ("lowest", False)])
def test_a_mask_that_is_chosen_shows_a_key_to_each_query(hiding: str, fused: bool) -> None:
    model = build(TURN + CHOSEN.format(hiding) + REST_OF_CHOSEN)
    check(FUSE, model, tolerance=1e-5)
    assert ("Attention" in op_types(model)) == fused


@pytest.mark.parametrize("mask", ["m", "hidden"])
def test_a_mask_that_may_hide_all_keys_is_left(mask: str) -> None:
    """Softmax gives them equal shares where all are as low as can be; Attention gives zeros."""
    model = build(TURN + f"s = MatMul (q, t) b = Add (s, {mask}) " + REST)
    before = model.clone()
    outcome = check(FUSE, model, tolerance=1e-5)
    assert any("hide all keys" in skip.reason for skip in outcome.skipped)
    feed = {**feed_for(before), "m": np.full((5, 5), LOWEST)}
    assert_equal_outputs(before, model, feed, tolerance=1e-5)


def test_scores_of_half_precision_stay_in_float32() -> None:
    model = build(FUSED["plain"], dtype="float16")
    before = model.clone()
    check(FUSE, model)
    feed = {name: array * np.float16(300) for name, array in feed_for(before).items()}
    assert_equal_outputs(before, model, feed)


@pytest.mark.parametrize("case", KEPT)
def test_leaves(case: str) -> None:
    model = build(KEPT[case])
    check(FUSE, model, tolerance=1e-5)
    assert "Attention" not in op_types(model)


@pytest.mark.parametrize(("opset", "dtype"), [(22, "float"), (23, "double")])
def test_leaves_early_operator_sets_and_double(opset: int, dtype: str) -> None:
    model = build(FUSED["divided"], opset=opset, dtype=dtype)
    assert not check(FUSE, model).modified


def test_one_head_for_all_is_left() -> None:
    """MatMul repeats an axis of size 1; Attention does not do it that way."""
    inputs = "float[2,2,5,4] q, float[2,1,5,4] k, float[2,1,5,3] v"
    model = build(FUSED["divided"], inputs=inputs)
    assert not check(FUSE, model).modified


def test_sizes_of_the_same_name_are_not_the_same() -> None:
    model = build(FUSED["divided"], inputs=INPUTS.format("float"))
    assert not check(FUSE, model, free=3).modified


HEADS = (
    "a = Reshape (x, s4) b = Transpose <perm = [0, 2, 1, 3]> (a) c = Reshape (z, s4)"
    " d = Transpose <perm = [0, 2, 1, 3]> (c) e = Reshape (w, s4)"
    " f = Transpose <perm = [0, 2, 1, 3]> (e) o = Attention <scale = 0.3> (b, d, f)"
    " h = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (h, s3)"
)


@pytest.mark.parametrize(("dtype", "joined"), [("float", True), ("float16", False)])
def test_heads_in_one_axis(dtype: str, joined: bool) -> None:
    text = f"g ({dtype}[N,5,8] x, {dtype}[N,7,8] z, {dtype}[N,7,8] w) => ({dtype} y) {{ {HEADS} }}"
    shapes = {"s4": np.array([0, 0, 2, 4]), "s3": np.array([0, 0, 8])}
    model = model_from_text(text, opset=23, **shapes)
    model.graph.outputs[0].shape = None
    for index, node in enumerate(model.graph):
        node.name = f"/encoder/layer.0/attention/self/{node.op_type}_{index}"
    check(FUSE, model, tolerance=1e-5)
    assert (op_types(model) == ["Attention"]) == joined


def test_sizes_that_may_be_zero_are_left() -> None:
    """onnxruntime's Attention refuses a batch of none, which the products compute."""
    body = "t = Transpose <perm = [0, 1, 3, 2]> (x) s = MatMul (x, t) p = Softmax (s)"
    body += " y = MatMul (p, x)"
    model = build(body, inputs="float[N,2,5,4] x")
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert any("may be 0" in skip.reason for skip in outcome.skipped)
    check(FUSE, model, tolerance=1e-5)
    assert op_types(model) == ["Attention"]
    known = build(body, inputs="float[1,2,5,4] x")
    check(Fuse(), known, tolerance=1e-5)
    assert op_types(known) == ["Attention"]
