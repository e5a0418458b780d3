"""``fuse``: biases of zeros go where nobody can tell ``-0.0`` from ``0.0``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exact import check
from support import assert_same_outputs, model_from_text, op_types

from passes import Fuse

ARRAYS = {
    "w": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4),
    "z": np.zeros(4, np.float32),
    "wide": np.zeros((2, 1, 1, 4), np.float32),
    "almost": np.array([0, 0, 0, 1e-30], np.float32),
    "shape": np.array([0, 2, 2]),
}

GONE = {
    "after a product": ("a = MatMul (x, w) y = Add (a, z)", ["MatMul"]),
    "first operand": ("a = MatMul (x, w) y = Add (z, a)", ["MatMul"]),
    "subtracted": ("a = MatMul (x, w) b = Sub (a, z) y = Tanh (b)", ["MatMul", "Tanh"]),
    "after a view": (
        "a = MatMul (x, w) t = Transpose (a) u = Transpose (t) b = Add (u, z) y = Tanh (b)",
        ["MatMul", "Transpose", "Transpose", "Tanh"],
    ),
    "before what sums": ("a = Tanh (x) b = Add (a, z) y = MatMul (b, w)", ["Tanh", "MatMul"]),
    "before a residual": (
        "t = Tanh (x) a = MatMul (x, w) b = Add (t, z) y = Add (b, a)",
        ["Tanh", "MatMul", "Add"],
    ),
}
KEPT = {
    "of an input": "y = Add (x, z)",
    "before a division": "a = Tanh (x) b = Add (a, z) y = Reciprocal (b)",
    "enlarges": "a = MatMul (x, w) y = Add (a, wide)",
    "not all zero": "a = MatMul (x, w) y = Add (a, almost)",
    "two tanhs": "a = Tanh (x) b = Add (a, z) c = Neg (x) y = Add (b, c)",
}


def build(body: str) -> ir.Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in ARRAYS.items() if name in words}
    model = model_from_text(f"g (float[N,3,4] x) => (float y) {{ {body} }}", **used)
    model.graph.outputs[0].shape = None
    return model


@pytest.mark.parametrize("case", GONE)
def test_goes(case: str) -> None:
    body, expected = GONE[case]
    model = build(body)
    check(Fuse(), model)  # assert_array_equal: -0.0 and 0.0 count as equal
    assert op_types(model) == expected


@pytest.mark.parametrize("case", KEPT)
def test_stays(case: str) -> None:
    model = build(KEPT[case])
    before = model.clone()
    check(Fuse(), model)
    assert op_types(model) == op_types(before)
    zeros = np.full((1, 3, 4), -0.0, np.float32)
    with np.errstate(divide="ignore"):
        assert_same_outputs(before, model, {"x": zeros}, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype: type) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    arrays = {name: ARRAYS[name].astype(dtype) for name in ("w", "z")}
    body = "{ a = MatMul (x, w) b = Add (a, z) y = Tanh (b) }"
    model = model_from_text(f"g ({kind}[N,3,4] x) => ({kind}[N,3,4] y) {body}", **arrays)
    check(Fuse(), model)
    assert op_types(model) == ["MatMul", "Tanh"]


def test_integers_are_left_to_others() -> None:
    zeros = np.zeros(4, np.int64)
    model = model_from_text(
        "g (int64[N,4] x) => (int64[N,4] y) { a = Mul (x, x) b = Add (a, z) y = Abs (b) }", z=zeros
    )
    assert not check(Fuse(), model).modified
